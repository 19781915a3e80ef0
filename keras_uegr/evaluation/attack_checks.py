"""What is checked before a model is attacked, for an attack takes long."""

import collections.abc
import numbers

import keras
import numpy as np

from keras_uegr import string_data, text_input, value_checks
from keras_uegr.evaluation import attack_recipes
from keras_uegr.evaluation.textattack_import import import_textattack


def get_count(name, value, optional=False):
    """A positive integer as an `int`; if `optional`, `None` too."""
    if optional and value is None:
        return None
    value_checks.check_positive_integers(**{name: value})
    return int(value)


def get_seed(seed):
    """The seed as an `int`."""
    if (
        not isinstance(seed, numbers.Integral)
        or isinstance(seed, bool)
        or seed < 0
    ):
        raise ValueError(
            f"`seed` must be an integer, 0 or larger. Received: seed={seed}"
        )
    return int(seed)


def get_radii(epsilons):
    """The radii of an attack as a list of floats."""
    array = string_data.to_array(epsilons)
    if array.ndim != 1 or array.dtype.kind not in "iuf":
        raise ValueError(
            "`epsilons` must be a list of numbers, which may be empty: put a "
            f"single one in a list. Received: epsilons={epsilons}"
        )
    return array.astype(float).tolist()


def get_texts(texts):
    """A list of strings, or of tuples of strings, in the order of `texts`.

    Args:
        texts: Such a list, or an array or series of such elements.
    """
    is_list = isinstance(texts, collections.abc.Iterable) and not isinstance(
        texts, (str, bytes, dict)
    )
    if is_list and getattr(texts, "ndim", 1) == 1:
        # A series is indexed by its labels, a list by position.
        texts = list(texts)
        plain = [_plain(text) for text in texts]
        if texts and None not in plain:
            return plain
        texts = [texts[plain.index(None)]] if texts else texts
    raise ValueError(
        "`texts` must be a list of strings, or of tuples of strings for texts "
        "of several parts, at least one. "
        f"Received: texts={string_data.excerpt(texts)}"
    )


def check_can_be_changed(texts, attack=None):
    """TextAttack can take each of the texts apart.

    Args:
        texts: List of strings, or of tuples of strings.
        attack: Optional string, the name of an attack.
    """
    shared = import_textattack("shared")
    separator = shared.AttackedText.SPLIT_TOKEN
    for text in texts:
        joined = text if isinstance(text, str) else "\n".join(text)
        if separator in joined:
            raise ValueError(
                f"`texts` must not hold {separator}, which TextAttack puts "
                "between parts of texts: replace it. "
                f"Received: {string_data.excerpt(text)}"
            )
        # It divides by the number of words.
        removes_words = attack == "input_reduction"
        if removes_words and not shared.AttackedText(joined).num_words:
            raise ValueError(
                '`texts` must have a word each for "input_reduction", which '
                "removes words: leave out those that have none. "
                f"Received: {string_data.excerpt(text)}"
            )


def get_parts(x):
    """What `attack_texts` takes, from what `predict` takes."""
    if isinstance(x, dict) or not string_data.holds_strings(x):
        raise ValueError(
            "`x` must be a list of strings, or a tuple of lists of strings, "
            f"for `attacks`. Received: x={string_data.excerpt(x)}"
        )
    columns = [string_data.to_texts(leaf) for leaf in string_data.leaves(x)]
    return columns[0] if len(columns) == 1 else list(zip(*columns, strict=True))


def get_classes(name, labels):
    """The classes of the examples as an array of integers.

    Args:
        name: String, what the user calls them.
        labels: Array of `N` integers, or of `N` one-hot rows.
    """
    labels = string_data.to_array(labels)
    if _is_one_hot(labels):
        labels = labels.argmax(axis=-1)
    if labels.ndim != 1 or not np.issubdtype(labels.dtype, np.integer):
        raise ValueError(
            f"`{name}` must be integers, the index of each example's class, or "
            f"one-hot rows. Received: {name} of dtype {labels.dtype}, shape "
            f"{labels.shape}"
        )
    return labels


