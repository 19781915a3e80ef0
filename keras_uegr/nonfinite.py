"""Steps whose gradient isn't finite, left out.

One batch with a NaN or an infinite loss has such a gradient. Applied, it would
spoil every weight and the state of the optimizer for good.
"""

import functools

import keras
from keras import ops

from keras_uegr.optimizers.gradients import densify
from keras_uegr.trainers import run_either


def apply_if_finite(model, gradients):
    """Updates `model`, unless an entry of the gradients isn't finite.

    Args:
        model: The compiled `UEGRModel`.
        gradients: List, one for each trainable variable, may be `None`.

    Returns:
        Scalar boolean tensor, whether the gradients are finite.
    """
    # All replicas have to take the same way.
    finite = ops.cast(all_finite(gradients), "float32")
    finite = ops.equal(model.mean_over_replicas([finite])[0], 1.0)
    if isinstance(model.optimizer, keras.optimizers.LossScaleOptimizer):
        # It leaves out such steps itself, and then lowers its scale.
        model.apply_gradients(gradients)
        return finite
    if not model.optimizer.built:
        model.optimizer.build(model.trainable_variables)
    run_either(
        finite,
        functools.partial(model.apply_gradients, gradients),
        lambda: None,
        [*model.trainable_variables, *model.optimizer.variables],
    )
    return finite


def all_finite(gradients):
    """Whether no gradient has a NaN or infinite entry, a scalar tensor."""
    # Zero times anything finite is zero, and nothing else is.
    sums = [
        ops.sum(ops.cast(densify(gradient), "float32") * 0.0)
        for gradient in gradients
        if gradient is not None
    ]
    return ops.equal(sum(sums), 0.0)
