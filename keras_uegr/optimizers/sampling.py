"""Sampling: some scores of a variable, which stand for all of them.

`SAMPLE_SIZE` of them, or all of a small variable. In an embedding table almost
all rows are zero, as their tokens aren't in the batch; hence the search for
what is live:

    view the scores as a table, the first axis being its rows
    live_rows    = rows with a live score in any of a few columns
    live_columns = columns with a live score in any of a few live rows
    sample k     = table[live_rows[floor(a_k * #live_rows)],
                         live_columns[floor(b_k * #live_columns)]]
    a_k rising evenly from 0 to 1,    b_k = k * golden ratio mod 1

The (a_k, b_k) cover the unit square evenly, whatever the two counts are. A
variable with no more rows than columns is no such table: its entries, one after
another, are cut into groups, and the sample takes the first of each group, or
the first few. The size of the groups shares no factor with the number of
columns, so that all columns are visited alike, and all rows.

Variables of one shape are sampled together. The operations are small, and what
they cost is mostly that of starting them.
"""

import functools
import math

import numpy as np
from keras import ops

from keras_uegr.optimizers.scores import read_all

# The density q of one variable then errs by sqrt(q * (1 - q) / 8192), about
# 0.005 at most, which leaves a margin of four times to an error of 0.02. Of a
# table that the search isn't made in, less of the sample may be live.
SAMPLE_SIZE = 8192
_PROBED_COLUMNS = 16
_PROBED_ROWS = 64
_SAMPLED_ROWS = 4096
_GOLDEN_RATIO = (math.sqrt(5.0) - 1.0) / 2.0


def sample(scores):
    """A sample of each variable's scores, and what each of them stands for.

    Args:
        scores: List of `Scores`.

    Returns:
        Tuple of a tensor of shape `(variables, SAMPLE_SIZE)`, whose rows end
        with zeros where there are less, and one of shape
        `(variables, 1)`: the number of entries that a sample stands for. Both
        are float32, whatever the precision of Keras.
    """
    of_shape = {}
    for position, each in enumerate(scores):
        of_shape.setdefault(each.shape, []).append(position)
    samples, weights = zip(
        *(
            _sample_of_one_shape([scores[position] for position in positions])
            for positions in of_shape.values()
        ),
        strict=True,
    )
    # Back from the order of the shapes.
    order = np.argsort(np.concatenate(list(of_shape.values())))
    return tuple(
        ops.take(ops.concatenate(parts), order, axis=0)
        for parts in (samples, weights)
    )


def _sample_of_one_shape(scores):
    size, shape = scores[0].size, scores[0].shape
    if size <= SAMPLE_SIZE:
        return _padded(read_all(scores, lambda x, _: _flat(x)), size)
    if shape[0] <= size // shape[0]:
        return _sample_by_stride(scores)
    return _sample_of_live(scores)


def _sample_by_stride(scores):
    size, rows = scores[0].size, scores[0].shape[0]
    return _some_of_every(scores, _stride(size, size // rows))


def _stride(size, columns):
    """The shortest stride that visits all columns alike."""
    stride = math.ceil(size / SAMPLE_SIZE)
    while math.gcd(stride, columns) > 1:
        stride += 1
    return stride


def _some_of_every(scores, stride):
    """The first scores of every `stride`, as many as make one sample."""
    groups = scores[0].size // stride
    kept = min(stride, SAMPLE_SIZE // groups)

    def part(x, _):
        grouped = ops.reshape(_flat(x)[: groups * stride], (groups, stride))
        return _flat(grouped[:, :kept])

    return _padded(read_all(scores, part), scores[0].size)


def _padded(samples, size):
    """Samples that are short of some, of variables that have so many scores."""
    variables, count = samples.shape
    samples = ops.pad(samples, [[0, 0], [0, SAMPLE_SIZE - count]])
    return samples, ops.full((variables, 1), size / count, "float32")


def _sample_of_live(scores):
    rows = scores[0].shape[0]
    columns = scores[0].size // rows
    # A power of two, so that it divides the size of the sample.
    strata = min(2 ** math.ceil(math.log2(rows)), _SAMPLED_ROWS)

    def table(x):
        return ops.reshape(x, (rows, columns))

    # Neighbors, which memory delivers together.
    first = max(0, (columns - _PROBED_COLUMNS) // 2)
    last = first + _PROBED_COLUMNS
    probe = read_all(scores, lambda x, _: table(x)[:, first:last])
    row, live_rows = _live_positions(
        ops.sum(probe, axis=2), _even_fractions(strata)
    )
    some_rows = row[:, :: max(1, strata // _PROBED_ROWS)]
    probe = read_all(
        scores, lambda x, i: ops.take(table(x), some_rows[i], axis=0)
    )
    column, live_columns = _live_positions(
        ops.sum(probe, axis=1), _golden_fractions()
    )
    row = ops.repeat(row, SAMPLE_SIZE // strata, axis=1)
    positions = row * columns + column
    samples = read_all(scores, lambda x, i: ops.take(_flat(x), positions[i]))
    return samples, live_rows * live_columns / SAMPLE_SIZE


def _live_positions(totals, fractions):
    """Positions at the given fractions of the way through the live ones.

    Args:
        totals: Float32 tensor of shape `(variables, size)`, the sum of some
            scores at each position. If all are 0, all positions count as live:
            the probe may have missed them.
        fractions: Array of shape `(sample,)`, in `[0, 1)`.

    Returns:
        Tuple of an int32 tensor of shape `(variables, sample)` and a float32
        tensor of shape `(variables, 1)`: the number of live positions.
    """
    is_live = ops.not_equal(totals, 0.0)
    live = ops.sum(ops.cast(is_live, "float32"), axis=1, keepdims=True)
    size = totals.shape[1]
    is_live = ops.logical_or(is_live, ops.equal(live, 0.0))
    live = ops.where(ops.equal(live, 0.0), float(size), live)
    # The live positions first: sorting is quick everywhere, searching isn't.
    position = ops.arange(size, dtype="int32")
    ordered = ops.sort(ops.where(is_live, position, position + size))
    wanted = ops.cast(ops.multiply(live, fractions), "int32")
    return ops.take_along_axis(ordered, wanted, axis=1), live


# Both stay below 1 by more than a product with them is rounded.
@functools.cache
def _even_fractions(count):
    return ((np.arange(count) + 0.5) / count).astype("float32")


@functools.cache
def _golden_fractions():
    fractions = np.mod(np.arange(SAMPLE_SIZE) * _GOLDEN_RATIO, 1.0)
    return fractions.astype("float32")


def _flat(x):
    return ops.reshape(x, (-1,))
