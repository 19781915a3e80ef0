"""Checks that there are sub-models, and something for them to do."""

import numbers
import warnings

import keras

from keras_uegr import keras_internals
from keras_uegr.adaptive_dropout import DivergencePolicy


def check_number(sub_models, consistency_weight, include_clean):
    """There are sub-models, and enough of them for a divergence."""
    if not isinstance(sub_models, numbers.Integral) or sub_models < 1:
        raise ValueError(
            "`sub_models` must be a positive integer. For plain training set "
            "`adversarial_weight=0` and `consistency_weight=0` instead. "
            f"Received: sub_models={sub_models}"
        )
    if sub_models == 1 and consistency_weight and not include_clean:
        raise ValueError(
            "With `sub_models=1` the divergence between the sub-models is "
            "always 0. Set `consistency_weight=0`, or `include_clean=True` "
            "to compare with the clean output. "
            f"Received: consistency_weight={consistency_weight}"
        )


def get_token_share(token_share):
    """The share of the tokens that are perturbed, if it is one."""
    if not isinstance(token_share, numbers.Real) or not 0 < token_share <= 1:
        raise ValueError(
            "`token_share` must be a number in (0, 1]. "
            f"Received: token_share={token_share}"
        )
    return token_share


def check_pass(model):
    """The sub-models are told apart by something, and are run.

    Args:
        model: A `UEGRModel`.
    """
    if not model.has_sub_models:
        return
    if not model.needs_sub_model_pass and (
        model.sub_models > 1
        or model.dropout is not None
        or model.token_share < 1
    ):
        raise ValueError(
            "With `train_on_steps=True` and `consistency_weight=0` a single "
            "model is trained, on the way to the perturbation: set "
            "`dropout=None`, `sub_models=1` and `token_share=1`, or a positive "
            "`consistency_weight`. Received: "
            f"dropout={model.dropout}, sub_models={model.sub_models}, "
            f"token_share={model.token_share}"
        )
    if (
        follows_divergence(model.dropout)
        and model.sub_models == 1
        and not model.include_clean
    ):
        raise ValueError(
            'The dropout policy "divergence" follows the divergence between '
            "the sub-models, which with one of them is always 0. Set "
            "`sub_models=2`, or `include_clean=True`, or another policy. "
            f"Received: sub_models={model.sub_models}"
        )


def check_states(model):
    """No layer goes on in a pass from where the pass before left it.

    Args:
        model: A `UEGRModel`.
    """
    stateful = [
        layer.name
        for layer in keras_internals.sublayers(model.model)
        if isinstance(layer, keras.layers.RNN) and layer.stateful
    ]
    if model.has_sub_models and stateful:
        raise ValueError(
            "A training step passes a batch through the model several times, "
            "once with `sub_models` times its rows: a recurrent layer can't "
            "keep its states from batch to batch. Create it with "
            f"`stateful=False`. Received: stateful layers {stateful}"
        )


def warn_if_alike(model):
    """Tells where nothing is known that makes the sub-models differ.

    Args:
        model: A `UEGRModel`.
    """
    if (
        model.has_sub_models
        and model.perturbation is None
        and model.dropout is None
        and model.model.built
        # Without a rate a dropout layer has no seed.
        and not keras_internals.seed_generator_states(model.model)
    ):
        warnings.warn(
            "With `perturbation=None` and `dropout=None` the sub-models differ "
            "by the model's own dropout alone, and no layer of the model is "
            "known to draw at random: its sub-models are all the model itself, "
            "and their divergence is 0. Give its layers a dropout rate, or set "
            "`dropout` or `perturbation`.",
            stacklevel=4,
        )


def follows_divergence(dropout):
    """Whether the rates depend on the divergence, as far as is known."""
    return dropout is not None and isinstance(dropout.policy, DivergencePolicy)


def check_selecting(model):
    """Where the sub-models only select, there is what they need for that.

    Args:
        model: A `UEGRModel`, as it is compiled.
    """
    if not model.clean_weight:
        raise ValueError(
            "With `sub_models_select=True` nothing but the clean loss is "
            "trained on: `clean_weight` must be positive. "
            f"Received: clean_weight={model.clean_weight}"
        )
    if model.trains_on_steps:
        raise ValueError(
            "With `sub_models_select=True` the perturbation must not be "
            "trained on: `train_on_steps` must be `False`. "
            f"Received: perturbation={model.perturbation}"
        )
    if not model.has_sub_models:
        raise ValueError(
            "With `sub_models_select=True` one of `adversarial_weight` and "
            "`consistency_weight` must be positive. Received: "
            f"adversarial_weight={model.adversarial_weight}, "
            f"consistency_weight={model.consistency_weight}"
        )
    masked = model.masked_optimizer
    if masked is None or masked.refresh_steps is not None:
        raise ValueError(
            "With `sub_models_select=True` the model must be compiled with a "
            "`SaliencyMaskedOptimizer` of `refresh_steps=None`. "
            f"Received: optimizer={model.optimizer.name}"
        )
    if masked.gradient_accumulation_steps:
        raise ValueError(
            "With `sub_models_select=True` each batch selects for itself: "
            "`gradient_accumulation_steps` must be `None`. Received: "
            "gradient_accumulation_steps="
            f"{masked.gradient_accumulation_steps}"
        )
