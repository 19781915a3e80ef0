"""Checks of what a user passes to `SaliencyMaskedOptimizer`."""

import math
import numbers

import keras
import numpy as np

from keras_uegr.optimizers import noisy_selection, selection

_SET_ON_INNER = (
    "learning_rate",
    "weight_decay",
    "clipnorm",
    "clipvalue",
    "global_clipnorm",
    "use_ema",
    "ema_momentum",
    "ema_overwrite_frequency",
    "loss_scale_factor",
)


def refuse_arguments(arguments):
    """No argument belongs on the inner optimizer."""
    for name in arguments:
        if name in _SET_ON_INNER:
            raise ValueError(
                f"SaliencyMaskedOptimizer does not support `{name}`. "
                f"Instead, set `{name}` on the `inner_optimizer`."
            )
    if arguments:
        raise ValueError(
            "SaliencyMaskedOptimizer does not support arguments: "
            f"`{'`, `'.join(arguments)}`."
        )


def check_booleans(**booleans):
    """A word such as "no" would pass as true."""
    for name, boolean in booleans.items():
        if not isinstance(boolean, (bool, np.bool_)):
            raise ValueError(
                f"`{name}` must be `True` or `False`. "
                f"Received: {name}={boolean!r}"
            )


def check_settings(
    density, scope, exact, fisher_decay, seed, rank_noise, refresh_steps
):
    """The settings are in their ranges."""
    check_booleans(exact=exact)
    if (
        not isinstance(density, numbers.Real)
        or isinstance(density, bool)
        or not 0 <= density <= 1
    ):
        raise ValueError(
            "`density` must be a number between 0 and 1. "
            f"Received: density={density}"
        )
    if scope not in selection.SCOPES:
        raise ValueError(
            f"`scope` must be one of {list(selection.SCOPES)}. "
            f"Received: scope={scope}"
        )
    if not isinstance(fisher_decay, numbers.Real) or not (
        0 <= fisher_decay <= 1
    ):
        raise ValueError(
            "`fisher_decay` must be a number between 0 and 1. "
            f"Received: fisher_decay={fisher_decay}"
        )
    # Of the types that Keras takes where it draws.
    if seed is not None and not isinstance(seed, int):
        raise ValueError(
            f"`seed` must be an integer or `None`. Received: seed={seed!r}"
        )
    _check_rank_noise(rank_noise, density)
    if refresh_steps is not None and (
        not isinstance(refresh_steps, numbers.Integral) or refresh_steps < 1
    ):
        raise ValueError(
            "`refresh_steps` must be a positive integer or `None`. "
            f"Received: refresh_steps={refresh_steps}"
        )


def _check_rank_noise(rank_noise, density):
    """Ranks are drawn, and told apart well enough for the density."""
    if not isinstance(rank_noise, numbers.Real) or not (
        0 <= rank_noise < math.inf
    ):
        raise ValueError(
            "`rank_noise` must be a finite number, 0 or larger. "
            f"Received: rank_noise={rank_noise}"
        )
    lowest = 1 / noisy_selection.RANKS
    if rank_noise and 0 < density < lowest:
        raise ValueError(
            "With `rank_noise` the `density` must be 0 or at least "
            f"1/{noisy_selection.RANKS}, the step in which ranks are told "
            "apart. For a smaller one set `rank_noise=0`. "
            f"Received: density={density}, rank_noise={rank_noise}"
        )


def check_inner(optimizer, wrapper):
    """The inner optimizer is one, no wrapper, and does not accumulate."""
    if optimizer is None:
        raise ValueError(
            "`inner_optimizer` must be a `keras.optimizers.Optimizer` or its "
            "name. Received: inner_optimizer=None"
        )
    if isinstance(optimizer, keras.optimizers.LossScaleOptimizer):
        raise ValueError(
            "`inner_optimizer` can't be a `LossScaleOptimizer`, which goes "
            "outside: `LossScaleOptimizer(SaliencyMaskedOptimizer(...))`. "
            f"Received: inner_optimizer={optimizer.name}"
        )
    if isinstance(optimizer, wrapper):
        raise ValueError(
            "`inner_optimizer` is a `SaliencyMaskedOptimizer` already: one "
            "mask is enough. Wrap its `inner_optimizer` instead. "
            f"Received: inner_optimizer={optimizer.name}"
        )
    for part in getattr(optimizer, "optimizers", [optimizer]):
        if part.gradient_accumulation_steps:
            raise ValueError(
                "Gradients must be accumulated before the mask is made. Set "
                "`gradient_accumulation_steps` on SaliencyMaskedOptimizer "
                "instead of on the inner optimizer. Received: "
                "gradient_accumulation_steps="
                f"{part.gradient_accumulation_steps} on {part.name}"
            )
