"""Selection: which entries of the variables are updated.

Algorithm, with s the scores and q the `density`:

    live    = {i : 0 < s_i < infinity}
    tau     = the round(q * |live|)-th largest of the live scores, at least one
    mask_i  = tau <= s_i < infinity             True: entry i is updated

`tau` is found per variable (`scope="variable"`) or over all of them at once
(`scope="global"`). Entries that tie with it are all selected: where there is
nothing to tell them apart, favoring some would be arbitrary.

Sorting all scores costs more than the rest of the step, so tau comes from a
sample of `SAMPLE_SIZE` entries of each variable:

    view the scores as a table, the first axis being its rows
    live_rows    = rows with a live score in any of a few columns
    live_columns = columns with a live score in any of a few live rows
    sample k     = table[live_rows[floor(a_k * #live_rows)],
                         live_columns[floor(b_k * #live_columns)]]
    a_k rising evenly from 0 to 1,    b_k = k * golden ratio mod 1

In an embedding table almost all rows are zero, as their tokens aren't in the
batch; hence the search for live rows. The (a_k, b_k) cover the unit square
evenly, whatever the two counts are. A variable with no more rows than columns
is no such table: there the sample takes entries at one distance from each
other, which shares no factor with the number of columns. Then

    tau <- largest number with  sum_k [s_k >= tau] >= q * sum_k [s_k live]

by bisection on the bits of tau: positive floats are ordered as the integers
with the same bits. It takes a fixed number of passes over a small matrix, while
the sorting routines of some backends are slow. With `scope="global"` each
sample counts for the number of entries that it stands for.

Child-Tuning-D (arXiv:2109.05687) and the released code of RoAST
(arXiv:2312.04032) rank over all variables at once; SIFT (arXiv:2312.11875)
ranks within each. ROSE (arXiv:2210.09658) ranks variables as a whole, see
selector.py.
"""

import functools
import math

import numpy as np
from keras import ops

TENSOR = "tensor"
SCOPES = ("variable", "global", TENSOR)

# The density of one variable then errs by sqrt(q * (1 - q) / 8192) at most,
# about 0.005, which leaves a margin of four times to an error of 0.02.
SAMPLE_SIZE = 8192
_PROBED_COLUMNS = 16
_PROBED_ROWS = 64
_SAMPLED_ROWS = 4096
_GOLDEN_RATIO = (math.sqrt(5.0) - 1.0) / 2.0

# Bit patterns of float32. Some backends flush subnormal numbers to zero, so a
# threshold among them would select every zero.
_SMALLEST_NORMAL = 0x00800000
_INFINITY = 0x7F800000
_HIGHEST_BIT = 30
# 13 bits less: relative steps of 1/1024, far below the sampling error.
_SAMPLE_LOWEST_BIT = 13


class Scores:
    """The scores of a variable, to be read in whole or in part.

    A part is computed from the same part of the variable: the whole is never
    kept, as the scores of a model take as much memory as its weights.

    Args:
        function: Function of `tensors` to float32 scores, entry by entry.
        tensors: List of tensors of the variable's shape.
    """

    def __init__(self, function, tensors):
        self.function = function
        self.tensors = tensors
        self.shape = tuple(tensors[0].shape)
        self.size = math.prod(self.shape)

    def read(self, part):
        """The scores of `part(x)`, `x` standing for the variable."""
        return self.function(*[part(tensor) for tensor in self.tensors])

    def flat(self):
        """All scores, as a tensor of shape `(size,)`."""
        return self.read(lambda x: ops.reshape(x, (-1,)))


def find_thresholds(scores, density, scope="variable", exact=False):
    """The scores from which on entries are selected.

    Args:
        scores: List of `Scores`.
        density: Float between 0 and 1, the share of live entries to select.
        scope: `"variable"` or `"global"`, what the share refers to.
        exact: Boolean. If `True`, all scores are ranked instead of a sample.

    Returns:
        Tuple of a list of scalar float32 tensors, one threshold for each of
        `scores`, and another such tensor: the number of selected entries,
        extrapolated from the sample.

    Example:

    >>> scores = Scores(keras.ops.abs, [keras.ops.arange(-5.0, 5.0)])
    >>> (threshold,), count = find_thresholds([scores], density=0.2)
    """
    if exact:
        return _exact_thresholds(scores, density, scope)
    return _sampled_thresholds(scores, density, scope)


def _sampled_thresholds(scores, density, scope):
    samples, weights = zip(*map(sample, scores), strict=True)
    weights = ops.reshape(ops.stack(weights), (-1, 1))
    thresholds, selected = _thresholds(
        ops.stack(samples), density, _SAMPLE_LOWEST_BIT, weights, scope
    )
    return ops.unstack(thresholds, len(scores)), selected


def _exact_thresholds(scores, density, scope):
    rows = [ops.expand_dims(score.flat(), axis=0) for score in scores]
    if scope == "global":
        rows = [ops.concatenate(rows, axis=1)]
    thresholds, selected = zip(
        *(_thresholds(row, density, 0, 1.0, "variable") for row in rows),
        strict=True,
    )
    thresholds = [ops.reshape(threshold, ()) for threshold in thresholds]
    if scope == "global":
        thresholds = thresholds * len(scores)
    return thresholds, sum(selected)


