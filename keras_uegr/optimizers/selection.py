"""Selection: which entries of the variables are updated.

Algorithm, with s the scores and q the `density`:

    live    = {i : 0 < s_i < infinity}
    tau     = the round(q * |live|)-th largest of the live scores, at least one
    mask_i  = tau <= s_i < infinity             True: entry i is updated

`tau` is found per variable (`scope="variable"`) or over all of them at once
(`scope="global"`). Entries that tie with it are all selected: where there is
nothing to tell them apart, favoring some would be arbitrary.

Sorting all scores costs more than the rest of the step, so tau comes from a
sample of each variable, see sampling.py:

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

from keras import ops

from keras_uegr.optimizers import sampling

TENSOR = "tensor"
SCOPES = ("variable", "global", TENSOR)

# Bit patterns of float32. Some backends flush subnormal numbers to zero, so a
# threshold among them would select every zero.
_SMALLEST_NORMAL = 0x00800000
_INFINITY = 0x7F800000
_HIGHEST_BIT = 30
# 13 bits less: relative steps of 1/1024, far below the sampling error where
# scores differ by orders of magnitude, as products with a gradient do.
SAMPLE_LOWEST_BIT = 13


def find_thresholds(
    scores,
    density,
    scope="variable",
    exact=False,
    lowest_bit=SAMPLE_LOWEST_BIT,
):
    """The scores from which on entries are selected.

    Args:
        scores: List of `Scores`.
        density: Float between 0 and 1, the share of live entries to select.
        scope: `"variable"` or `"global"`, what the share refers to.
        exact: Boolean. If `True`, all scores are ranked instead of a sample.
        lowest_bit: Integer, the last bit of a sample's threshold to determine.
            Defaults to `13`.

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
    return _sampled_thresholds(scores, density, scope, lowest_bit)


def _sampled_thresholds(scores, density, scope, lowest_bit):
    samples, weights = sampling.sample(scores)
    thresholds, selected = _thresholds(
        samples, density, lowest_bit, weights, scope
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
    # One entry at least: a small variable would never be updated otherwise.
    live = _count(bits, _SMALLEST_NORMAL, weights, scope)
    wanted = ops.maximum(ops.floor(density * live + 0.5), 1.0)
    # A loop for the compiler too: it would compile all the passes one by one.
    found, *_ = ops.fori_loop(
        0,
        _HIGHEST_BIT - lowest_bit + 1,
        _bit_decider(scope),
        (ops.zeros_like(wanted, dtype="int32"), bits, weights, wanted),
    )
    # Nothing is live: a threshold that nothing reaches.
    found = ops.where(found >= _SMALLEST_NORMAL, found, _INFINITY)
    thresholds = ops.view(found, "float32") * ops.ones(
        (samples.shape[0], 1), dtype="float32"
    )
    selected = ops.sum(_count(bits, found, weights, "variable"))
    return ops.squeeze(thresholds, axis=1), selected


@functools.cache
def _bit_decider(scope):
    """What decides one bit of the thresholds, from the highest on.

    The same function every time: outside of a compiled step JAX compiles a loop
    over one that it doesn't know.
    """

    def decide_bit(decided, state):
        found, bits, weights, wanted = state
        candidate = found + 2 ** (_HIGHEST_BIT - decided)
        # In double precision JAX counts in 64 bits.
        candidate = ops.cast(candidate, "int32")
        is_reached = _count(bits, candidate, weights, scope) >= wanted
        return ops.where(is_reached, candidate, found), bits, weights, wanted

    return decide_bit


def _count(bits, lowest, weights, scope):
    """How many entries are `lowest` or more, by variable or of all of them."""
    # Minus one for each that is lower: on PyTorch comparisons are slow.
    lower = ops.right_shift(ops.subtract(bits, lowest), 31)
    lower = ops.cast(lower, "float32")
    at_least = bits.shape[1] + ops.sum(lower, axis=1, keepdims=True)
    counts = at_least * weights
    if scope == "global":
        return ops.sum(counts, axis=0, keepdims=True)
    return counts
