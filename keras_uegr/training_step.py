"""One training step: batch -> objective -> gradients -> optimizer.

    L_clean, g_theta, g_e   one forward and backward pass
    delta                   from g_e                       (perturbations.py)
    rates                   from the clean confidence      (adaptive_dropout.py)
    L_extra, h_theta        one forward and backward pass of K * B rows
    theta                   <- optimizer(g_theta + h_theta)

The same code on every backend; what a backend contributes is `differentiate`,
see `trainers/`. A step with both weights 0 is the step of plain `fit`.

With a `sharpness_radius` all of it runs twice: the optimizer gets the second
gradient, taken at theta + radius * g / ||g|| (sharpness.py).

With `sub_models_select` h_theta isn't added: the optimizer selects by it what
g_theta updates.
"""

import functools
import math
import warnings
from typing import Any, NamedTuple

import keras
from keras import ops

from keras_uegr import argument_checks, keras_internals, objective
from keras_uegr.nonfinite import (
    apply_if_finite,
    can_leave_out_steps,
    select_if_finite,
    statistics_of,
)
from keras_uegr.optimizers.dense_variables import is_overwritten
from keras_uegr.optimizers.gradients import all_finite
from keras_uegr.sharpness import moved_along, restored


class Objective(NamedTuple):
    """What was computed of one batch.

    Attributes:
        loss: Scalar tensor, the total.
        clean: The `objective.CleanPass`.
        extra: The `objective.SubModelPass`, or `None`.
        gradients: List, one for each trainable variable, may be `None`.
        selecting: Such a list too, of what only selects, or `None`.
    """

    loss: Any
    clean: Any
    extra: Any
    gradients: list
    selecting: Any = None


def training_step(model, data):
    """Updates `model`, and its metrics, on one batch.

    Args:
        model: The compiled `UEGRModel`.
        data: Tensors `x`, `(x, y)` or `(x, y, sample_weight)`.

    Returns:
        Dict of scalar tensors: the metrics so far.
    """
    batch = objective.Batch(*keras.utils.unpack_x_y_sample_weight(data))
    statistics = statistics_of(model) if model.skip_nonfinite else []
    here = _differentiate(model, batch)
    there = here
    if model.sharpness_radius:
        variables = model.trainable_variables
        with (
            # What counts a step, or averages over steps, does so once.
            restored(
                [
                    *model.metrics_variables,
                    *model.state.feedback,
                    *keras_internals.statistics(model.model),
                ]
            ),
            moved_along(
                variables,
                model.mean_over_replicas(here.gradients),
                model.sharpness_radius,
            ),
        ):
            there = _differentiate(model, batch)
    if there.selecting is not None:
        select_if_finite(model, there.gradients, there.selecting)
    applied = _apply(model, there, statistics)
    return model.finish_step(batch, here, applied)


def _differentiate(model, batch):
    """The whole objective of a batch, and its gradients."""
    loss, clean, gradients, embedding_gradient = _clean(model, batch)
    plain = Objective(loss, clean, None, gradients)
    if not model.has_sub_models:
        return plain
    # Running means are those of the clean pass, as in plain training.
    with restored(keras_internals.statistics(model.model)):
        return _add_adversarial(model, batch, plain, embedding_gradient)


def _add_adversarial(model, batch, plain, embedding_gradient):
    """The `Objective` of the clean pass, with what the adversary adds."""
    loss, clean, _, gradients, _ = plain
    ramp = model.state.ramp()
    delta, ascent = _perturb(model, batch, clean, embedding_gradient, ramp)
    extra, selecting = objective.SubModelPass(0.0, 0.0, delta), None
    if model.needs_sub_model_pass:
        extra_loss, extra, extra_gradients = _sub_models(
            model, batch, clean, delta, ramp
        )
        if model.sub_models_select:
            selecting = extra_gradients
        else:
            loss = loss + extra_loss
            gradients = _add_up(model, gradients, extra_gradients)
    if ascent is not None:
        ascent_loss, adversarial_loss, ascent_gradients = ascent
        loss = loss + ascent_loss
        extra = extra._replace(adversarial_loss=adversarial_loss)
        gradients = _add_up(model, gradients, ascent_gradients)
    return Objective(loss, clean, extra, gradients, selecting)


