"""Concentrates a perturbation on some of the tokens.

    m[i, t] ~ Bernoulli(share)
    delta'[i] = m[i] * delta[i] * ||delta[i]||_2 / ||m[i] * delta[i]||_2

or `m[i] * delta[i]`, where the size of a perturbation is not the L2 norm of an
example: each token or entry keeps the bound that it has.

Who attacks a text changes few of its words, and those a lot; a perturbation
along the gradient moves all of them a little. The sub-models, each with tokens
of its own, see different words of one text attacked, and have to agree. This is
the project's own; where no token of an example is drawn, it stays unperturbed.
"""

import keras
from keras import ops

from keras_uegr.perturbations import divide, l2_norm

_EXAMPLE = (-2, -1)


def on_tokens(delta, model):
    """The same perturbation, of the same size, on a share of the tokens.

    Args:
        delta: Float tensor of shape `(N, T, D)`, made by the perturbation of
            `model`.
        model: The `UEGRModel`. With its `token_share` of 1 nothing changes, or
            is drawn.
    """
    if model.token_share == 1:
        return delta
    examples, tokens, _ = ops.shape(delta)
    draw = keras.random.uniform(
        (examples, tokens, 1), dtype="float32", seed=model.seed_generator
    )
    kept = delta * ops.cast(draw < model.token_share, delta.dtype)
    if not model.perturbation.size_is_l2_norm:
        return kept
    return l2_norm(delta, _EXAMPLE) * divide(kept, l2_norm(kept, _EXAMPLE))
