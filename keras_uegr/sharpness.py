"""Sharpness-aware minimization: the gradient where the loss is worst nearby.

    theta' = theta + radius * g / ||g||_2,    g = dL/dtheta, over all variables
    theta <- optimizer's step from theta, with the gradient dL/dtheta'

(Foret et al., arXiv:2010.01412.) With a gradient of zero nothing moves; the
implementation in optax divides 0 by 0 there. A gradient that isn't finite gives
NaN where it isn't, and moves nothing else.
"""

import contextlib
import functools
import math
import warnings

from keras import ops

from keras_uegr.optimizers.dense_variables import is_overwritten
from keras_uegr.optimizers.gradients import copy_of, densify


def warn_if_rough(dtypes, consequence, stacklevel):
    """Warns if weights that are to move a little are of half precision.

    Args:
        dtypes: Iterable of strings, the dtypes of the weights.
        consequence: String, the rest of the warning: what comes of it.
        stacklevel: Integer, as of `warnings.warn` where this is called.
    """
    rough = {"float16", "bfloat16"}.intersection(dtypes)
    if rough:
        warnings.warn(
            f"Weights of {' and '.join(sorted(rough))} round small moves, so "
            + consequence,
            stacklevel=stacklevel + 1,
        )


def check_precision(model):
    """Warns, on behalf of `compile`, if a `UEGRModel` can't move by its radius.

    Args:
        model: The `UEGRModel`, of a positive `sharpness_radius`.
    """
    dtypes = [variable.dtype for variable in model.trainable_variables]
    warn_if_rough(
        # A subclassed model that wasn't called yet has no variables yet.
        dtypes if model.model.weights else [model.variable_dtype],
        "a move by `sharpness_radius` is lost for the most part. Build the "
        'model in "float32" or with the dtype policy "mixed_bfloat16". '
        f"Received: sharpness_radius={model.sharpness_radius}",
        stacklevel=3,
    )


@contextlib.contextmanager
def restored(variables):
    """On exit, also after an error, `variables` get every bit back."""
    previous = [copy_of(variable) for variable in variables]
    try:
        yield
    finally:
        for variable, value in zip(variables, previous, strict=True):
            variable.assign(value)


@contextlib.contextmanager
def moved_along(variables, gradients, radius):
    """For a while, `variables` are `radius` further along their gradients.

    They get every bit back on exit, also after an error; on TensorFlow not
    after one that a graph raises as it runs.

    Args:
        variables: List of variables. The scales of float8, whose "gradients"
            are their new values, stay where they are.
        gradients: List of their gradients, of any common scale; `None` leaves
            a variable where it is.
        radius: Float, the L2 distance of all variables together.
    """
    moving = [
        (variable, densify(gradient))
        for variable, gradient in zip(variables, gradients, strict=True)
        if gradient is not None and not is_overwritten(variable)
    ]
    # Squares of very large or small gradients leave the range of float32.
    peaks = [_peak(gradient) for _, gradient in moving]
    peak = functools.reduce(ops.maximum, peaks, 0.0)
    # Divided by what isn't finite, other entries would move too.
    in_range = ops.logical_and(peak > 0, peak < math.inf)
    peak = ops.where(in_range, peak, 1.0)
    square = sum(
        (
            ops.sum(ops.square(ops.cast(gradient, "float32") / peak))
            for _, gradient in moving
        ),
        0.0,
    )
    scale = ops.where(square > 0, radius * ops.rsqrt(square), 0.0) / peak
    with restored([variable for variable, _ in moving]):
        for variable, gradient in moving:
            step = scale * ops.cast(gradient, "float32")
            variable.assign_add(ops.cast(step, variable.dtype))
        yield


def _peak(gradient):
    """The largest magnitude, 0 of an empty tensor."""
    return ops.max(ops.abs(ops.cast(gradient, "float32")), initial=0.0)
