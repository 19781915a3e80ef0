"""Saliency: how much each single parameter matters to the loss.

For a parameter `theta_i` with gradient `g_i`:

    taylor    |theta_i * g_i|     first-order change of the loss if it were 0
    gradient  |g_i|               first-order change of the loss per unit
    fisher    mean over steps of g_i^2, m <- decay * m + (1 - decay) * g_i^2

`taylor` is the sensitivity of SAGE (Liang et al., arXiv:2202.02664) and of
pruning (Molchanov et al., arXiv:1611.06440); `gradient` that of SIFT
(arXiv:2312.11875); `fisher` the empirical Fisher information of
Child-Tuning-D (arXiv:2109.05687) and RoAST (arXiv:2312.04032), which average
it over examples before training, or over an epoch; here it follows the steps.
The mean is not bias-corrected: the factor is the same for every parameter, so
that no ranking depends on it.

The paper (arXiv:2503.16550) names the score in its abstract and gives no
formula; which one to take is this project's choice.
"""

import keras
from keras import ops


def taylor(variable, gradient):
    """`|theta * g|`, tensors of one shape."""
    return ops.abs(variable * gradient)


def gradient_magnitude(variable, gradient):
    """`|g|`, tensors of one shape."""
    del variable
    return ops.abs(gradient)


def fisher(variable, mean_square_gradient):
    """The running mean of `g^2`, which the optimizer keeps."""
    del variable
    return mean_square_gradient


SALIENCIES = {
    "taylor": taylor,
    "gradient": gradient_magnitude,
    "fisher": fisher,
}


def get(saliency):
    """The function `(variable, gradient) -> scores` for a name or itself.

    Args:
        saliency: One of `"taylor"`, `"gradient"`, `"fisher"`, or a callable
            that takes two float32 tensors of one shape, a variable's value
            and its gradient, and returns scores of that shape.

    Returns:
        A callable.

    Raises:
        ValueError: If it is neither.
    """
    if isinstance(saliency, str) and saliency in SALIENCIES:
        return SALIENCIES[saliency]
    if callable(saliency):
        return saliency
    raise ValueError(
        f"`saliency` must be one of {sorted(SALIENCIES)}, or a callable "
        f"`(variable, gradient) -> scores`. Received: saliency={saliency}"
    )


def serialize(saliency):
    """The config of what `get` takes."""
    if isinstance(saliency, str):
        return saliency
    return keras.saving.serialize_keras_object(saliency)


def deserialize(config):
    """What `get` takes, from its config."""
    if isinstance(config, dict):
        return keras.saving.deserialize_keras_object(config)
    return config
