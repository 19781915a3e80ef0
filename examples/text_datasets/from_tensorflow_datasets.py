"""Thirteen public data sets, downloaded by `tensorflow-datasets`.

    pip install ".[datasets]"     # in a checkout

    single sentence   CoLA, SST-2, AG News, IMDB, Yelp polarity
    pair              MRPC, QQP, MNLI, QNLI, RTE, SNLI, ANLI
    score of a pair   STS-B

The list is ours, not the UEGR paper's. Names of columns and of classes are
those of the publishers, but for Yelp and ANLI, whose own names of classes are
numbers and letters.

The labels of GLUE's own test splits are secret. There, as in the literature,
the published validation split is the test set, and validation examples are
drawn from the training split, as they are where only two splits exist. What is
repeated there is left out before. MNLI's test set is the matched one. ANLI is
all three rounds together.

Such validation examples compare methods, but flatter all of them: many of
SST-2's training examples are phrases of one sentence, and in MNLI and QNLI one
premise or question belongs to several, of which some may be trained on.

AdvGLUE isn't part of `tensorflow-datasets`; see `adversarial_glue.py`.
"""

import dataclasses

import numpy as np

import movie_reviews
from text_datasets.dataset import Dataset, Task

ENTAILMENT = ("entailment", "neutral", "contradiction")


@dataclasses.dataclass(frozen=True)
class Source:
    """Where the examples of a task come from.

    Args:
        builders: tuple of strings. Names in `tensorflow-datasets`.
        columns: tuple of tuples of strings. For each input, its columns; the
            texts of several columns are joined.
        test: string. The split that is tested on.
        validation: string or `None`. The split to choose settings with, or
            `None` for examples of the training split.
    """

    builders: tuple[str, ...]
    columns: tuple[tuple[str, ...], ...]
    test: str = "validation"
    validation: str | None = None


TASKS = {
    task.name: task
    for task in (
        Task("cola", ("unacceptable", "acceptable"), ("matthews", "accuracy")),
        Task("sst2", ("negative", "positive")),
        Task("mrpc", ("not_equivalent", "equivalent"), ("f1", "accuracy"), 2),
        Task("stsb", (), ("pearson", "spearman"), 2),
        Task("qqp", ("not_duplicate", "duplicate"), ("f1", "accuracy"), 2),
        Task("mnli", ENTAILMENT, inputs=2),
        Task("qnli", ("entailment", "not_entailment"), inputs=2),
        Task("rte", ("entailment", "not_entailment"), inputs=2),
        Task("ag_news", ("World", "Sports", "Business", "Sci/Tech")),
        Task("imdb", ("neg", "pos")),
        Task("yelp_polarity", ("negative", "positive")),
        Task("snli", ENTAILMENT, inputs=2),
        Task("anli", ENTAILMENT, inputs=2),
    )
}
SENTENCES = (("sentence1",), ("sentence2",))
PREMISE = (("premise",), ("hypothesis",))
SOURCES = {
    "cola": Source(("glue/cola",), (("sentence",),)),
    "sst2": Source(("glue/sst2",), (("sentence",),)),
    "mrpc": Source(("glue/mrpc",), SENTENCES),
    "stsb": Source(("glue/stsb",), SENTENCES),
    "qqp": Source(("glue/qqp",), (("question1",), ("question2",))),
    "mnli": Source(("glue/mnli",), PREMISE, "validation_matched"),
    "qnli": Source(("glue/qnli",), (("question",), ("sentence",))),
    "rte": Source(("glue/rte",), SENTENCES),
    "ag_news": Source(("ag_news_subset",), (("title", "description"),), "test"),
    "imdb": Source(("imdb_reviews",), (("text",),), "test"),
    "yelp_polarity": Source(("yelp_polarity_reviews",), (("text",),), "test"),
    "snli": Source(("snli",), PREMISE, "test", "validation"),
    "anli": Source(
        ("anli/r1", "anli/r2", "anli/r3"),
        (("context",), ("hypothesis",)),
        "test",
        "validation",
    ),
}


def load(name, sizes, seed=0):
    """Return a `Dataset`: random examples of the published splits.

    The whole set is downloaded and prepared on the first call.

    Args:
        name: string. One of `TASKS`.
        sizes: three integers: training, validation, test.
        seed: integer. Draws the examples.
    """
    source, (train, validation, test) = SOURCES[name], sizes
    (tested,) = movie_reviews.split(read(name, source.test), (test,), seed)
    if source.validation:
        (trained,) = movie_reviews.split(read(name, "train"), (train,), seed)
        (chosen,) = movie_reviews.split(
            read(name, source.validation), (validation,), seed
        )
    else:
        examples = without_repetitions(read(name, "train"))
        chosen, trained = movie_reviews.split(
            examples, (validation, train), seed
        )
    return Dataset(TASKS[name], trained, chosen, tested)


def read(name, split):
    """Return all `Sentences` of a split that have a label.

    Args:
        name: string. One of `TASKS`.
        split: string. As the publisher names it.
    """
    tfds = import_for(name)
    texts, labels = [], []
    for builder in SOURCES[name].builders:
        for row in tfds.as_numpy(tfds.load(builder, split=split)):
            # SNLI marks with -1 what its annotators disagreed on.
            if TASKS[name].is_regression or row["label"] >= 0:
                texts.append(text_of(row, SOURCES[name].columns))
                labels.append(row["label"])
    kind = "float32" if TASKS[name].is_regression else "int32"
    return movie_reviews.Sentences(texts, np.array(labels, dtype=kind))


def import_for(name):
    """Return `tensorflow_datasets`, or tell how to get it.

    Args:
        name: string. The data set that needs it.
    """
    try:
        import tensorflow_datasets
    except ImportError as error:
        raise ImportError(
            f"The data set {name!r} needs tensorflow-datasets. Install it, in "
            "a checkout of this project, with `pip install '.[datasets]'`."
        ) from error
    return tensorflow_datasets


def without_repetitions(sentences):
    """Return the `Sentences`, of each text the first one.

    One copy could be trained on, and settings be chosen by the other.
    """
    places = {}
    for place, text in enumerate(sentences.texts):
        places.setdefault(text, place)
    return movie_reviews.Sentences(
        list(places), sentences.labels[list(places.values())]
    )


def text_of(row, columns):
    """Return a row's text, or its tuple of texts if it has two inputs."""
    inputs = tuple(
        " ".join(_decoded(row[column]) for column in names) for names in columns
    )
    return inputs if len(inputs) > 1 else inputs[0]


def _decoded(text):
    return text.decode("utf-8") if isinstance(text, bytes) else text
