"""Steps whose gradient isn't finite, left out.

One batch with a NaN or an infinite loss has such a gradient. Applied, it would
spoil every weight and the state of the optimizer for good. So would the batch's
own mean and variance in the running ones of `BatchNormalization`.
"""

import functools
import math

import keras
from keras import ops

from keras_uegr import keras_internals
from keras_uegr.optimizers.gradients import all_finite, copy_of, densify
from keras_uegr.trainers import run_either


def can_leave_out_steps(model):
    """Whether a gradient that isn't finite changes no weight."""
    scales = isinstance(model.optimizer, keras.optimizers.LossScaleOptimizer)
    return scales or model.skip_nonfinite


def statistics_of(model):
    """What the passes of a step may write to, such as running means.

    Args:
        model: The compiled `UEGRModel`.

    Returns:
        List of tuples of a variable of the wrapped model and of its value.
    """
    return [
        (variable, copy_of(variable))
        for variable in keras_internals.statistics(model.model)
    ]


def apply_if_finite(model, gradients, selecting, statistics):
    """Updates `model`, unless an entry of the gradients isn't finite.

    Args:
        model: The compiled `UEGRModel`.
        gradients: List, one for each trainable variable, may be `None`.
        selecting: List of further gradients, which aren't applied.
        statistics: What `statistics_of` gave before the step. It is put back
            in a step that is left out.

    Returns:
        Scalar boolean tensor, whether all gradients are finite.
    """
    finite = _finite_everywhere(model, [*gradients, *selecting])
    for variable, value in statistics:
        new = ops.convert_to_tensor(variable)
        variable.assign(ops.where(finite, new, value))
    if isinstance(model.optimizer, keras.optimizers.LossScaleOptimizer):
        # It leaves out such steps itself, and then lowers its scale.
        model.apply_gradients(
            _spoiled_unless(finite, gradients) if selecting else gradients
        )
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


def select_if_finite(model, gradients, selecting):
    """Lets the optimizer select by gradients that it doesn't apply.

    Not in a step that is left out.

    Args:
        model: The compiled `UEGRModel`.
        gradients: List, one for each trainable variable, may be `None`.
        selecting: Such a list too, of the gradients to select by.
    """
    if not model.optimizer.built:
        model.optimizer.build(model.trainable_variables)
    masked = model.masked_optimizer
    # Lists of rows would lose their shape in a branch of TensorFlow.
    dense = [densify(x) for x in model.mean_over_replicas(selecting)]
    select = functools.partial(masked.select, dense)
    if not can_leave_out_steps(model):
        select()
        return
    # Loss scaling alone leaves out no step for what only selects.
    decisive = [*gradients, *(selecting if model.skip_nonfinite else [])]
    run_either(
        _finite_everywhere(model, decisive),
        select,
        lambda: None,
        masked.variables,
    )


def _finite_everywhere(model, gradients):
    """All replicas have to take the same way."""
    finite = ops.cast(all_finite(gradients), "float32")
    return ops.equal(model.mean_over_replicas([finite])[0], 1.0)


def _spoiled_unless(finite, gradients):
    """The gradients, or NaN: what selects may overflow where they don't."""
    factor = ops.where(finite, 1.0, math.nan)
    return [
        None
        if gradient is None
        else densify(gradient) * ops.cast(factor, gradient.dtype)
        for gradient in gradients
    ]
