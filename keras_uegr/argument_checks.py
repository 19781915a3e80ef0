"""Checks of what a user passes to `UEGRModel`, before any work is done."""

import math
import numbers
import warnings

import keras

from keras_uegr import (
    consistency,
    model_parts,
    sub_model_checks,
    value_checks,
)
from keras_uegr.adaptive_dropout import AdaptiveDropout
from keras_uegr.optimizers.argument_checks import check_booleans
from keras_uegr.perturbations import FastGradient, Perturbation
from keras_uegr.string_data import to_array

_TRAINING_METHODS = [
    "train_step",
    "test_step",
    "compute_loss",
    "compute_metrics",
]


def check_model(model):
    """There is a model to wrap."""
    if not isinstance(model, keras.Model):
        raise TypeError(
            "`model` must be a `keras.Model` or a KerasHub task. "
            f"Received: model={model} (of type {type(model).__name__})"
        )
    own = [
        name
        for name in _TRAINING_METHODS
        if getattr(type(model), name) is not getattr(keras.Model, name)
    ]
    if own:
        warnings.warn(
            "`UEGRModel` trains and evaluates by steps of its own, which do "
            "not call these methods of the wrapped model: "
            f"{own}. Pass what they add to the loss as `loss` of `compile`, "
            "or by `add_loss` in the model.",
            stacklevel=3,
        )


def get_perturbation(perturbation):
    """The perturbation object, `"fast_gradient"` being the default one."""
    if perturbation == "fast_gradient":
        return FastGradient()
    if perturbation is None or isinstance(perturbation, Perturbation):
        return perturbation
    raise ValueError(
        '`perturbation` must be "fast_gradient", a perturbation object such '
        "as `keras_uegr.FastGradient()`, or `None`. "
        f"Received: perturbation={perturbation}"
    )


def get_dropout(dropout):
    """The `AdaptiveDropout`, `"adaptive"` being the default one."""
    if dropout == "adaptive":
        return AdaptiveDropout()
    if dropout is None or isinstance(dropout, AdaptiveDropout):
        return dropout
    raise ValueError(
        '`dropout` must be "adaptive", a `keras_uegr.AdaptiveDropout`, or '
        f"`None` for the model's own rates. Received: dropout={dropout}"
    )


def get_token_ids(token_ids, preprocessor):
    """The token ids as a tuple of integers."""
    if isinstance(token_ids, str) and token_ids == "special":
        token_ids = model_parts.special_token_ids(preprocessor)
    elif hasattr(token_ids, "shape"):
        token_ids = to_array(token_ids).tolist()
    if isinstance(token_ids, (list, tuple)) and all(
        isinstance(token_id, numbers.Integral) for token_id in token_ids
    ):
        return tuple(token_ids)
    raise ValueError(
        '`unperturbed_token_ids` must be "special" or a list of integers. '
        f"Received: unperturbed_token_ids={token_ids}"
    )


def check_layer_names(model, embedding, dropout_layers):
    """Layers that are named exist, also where the settings don't use them.

    Args:
        model: The `keras.Model` to wrap.
        embedding: The name of a layer, or `None`.
        dropout_layers: Names of layers, or `None`.
    """
    if model.built and embedding is not None:
        model_parts.find_embedding(model, embedding)
    if model.built and dropout_layers is not None:
        model_parts.find_dropout_layers(model, names=dropout_layers)


def check_settings(model):
    """What the losses don't tell: switches, and what reads raw strings.

    Args:
        model: A `UEGRModel`.
    """
    check_booleans(
        include_clean=model.include_clean,
        sub_models_select=model.sub_models_select,
        skip_nonfinite=model.skip_nonfinite,
    )
    preprocessor = model.own_preprocessor
    if preprocessor is not None and not callable(preprocessor):
        raise ValueError(
            "`preprocessor` must be a `keras_hub.models.Preprocessor`, another "
            f"callable, or `None`. Received: preprocessor={preprocessor}"
        )


def check_objective(
    sub_models,
    adversarial_weight,
    consistency_weight,
    clean_weight,
    divergence,
    include_clean,
    output_kind,
):
    """The terms of the objective and their weights fit together."""
    value_checks.check_sizes(
        adversarial_weight=adversarial_weight,
        consistency_weight=consistency_weight,
        clean_weight=clean_weight,
    )
    check_terms(clean_weight, adversarial_weight, consistency_weight)
    sub_model_checks.check_number(sub_models, consistency_weight, include_clean)
    check_divergence(divergence)
    check_output_kind(output_kind)


def check_terms(clean_weight, adversarial_weight, consistency_weight):
    """Something is trained on."""
    if not (clean_weight or adversarial_weight or consistency_weight):
        raise ValueError(
            "At least one of `clean_weight`, `adversarial_weight` and "
            "`consistency_weight` must be positive. Received: clean_weight="
            f"{clean_weight}, adversarial_weight={adversarial_weight}, "
            f"consistency_weight={consistency_weight}"
        )


def check_warmup_steps(warmup_steps):
    """The warm-up is a number of steps."""
    if warmup_steps is None:
        return
    if not isinstance(warmup_steps, numbers.Integral) or warmup_steps < 0:
        raise ValueError(
            "`warmup_steps` must be an integer, 0 or larger, or `None`. "
            f"Received: warmup_steps={warmup_steps}"
        )


