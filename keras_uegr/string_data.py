"""Structures of raw strings: what holds them, what is in them, how many.

As in KerasHub, tuples and dictionaries are structure and a list is one array.
A tuple of strings is one array too, as data loaders give it.
"""

import collections.abc

import keras
import numpy as np


def map_leaves(function, data):
    """`data` with `function` applied to its arrays; `None` stays `None`."""
    if data is None:
        return None
    if isinstance(data, dict):
        return {key: map_leaves(function, data[key]) for key in data}
    if isinstance(data, tuple) and not _is_list_of_strings(data):
        return tuple(map_leaves(function, part) for part in data)
    return function(data)


def leaves(data):
    """The arrays of `data`, in a list."""
    found = []
    map_leaves(found.append, data)
    return found


def holds_strings(data):
    """Whether any array in `data`, or the spec of one, is of strings."""
    return any(_is_of_strings(leaf) for leaf in leaves(data))


def is_empty(data):
    """Whether `data` is a list, or lists, of nothing."""
    found = leaves(data)
    return bool(found) and all(_is_list(x) and len(x) == 0 for x in found)


def to_texts(leaf):
    """A list of `str` from a leaf that holds strings, else a NumPy array."""
    if not _is_of_strings(leaf):
        return to_array(leaf)
    if not _is_list(leaf) and not isinstance(leaf, str | bytes):
        leaf = np.asarray(leaf).tolist()
    if isinstance(leaf, str | bytes):
        raise ValueError(
            "`x` must be a batch of texts: wrap a single text in a list, "
            f"`[text]`. Received: x={excerpt(leaf)}"
        )
    return [_to_text(element, index) for index, element in enumerate(leaf)]


def to_array(leaf):
    """A NumPy array from a tensor of any backend, a list or a series."""
    if keras.ops.is_tensor(leaf):
        return keras.ops.convert_to_numpy(leaf)
    return np.asarray(leaf)


def as_arrays(data):
    """`data` with its lists of numbers as arrays; lists of arrays stay."""
    if isinstance(data, dict):
        return {key: as_arrays(data[key]) for key in data}
    if not isinstance(data, list | tuple):
        return data
    if any(isinstance(x, dict) or getattr(x, "ndim", 0) for x in data):
        return [as_arrays(part) for part in data]
    return np.asarray(data)


def count_examples(x, y, sample_weight):
    """The number of examples, the same in every array.

    Raises:
        ValueError: If arrays differ in length, or there are no examples.
    """
    named = {"x": x, "y": y, "sample_weight": sample_weight}
    lengths = {
        name: [_length(leaf) for leaf in leaves(data)]
        for name, data in named.items()
    }
    count = common_length(lengths)
    if count == 0:
        raise ValueError(
            "`x` must hold at least one text. Received: "
            f"x={excerpt(x)}, which is empty."
        )
    return count


def common_length(lengths):
    """The one length of all arrays, 0 where there is no array.

    Args:
        lengths: Dictionary by name, of lists of integers.

    Raises:
        ValueError: If they differ.
    """
    different = {length for found in lengths.values() for length in found}
    if len(different) > 1:
        raise ValueError(
            "`x`, `y` and `sample_weight` must have the same number of "
            "examples; the two sides of a pair, and the labels of several "
            "outputs, are given as a tuple of two lists. Received lengths: "
            f"{lengths}"
        )
    return different.pop() if different else 0


def unpack(batch):
    """`x`, `y`, `sample_weight` of what Keras takes as one batch."""
    if isinstance(batch, list | tuple) and not _is_list_of_strings(batch):
        return keras.utils.unpack_x_y_sample_weight(batch)
    return batch, None, None


def pack(x, y, sample_weight):
    """The shortest tuple: Keras takes no `None` in a batch."""
    if y is None:
        return (x,)
    if sample_weight is None:
        return x, y
    return x, y, sample_weight


def excerpt(data):
    """The beginning of `repr(data)`, for error messages."""
    representation = repr(data)
    if len(representation) > 100:
        return f"{representation[:100]}..."
    return representation


def _length(leaf):
    # An array of no dimensions has no length.
    return 1 if getattr(leaf, "ndim", 1) == 0 else len(leaf)


def _is_list(leaf):
    return isinstance(leaf, collections.abc.Sequence) and not isinstance(
        leaf, str | bytes
    )


def _is_list_of_strings(leaf):
    return _is_list(leaf) and any(isinstance(x, str | bytes) for x in leaf)


def _is_of_strings(leaf):
    if isinstance(leaf, str | bytes) or _is_list_of_strings(leaf):
        return True
    if _is_list(leaf):
        # One row tells: scanning every row of long numeric lists is slow.
        return len(leaf) > 0 and _is_list(leaf[0]) and _is_of_strings(leaf[0])
    dtype = getattr(leaf, "dtype", None)
    name = getattr(dtype, "name", str(dtype)).lower()
    if name in ("object", "category"):
        elements = np.asarray(leaf, dtype=object).flat
        return any(isinstance(element, str | bytes) for element in elements)
    # Arrow has large strings, too, and dictionaries of them.
    return "string" in name or name.startswith(("str", "bytes"))


def _to_text(element, index):
    if isinstance(element, bytes):
        return element.decode("utf-8")
    if isinstance(element, str):
        return str(element)
    if isinstance(element, list | tuple):
        raise ValueError(
            "`x` must be a list of texts. Give pairs of texts as a tuple of "
            "two lists, `(first_texts, second_texts)`. Received at index "
            f"{index}: {excerpt(element)}"
        )
    raise ValueError(
        "`x` must hold nothing but strings; remove or replace missing texts "
        f"(an empty string is allowed). Received at index {index}: "
        f"{excerpt(element)}"
    )