def _clean(model, batch):
    """Loss, `CleanPass`, gradients and embedding gradient of the clean pass."""
    variables = model.trainable_variables
    loss, clean, gradients, embedding_gradient = model.differentiate(
        functools.partial(objective.clean_pass, model, batch),
        variables if model.clean_weight else [],
        watch_embedding=model.needs_embedding_gradient,
    )
    if not model.clean_weight:
        loss, gradients = 0.0, [None] * len(variables)
    return loss, clean, gradients, embedding_gradient


def _perturb(model, batch, clean, gradient, ramp):
    """The perturbation, and what training on the way to it gives.

    Returns:
        Tuple of the perturbation `(B, T, D)` of the batch, or `None`, and of a
        tuple `(loss, adversarial_loss, gradients)` of the points on the way,
        or `None`.
    """
    perturbation = model.perturbation
    if perturbation is None:
        return None, None
    variables, weight, values, losses, total = [], 1.0, [], [], None
    if model.trains_on_steps:
        variables = model.trainable_variables
        weight = model.adversarial_weight * ramp / perturbation.gradient_steps
        total = [None] * len(variables)
    at = (clean.embedded.embedding, clean.embedded.movable)
    delta = perturbation.start(*at, ramp, model.seed_generator)
    for _ in range(perturbation.gradient_steps):
        if gradient is None:
            value, loss, gradients, gradient = model.differentiate(
                functools.partial(
                    objective.ascent_pass, model, batch, clean, delta, weight
                ),
                variables,
                watch_embedding=True,
            )
            values.append(value)
            losses.append(loss)
            if total is not None:
                total = _add_up(model, total, gradients)
        argument_checks.check_embedding_gradient(model, gradient)
        # Half precision may overflow, which only leaves this step out.
        gradient = ops.where(ops.isfinite(gradient), gradient, 0.0)
        delta = perturbation.ascend(delta, gradient, *at, ramp)
        gradient = None
    if total is None:
        return delta, None
    return delta, (sum(values), sum(losses) / len(losses), total)


def _sub_models(model, batch, clean, delta, ramp):
    """Loss, `SubModelPass` and gradients of the sub-models' pass."""
    rates, fraction = None, None
    if model.dropout is not None:
        rates, fraction = model.dropout.rates(
            model.state.signals(model, clean.confidence),
            objective.example_weight(batch.sample_weight),
        )
    if model.sub_models_select:
        # Ranks don't depend on a factor, but those of zeros are no ranks.
        ramp = 1.0
    adversarial_weight = model.adversarial_weight * ramp
    if model.trains_on_steps:
        adversarial_weight = 0.0
    weights = (adversarial_weight, model.consistency_weight * ramp)

    def loss(transform):
        del transform
        return objective.sub_model_pass(
            model, batch, clean, delta, rates, weights
        )

    value, extra, gradients, _ = model.differentiate(
        loss, model.trainable_variables, watch_embedding=False
    )
    if fraction is not None:
        divergence = extra.mean_divergence * model.replicas
        if can_leave_out_steps(model):
            # What isn't finite is not remembered.
            finite = all_finite(gradients)
            divergence = ops.where(finite, divergence, math.nan)
        model.state.remember(*model.mean_over_replicas([fraction, divergence]))
    return value, extra._replace(delta=delta, rates=rates), gradients


def _add_up(model, gradients, others):
    variables = model.trainable_variables
    return [
        _add(model, *each)
        for each in zip(variables, gradients, others, strict=True)
    ]


def _add(model, variable, gradient, other):
    if gradient is None or other is None:
        return gradient if other is None else other
    if is_overwritten(variable):
        return ops.maximum(gradient, other)
    return model.add_gradients(gradient, other)


def _apply(model, step, statistics):
    """Updates the weights; returns whether it did, maybe as a tensor."""
    gradients = step.gradients
    if not gradients:
        warnings.warn(
            "The model does not have any trainable weights.", stacklevel=2
        )
        return True
    if model.skip_nonfinite:
        selecting = step.selecting or []
        return apply_if_finite(model, gradients, selecting, statistics)
    model.apply_gradients(gradients)
    return True