def get_outputs(names):
    """The names of the outputs to compare, as a list, or `None`."""
    if names is None:
        return None
    if isinstance(names, (list, tuple)) and names:
        return list(names)
    raise ValueError(
        "`consistency_outputs` must be a list of names of outputs, or `None` "
        "for all. Set `consistency_weight=0` for none. "
        f"Received: consistency_outputs={names}"
    )


def check_output_kind(output_kind):
    """The kind of output has a divergence."""
    allowed = sorted(consistency.DIVERGENCES)
    if output_kind is not None and output_kind not in allowed:
        raise ValueError(
            f"`output_kind` must be one of {allowed}, or `None` to take it "
            f"from the loss. Received: output_kind={output_kind}"
        )


def check_divergence(divergence):
    """The divergence is known."""
    allowed = sorted(consistency.MEASURES)
    if divergence not in allowed:
        raise ValueError(
            f"`divergence` must be one of {allowed}. "
            f"Received: divergence={divergence}"
        )


def check_built(model):
    """The weights of `model` exist."""
    if not model.built:
        raise ValueError(
            "The model must be built first: call it on a batch. "
            f"Received: model={model.name}"
        )


def check_compiled(model):
    """The model is a compiled `UEGRModel`."""
    # Not at the top: that module imports this one.
    from keras_uegr.uegr_model import UEGRModel

    if not isinstance(model, UEGRModel):
        raise ValueError(
            "`model` must be a `keras_uegr.UEGRModel`: wrap it, "
            "`keras_uegr.UEGRModel(model)`, and compile that, too. Its "
            "predictions stay the same. "
            f"Received: model of type {type(model).__name__}"
        )
    if not model.compiled:
        raise ValueError(
            "The model must be compiled first, with the loss to attack: "
            f"call `compile(loss=...)`. Received: model={model.name}"
        )


def check_attack(model, perturbation):
    """There is an embedding, something to perturb it with, and a loss."""
    if model.loss is None:
        raise ValueError(
            "An attack raises the compiled loss: call `compile(loss=...)`. "
            f"Received: loss=None, in model={model.name}"
        )
    if not isinstance(perturbation, Perturbation):
        raise ValueError(
            "`perturbation` must be a perturbation object such as "
            "`keras_uegr.ProjectedGradient()`. "
            f"Received: perturbation={perturbation}"
        )
    if perturbation.objective != "loss":
        raise ValueError(
            "An attack raises the compiled loss: `perturbation.objective` "
            f'must be "loss". Received: objective={perturbation.objective}'
        )
    if model.embedding is None:
        model_parts.find_embedding(model.model)


def check_embedding_gradient(model, gradient):
    """What is perturbed reaches what the perturbation is to raise.

    Args:
        model: A `UEGRModel`.
        gradient: The gradient of its embedding, `None` if there is no way.
    """
    if gradient is None:
        raise ValueError(
            "The loss does not depend on the embedding layer "
            f"{model.embedding.name}, so perturbing it changes nothing. Set "
            "the argument `embedding` of `UEGRModel` to the layer that embeds "
            "the tokens, or `perturbation=None`. "
            f"Received: embedding={model.embedding.name}"
        )


def check_epsilons(perturbation, epsilons):
    """There are radii, and a radius that they can take the place of."""
    if not getattr(perturbation, "epsilon", 0) > 0:
        raise ValueError(
            "`perturbation` must have a positive `epsilon`, which `epsilons` "
            "take the place of. "
            f"Received: perturbation={perturbation}"
        )
    if not all(0 <= epsilon < math.inf for epsilon in epsilons):
        raise ValueError(
            "`epsilons` must be finite numbers, 0 or larger. "
            f"Received: epsilons={epsilons}"
        )


def check_replicas(replicas, optimizer, skip_nonfinite):
    """Refuses what updates the weights in some steps only, with replicas.

    They would meet inside of a condition, which `tf.distribute` forbids, also
    to Keras' own optimizers. Its own error doesn't say what to change.
    """
    if replicas == 1:
        return
    if skip_nonfinite:
        raise ValueError(
            "`skip_nonfinite` must be `False` where a `tf.distribute` strategy "
            "has several replicas. "
            f"Received: skip_nonfinite=True, {replicas} replicas"
        )
    while optimizer is not None:
        steps = optimizer.gradient_accumulation_steps
        if steps:
            raise ValueError(
                "`gradient_accumulation_steps` must be `None` where a "
                "`tf.distribute` strategy has several replicas. Use a larger "
                "batch instead. Received: gradient_accumulation_steps="
                f"{steps}, {replicas} replicas"
            )
        refresh_steps = getattr(optimizer, "refresh_steps", 1)
        if refresh_steps != 1:
            raise ValueError(
                "`refresh_steps` must be 1 where a `tf.distribute` strategy "
                "has several replicas. Received: refresh_steps="
                f"{refresh_steps}, {replicas} replicas"
            )
        optimizer = getattr(optimizer, "inner_optimizer", None)
