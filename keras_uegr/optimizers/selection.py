"""Selection: the mask of the most salient entries.

    tau_j  = the (1 - density) quantile of the non-zero scores of group j
    mask   = score >= tau_j  and  score > 0          True: the entry is updated

A group is one variable, or all of them. The quantile is taken of a sample of
fixed size, so that the cost is linear, with a small constant, and every shape
static. In an embedding table nearly all rows have no gradient in a given step:
the sample of a variable is drawn from its live rows only,

    alive  = rows with a non-zero score in one of a few columns
    sample = entries at evenly spaced live rows, walking through the columns

The standard error of the density is at most `sqrt(density * (1 - density) /
SAMPLE_SIZE)`, 0.006 at density 0.3.
"""

import math

import numpy as np
from keras import ops

SAMPLE_SIZE = 6144
_PROBED_COLUMNS = 8


def sample(scores, size=SAMPLE_SIZE):
    """A fixed-size sample of the scores in live rows.

    Args:
        scores: Float tensor of shape `(rows, ...)`.
        size: Positive integer. Defaults to `SAMPLE_SIZE`.

    Returns:
        A tensor of shape `(size,)`.
    """
    rows = scores.shape[0]
    columns = math.prod(scores.shape[1:])
    scores = ops.reshape(scores, (rows, columns))
    step = max(columns // _PROBED_COLUMNS, 1)
    alive = ops.any(scores[:, ::step] > 0, axis=1)
    rank = ops.cumsum(ops.cast(alive, "int32"))
    # The i-th sample comes from the live row of rank ceil(i * live / size);
    # as a product of floats, since one of integers could overflow.
    spacing = ops.convert_to_tensor(
        np.linspace(0.0, 1.0, size, endpoint=False), dtype="float32"
    )
    wanted = ops.cast(spacing * ops.cast(rank[-1], "float32"), "int32") + 1
    row = ops.minimum(ops.searchsorted(rank, wanted), rows - 1)
    column = (np.arange(size) * _coprime_step(columns)) % columns
    column = ops.convert_to_tensor(column, dtype="int32")
    flat = ops.cast(row, "int32") * columns + column
    return ops.take(ops.reshape(scores, (-1,)), flat)


def strided_sample(scores, stride):
    """Every `stride`-th score, as a tensor of one axis."""
    return ops.reshape(scores, (-1,))[::stride]


def stride_for(variables, size=SAMPLE_SIZE):
    """The stride that gives about `size` scores for each of `variables`."""
    entries = sum(math.prod(variable.shape) for variable in variables)
    stride = max(entries // (size * max(len(variables), 1)), 1)
    widths = [variable.shape[-1] for variable in variables]
    # A stride that divides a width would look at the same columns only.
    while any(math.gcd(stride, width) > 1 for width in widths):
        stride += 1
    return stride


def thresholds(samples, density):
    """The `(1 - density)` quantile of the positive entries of each row.

    Args:
        samples: Float tensor of shape `(groups, size)`.
        density: Float in `[0, 1]`.

    Returns:
        A float tensor of shape `(groups, 1)`: the smallest value to select,
        infinity where nothing is.
    """
    usable = ops.logical_and(samples > 0, samples < math.inf)
    ordered = ops.sort(ops.where(usable, samples, 0.0), axis=-1)
    positive = ops.sum(ops.cast(usable, "int32"), axis=-1, keepdims=True)
    count = ops.cast(
        ops.round(density * ops.cast(positive, "float32")), "int32"
    )
    index = ops.clip(samples.shape[-1] - count, 0, samples.shape[-1] - 1)
    lowest = ops.take_along_axis(ordered, index, axis=-1)
    return ops.where(count > 0, lowest, math.inf)


def mask(scores, threshold):
    """Boolean tensor: the entries at or above a threshold.

    Entries of score 0, and those whose score is not a finite number, are never
    selected.
    """
    selected = ops.logical_and(scores >= threshold, scores > 0)
    return ops.logical_and(selected, scores < math.inf)


def _coprime_step(columns):
    """A step near the golden section that visits every column."""
    step = max(int(columns * 0.618), 1)
    while math.gcd(step, columns) > 1:
        step += 1
    return step
