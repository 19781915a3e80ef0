"""Saliency: how much each entry of a variable matters for the loss.

Algorithm, entry by entry, all in float32:

    taylor      s_i = |theta_i * g_i|
    gradient    s_i = |g_i|
    fisher      f_i <- d * f_i + (1 - d) * g_i^2,    s_i = f_i

    inverse_gradient    s_i = 1 / (|g_i| + 1e-30), what is least sensitive first

    random      s_i ~ U(0, 1) where g_i is not 0, drawn for each selection

where theta is the variable before the step (`value`), g the gradient that the
step applies (`gradient`), f the running average (`average`) and d its decay
(`decay`). `taylor` is the first-order estimate of how much the loss changes if
the entry becomes zero (Molchanov et al., arXiv:1611.06440).

Where the literature disagrees:

- Child-Tuning-D (arXiv:2109.05687) averages g^2 over the whole training set
  once, before training, and never again. Here the average runs along.
- Child-Tuning-F draws whether an entry is updated with a fixed probability, and
  scales the gradient by its inverse. Here `random` selects a fixed share, and
  nothing is scaled: optimizers such as Adam undo a constant scale.
- SAGE (arXiv:2202.02664) smooths |theta * g| over the steps and scales the
  learning rate by it. Here the current step counts, and entries are selected.
- RoAST (arXiv:2312.04032) averages g^2 anew every epoch. Here the average runs
  along. Its draw by rank is in noisy_selection.py.
- ROSE (arXiv:2210.09658) keeps the variables whose gradient has the lowest
  norm: `inverse_gradient` of the norms. A gradient of 0 comes first there, so
  it scores here too; all other scores leave out what has no gradient.
- "Fisher" is the squared gradient of the batch's mean loss in all of them: an
  empirical estimate, not the Fisher information itself.

The running average starts at zero and isn't corrected for that: the correction
is one factor for all entries, and a selection by rank doesn't depend on it.

A function of your own may take the place of the names, see `get`.
"""

import functools

import keras
from keras import ops

from keras_uegr.optimizers.scores import Scores

FISHER = "fisher"
RANDOM = "random"


def taylor(value, gradient):
    """Scores `|value * gradient|`, the first-order change of the loss."""
    return ops.abs(ops.multiply(value, gradient))


def gradient_magnitude(value, gradient):
    """Scores `|gradient|`."""
    del value
    return ops.abs(gradient)


def squared_gradient(value, gradient):
    """Scores `gradient ** 2`, one step's contribution to the Fisher score."""
    del value
    return ops.square(gradient)


def inverse_gradient(value, gradient):
    """Scores `1 / |gradient|`, finite and highest where that is 0."""
    del value
    return 1.0 / (ops.abs(gradient) + 1e-30)


def nonzero(value, gradient):
    """Scores 1 where there is a gradient, what `"random"` draws among."""
    del value
    return ops.cast(ops.not_equal(gradient, 0.0), "float32")


_SCORES = {
    "taylor": taylor,
    "gradient": gradient_magnitude,
    "inverse_gradient": inverse_gradient,
    FISHER: squared_gradient,
    RANDOM: nonzero,
}


def get(identifier):
    """The function that computes scores.

    Args:
        identifier: One of `"taylor"`, `"gradient"`, `"inverse_gradient"`,
            `"fisher"` and `"random"`, or a function
            `(value, gradient) -> scores` of two float32 tensors of the
            variable's shape to one of the same shape, made of `keras.ops`.
            Entries that score 0, less, or nothing finite are never selected.

    Returns:
        A function `(value, gradient) -> scores`.

    Raises:
        ValueError: If `identifier` is neither.

    Example:

    >>> get("taylor")([2.0, -3.0], [0.5, 1.0])
    """
    if callable(identifier):
        return identifier
    if not isinstance(identifier, str) or identifier not in _SCORES:
        raise ValueError(
            f"`saliency` must be one of {sorted(_SCORES)}, or a function "
            "`(value, gradient) -> scores`. "
            f"Received: saliency={identifier}"
        )
    return _SCORES[identifier]


def scores(identifier, value, gradient):
    """The scores of all entries of a variable.

    Args:
        identifier: What `get` accepts.
        value: Tensor, the variable before the step.
        gradient: Tensor of the same shape.

    Returns:
        `Scores` of the same shape.

    Raises:
        ValueError: If a user's function returns another shape.
    """
    function = get(identifier)
    if isinstance(identifier, str):
        return Scores(_widened(function), [value, gradient])
    # It may look at the whole variable, so it can't be called for a part.
    whole = _widened(function)(value, gradient)
    if tuple(whole.shape) != tuple(value.shape):
        raise ValueError(
            "The function passed as `saliency` must return one score for each "
            f"entry of the variable, shape {tuple(value.shape)}. "
            f"Received: scores of shape {tuple(whole.shape)}"
        )
    return Scores(_as_they_are, [ops.cast(whole, "float32")])


def random_scores(value, gradient, seed):
    """A number drawn uniformly for each entry that has a gradient.

    Args:
        value: Tensor, the variable before the step.
        gradient: Tensor of the same shape.
        seed: `keras.random.SeedGenerator`.

    Returns:
        `Scores` of the same shape.
    """
    # Drawn here in whole: `Scores` may be read several times.
    draw = 1.0 - keras.random.uniform(value.shape, dtype="float32", seed=seed)
    return Scores(ops.multiply, [_widened(nonzero)(value, gradient), draw])


def averaged_scores(average, value, gradient, decay):
    """Updates the running average of `"fisher"`, and returns its scores.

    An entry whose gradient isn't finite keeps its average, so that one bad
    batch doesn't spoil it for good, and scores 0 in this step.

    Args:
        average: `keras.Variable` of the variable's shape.
        value: Tensor, the variable before the step.
        gradient: Tensor of the same shape.
        decay: Float between 0 and 1, the weight of the past.

    Returns:
        `Scores` of the same shape.
    """
    newest = ops.cast(
        _widened(squared_gradient)(value, gradient), average.dtype
    )
    past = ops.convert_to_tensor(average)
    updated = decay * past + (1.0 - decay) * newest
    finite = ops.isfinite(updated)
    average.assign(ops.where(finite, updated, past))
    updated = ops.where(finite, updated, ops.zeros_like(updated))
    return Scores(_as_they_are, [ops.cast(updated, "float32")])


def _as_they_are(scores):
    return scores


@functools.cache
def _widened(function):
    """The function applied in float32.

    The product of two small numbers is zero in float16 much earlier. One
    function gives one object, which compiled functions are kept for.
    """

    def widened(value, gradient):
        return function(
            ops.cast(value, "float32"), ops.cast(gradient, "float32")
        )

    return widened


def add_fisher_average(optimizer, variable, whole=False):
    """Gives `optimizer` the variable for the average of `variable`.

    Args:
        optimizer: A Keras optimizer.
        variable: `keras.Variable`.
        whole: Boolean, whether its norm is scored instead of its entries.
    """
    name = "fisher_average"
    dtype = keras.backend.standardize_dtype(variable.dtype)
    if whole or dtype in ("float16", "bfloat16"):
        # Squares of ordinary gradients are zero in half precision.
        return optimizer.add_variable(
            shape=() if whole else variable.shape,
            dtype="float32",
            name=f"{variable.path.replace('/', '_')}_{name}",
        )
    return optimizer.add_variable_from_reference(variable, name=name)
