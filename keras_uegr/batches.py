"""Batches of arrays, for passes that aren't training."""

import keras
from keras import ops


def batches(x, y, batch_size):
    """Yields `(x, y)` as tensors, in order; the last batch may be smaller.

    Args:
        x: Arrays of `N` preprocessed examples.
        y: Array of `N` labels.
        batch_size: Positive integer.
    """
    for start in range(0, len(y), batch_size):
        rows = slice(start, start + batch_size)
        yield keras.tree.map_structure(
            lambda array, rows=rows: ops.convert_to_tensor(array[rows]), (x, y)
        )
