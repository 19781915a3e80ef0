"""Batches of arrays, for passes that aren't training."""

import keras
from keras import ops

from keras_uegr import string_data


def batches(x, y, batch_size, sample_weight=None):
    """Yields `(x, y)` as tensors, in order; the last batch may be smaller.

    With weights it yields `(x, y, sample_weight)`.

    Args:
        x: Arrays of `N` preprocessed examples.
        y: Arrays of `N` labels.
        batch_size: Positive integer.
        sample_weight: Arrays of `N` weights, or `None`.
    """
    data = string_data.pack(x, y, sample_weight)
    for start in range(0, len(keras.tree.flatten(x)[0]), batch_size):
        rows = slice(start, start + batch_size)
        yield keras.tree.map_structure(
            lambda array, rows=rows: ops.convert_to_tensor(array[rows]), data
        )
