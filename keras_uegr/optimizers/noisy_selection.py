"""Selection by chance: the higher an entry ranks, the likelier it is.

Algorithm, with s the scores, q the `density` and t the `rank_noise`:

    r_i     = rank of s_i among the live scores, from 0 to 1
    mask_i  ~ Bernoulli(sigmoid((r_i - c) / t))     True: entry i is updated
    c       = t * log((exp(1/t) - exp(q/t)) / (exp(q/t) - 1))

so that q is the mean of the probabilities over all ranks. Entries that aren't
live, see selection.py, are never selected. It is the draw of RoAST
(arXiv:2312.04032), whose `alpha` is c, and whose `beta` is 1 / (2 * t). There
the gradient is also divided by the probability; optimizers such as Adam undo a
scale that stays, and nothing is scaled here.

To find the rank of every entry takes a sort of all. But

    sigmoid((r_i - c) / t) = P(l_i <= r_i),    l_i = c + t * logit(u_i),
                                               u_i ~ U(0, 1)

so it is enough to compare each score with one number, the score of rank l_i,
from a table of evenly spaced ranks, `RANKS` steps long. The table is made of
the sample of sampling.py. Where both q and t are below a step, l_i rounds to
the last rank, which nothing reaches: argument_checks.py refuses such a q.
"""

import math

import keras
import numpy as np
from keras import ops

from keras_uegr.optimizers import sampling

RANKS = 1024
_SMALLEST_NORMAL = float(np.finfo("float32").tiny)


def center(density, noise):
    """The rank that is selected with probability 1/2, if `density` are."""
    return (
        noise * (_log_expm1((1.0 - density) / noise))
        + density
        - noise * _log_expm1(density / noise)
    )


def density_of(center, noise):
    """The share that is selected around the rank `center`."""
    above = np.logaddexp(0.0, (1.0 - center) / noise)
    return float(noise * (above - np.logaddexp(0.0, -center / noise)))


def draw_masks(scores, density, noise, seed, scope="variable", exact=False):
    """Draws which entries are selected.

    Args:
        scores: List of `Scores`.
        density: Float between 0 and 1, both excluded: the share of live
            entries to select, in the mean.
        noise: Positive float, in ranks, which go from 0 to 1.
        seed: `keras.random.SeedGenerator`.
        scope: `"variable"` or `"global"`, among what entries are ranked.
        exact: Boolean. If `True`, the table is made of all scores instead of a
            sample.

    Returns:
        List of boolean tensors of the scores' shapes.
    """
    tables = _tables(scores, scope, exact)
    return [
        _draw(score, table, center(density, noise), noise, seed)
        for score, table in zip(scores, tables, strict=True)
    ]


def _draw(scores, table, middle, noise, seed):
    uniform = keras.random.uniform(scores.shape, dtype="float32", seed=seed)
    rank = middle + noise * (ops.log(uniform) - ops.log1p(-uniform))
    position = ops.round(ops.clip(rank, 0.0, 1.0) * RANKS)
    threshold = ops.take(table, ops.cast(position, "int32"))
    values = scores.read(lambda x: x)
    return ops.logical_and(values >= threshold, values < math.inf)


def _tables(scores, scope, exact):
    """For each of `scores` a tensor of shape `(RANKS + 1,)`."""
    if exact:
        samples = [(score.flat(), 1.0) for score in scores]
    else:
        samples = zip(
            *(ops.unstack(x, len(scores)) for x in sampling.sample(scores)),
            strict=True,
        )
    pairs = [
        (sample, weight * ops.ones_like(sample)) for sample, weight in samples
    ]
    if scope != "global":
        return [_table(*pair) for pair in pairs]
    pooled = [ops.concatenate(parts) for parts in zip(*pairs, strict=True)]
    return [_table(*pooled)] * len(scores)


def _table(sample, weights):
    """The live scores at evenly spaced ranks, infinite above the highest.

    An entry ranks in the middle of those that it stands for.

    Args:
        sample: Float32 tensor of shape `(sample,)`.
        weights: Float32 tensor of the same shape, the number of entries that
            each of the sample stands for.
    """
    is_live = ops.logical_and(sample >= _SMALLEST_NORMAL, sample < math.inf)
    sample = ops.where(is_live, sample, 0.0)
    order = ops.argsort(sample)
    counts = ops.take(ops.where(is_live, weights, 0.0), order)
    total = ops.cumsum(counts)
    ranks = ops.convert_to_tensor(np.arange(RANKS + 1) / RANKS, "float32")
    position = ops.searchsorted(total - counts / 2.0, ranks * total[-1])
    above = ops.convert_to_tensor([math.inf], "float32")
    ordered = ops.concatenate([ops.take(sample, order), above])
    # A score of zero is never reached.
    return ops.maximum(ops.take(ordered, position), _SMALLEST_NORMAL)


def _log_expm1(x):
    return x + math.log(-math.expm1(-x))