def check_range(name, labels, classes):
    """Each label is one of the model's classes."""
    if labels.min() < 0 or labels.max() >= classes:
        raise ValueError(
            f"`{name}` must be integers from 0 to {classes - 1}, the model "
            f"having {classes} classes. Received: {name} from {labels.min()} "
            f"to {labels.max()}"
        )


def check_from_logits(from_logits, outputs):
    """What was said is an answer, and no probability is beyond [0, 1].

    Logits that are divided by their sum, a negative one, change places.

    Args:
        from_logits: What the user said of the outputs.
        outputs: NumPy array of shape `(N, C)`.
    """
    if not isinstance(from_logits, (bool, np.bool_)):
        raise ValueError(
            "`from_logits` must be `True`, `False` or `None`. "
            f"Received: from_logits={from_logits!r}"
        )
    # Several that are independent may be of any sum, and size.
    beyond = outputs < 0 if outputs.shape[-1] > 1 else abs(outputs - 0.5) > 0.5
    if not from_logits and beyond.any():
        raise ValueError(
            "`from_logits` must be `True` or `None` here: some outputs are no "
            "probabilities. Received: from_logits=False, outputs with "
            f"{outputs[beyond][0]}"
        )


def check_examples(name, x, labels):
    """There is one label for each of the examples.

    Args:
        name: String, what the user calls the examples.
        x: What `predict` takes.
        labels: Array of labels.
    """
    if text_input.is_lazy(x):
        raise ValueError(
            f"`{name}` must be arrays, or lists of strings, which can be asked "
            "about several times, in one order. "
            f"Received: {name} of type {type(x).__name__}"
        )
    counts = _example_counts(x)
    if not len(labels) or counts - {len(labels)}:
        raise ValueError(
            f"`{name}` must hold an example for each label, at least one, in "
            "the same order; pairs are a tuple of two lists. "
            f"Received: {', '.join(map(str, sorted(counts)))} examples in "
            f"{name}, and {len(labels)} labels"
        )


def check_dictionaries(**arguments):
    """Examples have names, where there are any."""
    for argument, value in arguments.items():
        if value is not None and not isinstance(value, dict):
            raise ValueError(
                f"`{argument}` must be a dictionary by name, or `None`. "
                f"Received: {argument} of type {type(value).__name__}"
            )
        for name in value or {}:
            if not isinstance(name, str):
                raise ValueError(
                    f"The names in `{argument}` must be strings. "
                    f"Received: {name!r} of type {type(name).__name__}"
                )


def check_attacks(attacks):
    """Each of the attacks is known, and lowers the accuracy if it succeeds."""
    allowed = sorted(set(attack_recipes.RECIPES) - {"input_reduction"})
    is_list = isinstance(
        attacks, collections.abc.Collection
    ) and not isinstance(attacks, str)
    if is_list and "input_reduction" in attacks:
        raise ValueError(
            '`attacks` must not hold "input_reduction": it keeps the class, so '
            "that no accuracy shows what it did. Use `attack_texts` for it. "
            f"Received: attacks={attacks}"
        )
    if not is_list or not set(attacks) <= set(allowed):
        raise ValueError(
            f"`attacks` must be a list of names among {allowed}. "
            f"Received: attacks={attacks}"
        )


def _plain(text):
    """A `str` or a tuple of them, or `None` if it is neither."""
    if isinstance(text, str):
        return str(text)
    if not isinstance(text, tuple) or not text:
        return None
    parts = tuple(str(part) for part in text if isinstance(part, str))
    return parts if len(parts) == len(text) else None


def _is_one_hot(labels):
    are_rows = labels.ndim == 2 and labels.shape[1] > 1
    if not are_rows or labels.dtype.kind not in "biuf":
        return False
    return np.isin(labels, (0, 1)).all() and (labels.sum(axis=-1) == 1).all()


def _example_counts(data):
    if string_data.holds_strings(data):
        found = string_data.leaves(data)
    else:
        found = keras.tree.flatten(data)
    return {len(x) for x in found if getattr(x, "shape", ()) or _is_list(x)}


def _is_list(leaf):
    return isinstance(leaf, collections.abc.Sequence) and not isinstance(
        leaf, (str, bytes)
    )
