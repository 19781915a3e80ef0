"""10,000 sentences of movie reviews, each rated by people.

The sentences come from Rotten Tomatoes (Pang and Lee, 2004). Hutto and Gilbert
(2014) had each rated by 20 people, from -4 to 4, and publish the mean rating
inside the source distribution of their package `vaderSentiment` (MIT licence).
"""

import csv
import dataclasses
import io
import re
import tarfile

import numpy as np

from fetching import Release, fetch

RELEASE = Release(
    name="vaderSentiment",
    version="3.3.2",
    kind="sdist",
    sha256="5d7c06e027fc8b99238edb0d53d970cf97066ef97654009890b83703849632f9",
)
ARCHIVE = "vaderSentiment-3.3.2/additional_resources/hutto_ICWSM_2014.tar.gz"
SENTENCES = "hutto_ICWSM_2014/movieReviewSnippets_GroundTruth.txt"


class TooFewExamplesError(ValueError):
    """More examples were asked for than there are."""


@dataclasses.dataclass(frozen=True)
class Sentences:
    """Sentences and their labels.

    Args:
        texts: list of strings.
        labels: int32 array of the same length. 1 is a favourable sentence.
    """

    texts: list[str]
    labels: np.ndarray

    def __len__(self):
        return len(self.texts)

    def head(self, count):
        """Return the first `count` sentences, or all if there are fewer."""
        return Sentences(self.texts[:count], self.labels[:count])


def load(train_size, validation_size, test_size, seed=0):
    """Return three disjoint `Sentences`: train, validation and test.

    For one seed the test set is the same whatever the other two sizes are.

    Args:
        train_size: integer.
        validation_size: integer.
        test_size: integer.
        seed: integer. Draws which sentence goes where.
    """
    return split(read(), (test_size, validation_size, train_size), seed)[::-1]


def read():
    """Return all `Sentences`."""
    path = fetch(RELEASE, _extract) / "sentences.tsv"
    return parse(path.read_text(encoding="utf-8"))


def _extract(archive, folder):
    content = read_table(archive, SENTENCES)
    (folder / "sentences.tsv").write_bytes(content)


def read_table(archive, name):
    """Return the bytes of a file in the archive inside the package.

    Args:
        archive: path of the package's source distribution.
        name: string. The file's path in the inner archive.
    """
    with tarfile.open(archive) as package:
        inner = package.extractfile(ARCHIVE).read()
    with tarfile.open(fileobj=io.BytesIO(inner)) as resources:
        return resources.extractfile(name).read()


def parse(table):
    """Return the `Sentences` of a table of number, rating and sentence.

    Sentences rated exactly 0 are left out, for they are neither favourable nor
    unfavourable, and so are repeated ones, for one copy could be learnt and
    the other tested.

    Args:
        table: string. Tab-separated lines.
    """
    texts, labels, seen = [], [], set()
    lines = io.StringIO(table, newline="")
    for _, rating, text in csv.reader(
        lines, delimiter="\t", quoting=csv.QUOTE_NONE
    ):
        words = tuple(re.findall(r"\w+", text.lower()))
        if float(rating) == 0 or words in seen:
            continue
        seen.add(words)
        texts.append(text.strip())
        labels.append(float(rating) > 0)
    return Sentences(texts, np.array(labels, dtype="int32"))


def split(sentences, sizes, seed, from_end=False):
    """Return disjoint random parts of some sentences.

    Args:
        sentences: `Sentences`.
        sizes: list of integers, the size of each part.
        seed: integer.
        from_end: boolean. If `True`, the parts are what is drawn last.
    """
    if sum(sizes) > len(sentences):
        raise TooFewExamplesError(
            f"The parts may hold {len(sentences)} sentences in all. "
            f"Received: sizes={sizes}"
        )
    order = np.random.default_rng(seed).permutation(len(sentences))
    if from_end:
        order = order[::-1]
    parts = np.split(order[: sum(sizes)], np.cumsum(sizes)[:-1])
    return [
        Sentences(
            [sentences.texts[index] for index in part], sentences.labels[part]
        )
        for part in parts
    ]


def swap_letters(texts, share=0.3, seed=0):
    """Return texts with typing errors: neighbouring letters swapped.

    In the given share of the words of four letters or more, two neighbours
    inside the word change places, as they do when people type fast. The first
    and the last letter stay, so that people still read the sentence.

    Args:
        texts: list of strings.
        share: float between 0 and 1. How many of the words get an error.
        seed: integer.
    """
    generator = np.random.default_rng(seed)

    def swap(match):
        word = match.group()
        if generator.random() >= share:
            return word
        first = generator.integers(1, len(word) - 2)
        return word[:first] + word[first + 1] + word[first] + word[first + 2 :]

    return [re.sub(r"[^\W\d_]{4,}", swap, text) for text in texts]
