"""Leaves out the positions of a batch that are padding in all its texts.

A preprocessor pads every text to one length, often many times its own, and an
attack asks for thousands of texts. A model that ignores padding gives the same
outputs for what is left, in less time. Whether it does is tried out: one that
takes the mean over all positions doesn't.
"""

import numpy as np
from keras import ops

MASK = "padding_mask"
# Rounding differs with the length, as it does with the number of texts.
_TOLERANCE = 1e-3
_SHORTEST = 8


def is_possible(model, x):
    """Whether a model takes inputs of any length, with one mask for all.

    Args:
        model: A `keras.Model`.
        x: Its input for some texts.
    """
    if not isinstance(x, dict) or MASK not in x:
        return False
    inputs = getattr(model, "input", None)
    if not isinstance(inputs, dict) or set(inputs) != set(x):
        return False
    lengths = [each.shape[1:] for each in inputs.values()]
    shapes = {tuple(value.shape) for value in x.values()}
    return all(tuple(each) == (None,) for each in lengths) and len(shapes) == 1


def trim(x):
    """Leave out what is padding at the end of all texts.

    Not every length occurs, for a graph may be traced for each: they are
    multiples of 8 and, above 32, of a quarter of the next power of two.

    Args:
        x: Dictionary of arrays of shape `(N, T)`, `"padding_mask"` among them.

    Returns:
        A dictionary of arrays of shape `(N, S)`, `S <= T`.
    """
    used = np.flatnonzero(ops.convert_to_numpy(x[MASK]).any(axis=0))
    longest = int(used[-1]) + 1 if used.size else 1
    step = max(_SHORTEST, (1 << (longest - 1).bit_length()) // 4)
    length = -(-longest // step) * step
    return {name: value[:, :length] for name, value in x.items()}


def without_a_rest(x):
    """Tokens of which `trim` leaves a length that the last text just fills.

    A maximum over all positions, say, would be the same for any number of
    positions of padding, as long as there is one.

    Args:
        x: Dictionary of arrays of shape `(N, T)`, tokens of an empty text
            first, and last of one that is longer than what `trim` leaves.
    """
    kept = np.arange(x[MASK].shape[1]) < _SHORTEST
    return {
        name: ops.where(kept, value, ops.convert_to_tensor(value)[:1])
        for name, value in x.items()
    }


def changes_nothing(outputs, trimmed_outputs):
    """Whether a model gives the same for trimmed inputs.

    Args:
        outputs: NumPy array of shape `(N, C)`.
        trimmed_outputs: NumPy array of shape `(N, C)`.
    """
    scale = np.abs(outputs).max()
    # Outputs that are all 0, as of a head that starts so, tell nothing.
    return np.abs(outputs - trimmed_outputs).max() < _TOLERANCE * scale
