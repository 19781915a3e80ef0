"""One training step: batch -> objective -> gradients -> optimizer.

    L_clean, g_theta, g_e   one forward and backward pass
    delta                   from g_e                       (perturbations.py)
    rates                   from the clean confidence      (adaptive_dropout.py)
    L_extra, h_theta        one forward and backward pass of K * B rows
    theta                   <- optimizer(g_theta + h_theta)

The same code on every backend; what a backend contributes is `differentiate`,
see `trainers/`. A step with both weights 0 is the step of plain `fit`.
"""

import functools
import warnings

import keras

from keras_uegr import objective


def training_step(model, data):
    """Updates `model`, and its metrics, on one batch.

    Args:
        model: The compiled `UEGRModel`.
        data: Tensors `x`, `(x, y)` or `(x, y, sample_weight)`.

    Returns:
        Dict of scalar tensors: the metrics so far.
    """
    batch = objective.Batch(*keras.utils.unpack_x_y_sample_weight(data))
    loss, clean, gradients, embedding_gradient = model.differentiate(
        functools.partial(objective.clean_pass, model, batch),
        model.trainable_variables,
        watch_embedding=model.needs_embedding_gradient,
    )
    extra = None
    if model.has_sub_models:
        ramp = model.state.ramp()
        delta = _perturb(model, batch, clean, embedding_gradient, ramp)
        extra_loss, extra, extra_gradients = _sub_models(
            model, batch, clean, delta, ramp
        )
        loss = loss + extra_loss
        gradients = [
            _add(model, *pair)
            for pair in zip(gradients, extra_gradients, strict=True)
        ]
    _apply(model, gradients)
    return model.finish_step(batch, loss, clean, extra)


def _perturb(model, batch, clean, gradient, ramp):
    """The perturbation `(B, T, D)` of the batch, or `None`."""
    perturbation = model.perturbation
    if perturbation is None:
        return None
    at = (clean.embedded.embedding, clean.embedded.movable)
    delta = perturbation.start(*at, ramp, model.seed_generator)
    for _ in range(perturbation.gradient_steps):
        if gradient is None:
            gradient = model.differentiate(
                functools.partial(
                    objective.perturbed_pass, model, batch, delta
                ),
                [],
                watch_embedding=True,
            )[-1]
        delta = perturbation.ascend(delta, gradient, *at, ramp)
        gradient = None
    return delta


def _sub_models(model, batch, clean, delta, ramp):
    """Loss, `SubModelPass` and gradients of the sub-models' pass."""
    rates, fraction = None, None
    if model.dropout is not None:
        rates, fraction = model.dropout.rates(
            model.state.signals(model, clean.confidence)
        )
    weights = (model.adversarial_weight * ramp, model.consistency_weight * ramp)

    def loss(transform):
        del transform
        return objective.sub_model_pass(
            model, batch, clean, delta, rates, weights
        )

    value, extra, gradients, _ = model.differentiate(
        loss, model.trainable_variables, watch_embedding=False
    )
    if fraction is not None:
        model.state.remember(fraction, extra.divergence)
    return value, extra._replace(delta=delta, rates=rates), gradients


def _add(model, gradient, other):
    if gradient is None or other is None:
        return gradient if other is None else other
    return model.add_gradients(gradient, other)


def _apply(model, gradients):
    if not gradients:
        warnings.warn(
            "The model does not have any trainable weights.", stacklevel=2
        )
        return
    model.apply_gradients(gradients)
