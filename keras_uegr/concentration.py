"""Concentrates a perturbation on some of the tokens.

    m[i, t] ~ Bernoulli(share)
    delta'[i] = m[i] * delta[i] * ||delta[i]||_2 / ||m[i] * delta[i]||_2

Who attacks a text changes few of its words, and those a lot; a perturbation
along the gradient moves all of them a little. The sub-models, each with tokens
of its own, see different words of one text attacked, and have to agree. This is
the project's own; where no token of an example is drawn, it stays unperturbed.
"""

import keras
from keras import ops

from keras_uegr.perturbations import divide, l2_norm

_EXAMPLE = (-2, -1)


def on_tokens(delta, share, seed):
    """The same perturbation, of the same norm, on a share of the tokens.

    Args:
        delta: Float tensor of shape `(N, T, D)`.
        share: Float in `(0, 1]`. With `1` nothing changes, or is drawn.
        seed: `keras.random.SeedGenerator`.
    """
    if share == 1:
        return delta
    examples, tokens, _ = ops.shape(delta)
    draw = keras.random.uniform(
        (examples, tokens, 1), dtype="float32", seed=seed
    )
    kept = delta * ops.cast(draw < share, delta.dtype)
    return l2_norm(delta, _EXAMPLE) * divide(kept, l2_norm(kept, _EXAMPLE))
