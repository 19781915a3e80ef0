"""What variables and gradients need before they are scored."""

import functools

from keras import ops

from keras_uegr.optimizers.dense_variables import is_overwritten


def add_up(gradient, accumulator, variable):
    """The gradient added to what was accumulated, `None` without one."""
    if gradient is None:
        return None
    if is_overwritten(variable):
        return ops.maximum(gradient, accumulator)
    return gradient + accumulator


def densify(gradient):
    """The gradient as a tensor of the variable's shape.

    On TensorFlow an embedding table's gradient is a list of rows, which may
    hold a row several times. Keras sums them when it adds it to a tensor.
    """
    if hasattr(gradient, "dense_shape"):
        return ops.add(gradient, 0.0)
    return gradient


def unscaled(gradient, optimizer):
    """The gradient, dense and in float32, without the scale of the loss."""
    scale = optimizer.scale_loss(ops.ones(()))
    return ops.cast(densify(gradient), "float32") / ops.cast(scale, "float32")


def unscaled_or_zero(gradients, variables, optimizer):
    """Each gradient `unscaled`, and 0 of the variable's shape for `None`."""
    return [
        ops.zeros(variable.shape, dtype="float32")
        if gradient is None
        else unscaled(gradient, optimizer)
        for gradient, variable in zip(gradients, variables, strict=True)
    ]


def copy_of(variable):
    """The value of `variable`, which a later assignment leaves as it is."""
    # On PyTorch optimizers work in place.
    return ops.copy(ops.stop_gradient(variable))


def all_finite(gradients):
    """Whether no gradient has a NaN or infinite entry, a scalar tensor."""
    finite = [
        ops.all(ops.isfinite(densify(gradient)))
        for gradient in gradients
        if gradient is not None
    ]
    return functools.reduce(
        ops.logical_and, finite, ops.convert_to_tensor(True)
    )
