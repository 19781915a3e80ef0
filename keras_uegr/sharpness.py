"""Sharpness-aware minimization: the gradient where the loss is worst nearby.

    theta' = theta + radius * g / ||g||_2,    g = dL/dtheta, over all variables
    theta <- optimizer's step from theta, with the gradient dL/dtheta'

(Foret et al., arXiv:2010.01412.) With a gradient of zero nothing moves; the
implementation in optax divides 0 by 0 there.
"""

import contextlib

from keras import ops

from keras_uegr.optimizers.gradients import copy_of, densify


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

    They get every bit back on exit, also after an error.

    Args:
        variables: List of variables.
        gradients: List of their gradients, of any common scale; `None` leaves
            a variable where it is.
        radius: Float, the L2 distance of all variables together.
    """
    moving = [
        (variable, densify(gradient))
        for variable, gradient in zip(variables, gradients, strict=True)
        if gradient is not None
    ]
    square = sum(
        ops.sum(ops.square(ops.cast(gradient, "float32")))
        for _, gradient in moving
    )
    scale = ops.where(square > 0, radius * ops.rsqrt(square), 0.0)
    with restored([variable for variable, _ in moving]):
        for variable, gradient in moving:
            step = scale * ops.cast(gradient, "float32")
            variable.assign_add(ops.cast(step, variable.dtype))
        yield