def _thresholds(samples, density, lowest_bit, weights, scope):
    """One threshold for each row of samples.

    Args:
        samples: Float32 tensor of shape `(variables, sample)`.
        density: Float, the share to select.
        lowest_bit: Integer, the last bit of the thresholds to determine.
        weights: Tensor of shape `(variables, 1)`: the number of entries that a
            sample of this row stands for.
        scope: `"variable"` or `"global"`.

    Returns:
        Tuple of the thresholds `(variables,)` and the number of entries that
        they select, both float32.
    """
    bits = ops.view(samples, "int32")
    is_live = ops.logical_and(bits >= _SMALLEST_NORMAL, bits < _INFINITY)
    bits = ops.where(is_live, bits, 0)

    def count(lowest):
        at_least = ops.cast(bits >= lowest, "float32")
        return ops.sum(at_least, axis=1, keepdims=True) * weights

    def pool(counts):
        if scope == "global":
            return ops.sum(counts, axis=0, keepdims=True)
        return counts

    live = pool(count(_SMALLEST_NORMAL))
    # One entry at least: a small variable would never be updated otherwise.
    wanted = ops.maximum(ops.floor(density * live + 0.5), 1.0)
    found = ops.zeros_like(wanted, dtype="int32")
    for bit in range(_HIGHEST_BIT, lowest_bit - 1, -1):
        candidate = found + 2**bit
        found = ops.where(pool(count(candidate)) >= wanted, candidate, found)
    # Nothing is live: a threshold that nothing reaches.
    found = ops.where(found >= _SMALLEST_NORMAL, found, _INFINITY)
    thresholds = ops.view(found, "float32") * ops.ones(
        (samples.shape[0], 1), dtype="float32"
    )
    return ops.squeeze(thresholds, axis=1), ops.sum(count(found))


def sample(scores):
    """A sample of a variable's scores, and what each of them stands for.

    Args:
        scores: `Scores`.

    Returns:
        Tuple of a tensor of shape `(SAMPLE_SIZE,)` and a scalar tensor: the
        number of entries that a sample stands for.
    """
    if scores.size <= SAMPLE_SIZE:
        missing = SAMPLE_SIZE - scores.size
        return ops.pad(scores.flat(), [[0, missing]]), 1.0
    rows = scores.shape[0]
    columns = scores.size // rows
    if rows <= columns:
        stride = _stride(scores.size, columns)
        last = stride * SAMPLE_SIZE
        part = scores.read(lambda x: ops.reshape(x, (-1,))[:last:stride])
        return part, scores.size / SAMPLE_SIZE
    # A power of two, so that it divides the size of the sample.
    strata = min(2 ** math.ceil(math.log2(rows)), _SAMPLED_ROWS)

    def table(x):
        return ops.reshape(x, (rows, columns))

    # Neighbors, which memory delivers together.
    first = max(0, (columns - _PROBED_COLUMNS) // 2)
    last = first + _PROBED_COLUMNS
    probe = scores.read(lambda x: table(x)[:, first:last])
    even = (np.arange(strata) + 0.5) / strata
    row, live_rows = _live_positions(probe, 1, even)

    some_rows = row[:: max(1, strata // _PROBED_ROWS)]
    probe = scores.read(lambda x: ops.take(table(x), some_rows, axis=0))
    column, live_columns = _live_positions(probe, 0, _golden_fractions())

    column = ops.reshape(column, (strata, SAMPLE_SIZE // strata))
    positions = ops.reshape(row[:, None] * columns + column, (-1,))
    part = _take(scores, positions)
    return part, live_rows * live_columns / SAMPLE_SIZE


def _stride(size, columns):
    """The longest stride of a sample that visits all columns alike."""
    stride = size // SAMPLE_SIZE
    while math.gcd(stride, columns) > 1:
        stride -= 1
    return stride


@functools.cache
def _golden_fractions():
    return np.mod(np.arange(SAMPLE_SIZE) * _GOLDEN_RATIO, 1.0)


def _take(scores, positions):
    return scores.read(lambda x: ops.take(ops.reshape(x, (-1,)), positions))


def _live_positions(probe, axis, fractions):
    """Positions at the given fractions of the way through the live ones.

    Args:
        probe: Float32 tensor of shape `(rows, columns)`.
        axis: The axis to look for live scores along: 1 to find rows, 0 to find
            columns. If none is live, all count as live: the probe may have
            missed them.
        fractions: Array of shape `(sample,)`, in `[0, 1)`.

    Returns:
        Tuple of an int32 tensor of shape `(sample,)` and a scalar float32
        tensor: the number of live positions.
    """
    is_live = ops.any(ops.not_equal(probe, 0.0), axis=axis)
    is_live = ops.logical_or(is_live, ops.logical_not(ops.any(is_live)))
    live = ops.sum(ops.cast(is_live, "float32"))
    # The product may be rounded up.
    wanted = ops.minimum(
        ops.floor(
            ops.multiply(live, ops.convert_to_tensor(fractions, "float32"))
        ),
        live - 1,
    )
    # The live positions first: sorting is quick everywhere, searching isn't.
    size = probe.shape[1 - axis]
    position = ops.arange(size, dtype="int32")
    ordered = ops.sort(ops.where(is_live, position, position + size))
    return ops.take(ordered, ops.cast(wanted, "int32")), live
