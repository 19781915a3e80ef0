"""Jensen-Shannon divergence between the outputs of the sub-models.

Algorithm (Lin, "Divergence measures based on the Shannon entropy", 1991):
for `K` distributions `p_1 .. p_K` with equal weights and mixture
`m = (p_1 + .. + p_K) / K`,

    JS(p_1 .. p_K) = 1/K * sum_k KL(p_k || m),    0 <= JS <= log K   (nats)

It is symmetric in its members, and 0 when all are equal. R-Drop
(arXiv:2106.14448) and SMART (arXiv:1911.03437) use the symmetric
Kullback-Leibler divergence of two members instead, which has no upper bound;
the released code of R-Drop sums it over the batch, so that its weight depends
on the batch size. Here every value is per example.

`K` is the first axis everywhere in this module, the example the second.
"""

import math

import keras
from keras import ops

# exp(-80) is still a normal float32: a class of probability zero gives
# neither an infinity nor, in the gradient, 0 * inf.
_LOWEST_LOG_PROBABILITY = -80.0


def jensen_shannon_from_logits(logits):
    """Jensen-Shannon divergence of `K` categorical distributions.

    Args:
        logits: Tensor of shape `(K, ..., classes)`: unnormalized
            log-probabilities, of any float dtype.

    Returns:
        A float32 tensor of shape `(...)`, in nats, between 0 and `log(K)`.

    Example:

    >>> logits = keras.ops.convert_to_tensor([[[9.0, -9.0]], [[-9.0, 9.0]]])
    >>> jensen_shannon_from_logits(logits)  # nearly log(2)

    Reference:
        - [Lin, 1991](https://doi.org/10.1109/18.61115)
    """
    members = logits.shape[0]
    log_p = ops.maximum(
        ops.log_softmax(ops.cast(logits, "float32"), axis=-1),
        _LOWEST_LOG_PROBABILITY,
    )
    log_mixture = ops.logsumexp(log_p, axis=0) - math.log(members)
    relative_entropy = ops.sum(ops.exp(log_p) * (log_p - log_mixture), axis=-1)
    return ops.relu(ops.mean(relative_entropy, axis=0))


def softmax_divergence(outputs, from_logits):
    """JS of the categorical distributions `(K, B, ..., C)`: `(B, ...)`."""
    if not from_logits:
        outputs = _log(outputs)
    return jensen_shannon_from_logits(outputs)


def sigmoid_divergence(outputs, from_logits):
    """Mean JS of the independent Bernoullis `(K, B, ..., C)`: `(B, ...)`."""
    outputs = ops.cast(outputs, "float32")
    if not from_logits:
        outputs = _log(outputs) - _log(1.0 - outputs)
    two_classes = ops.stack([outputs, ops.zeros_like(outputs)], axis=-1)
    return ops.mean(jensen_shannon_from_logits(two_classes), axis=-1)


def regression_divergence(outputs, from_logits=False):
    """Mean variance over the sub-models of `(K, B, ..., C)`: `(B, ...)`."""
    del from_logits
    return ops.mean(ops.var(ops.cast(outputs, "float32"), axis=0), axis=-1)


def _log(probabilities):
    probabilities = ops.cast(probabilities, "float32")
    return ops.log(ops.maximum(probabilities, keras.config.epsilon()))


DIVERGENCES = {
    "softmax": softmax_divergence,
    "sigmoid": sigmoid_divergence,
    "regression": regression_divergence,
}

_KINDS = {
    "categorical_crossentropy": "softmax",
    "sparse_categorical_crossentropy": "softmax",
    "categorical_focal_crossentropy": "softmax",
    "kl_divergence": "softmax",
    "binary_crossentropy": "sigmoid",
    "binary_focal_crossentropy": "sigmoid",
    "mean_squared_error": "regression",
    "mean_absolute_error": "regression",
    "mean_absolute_percentage_error": "regression",
    "mean_squared_logarithmic_error": "regression",
    "huber": "regression",
    "huber_loss": "regression",
    "log_cosh": "regression",
    "cosine_similarity": "regression",
}


def output_kind(loss):
    """The kind of output that `loss` is made for.

    Args:
        loss: A `keras.losses.Loss`.

    Returns:
        One of `"softmax"`, `"sigmoid"`, `"regression"`.

    Raises:
        ValueError: If the loss is not one of Keras' own.
    """
    kind = _known_kind(loss)
    if kind is None:
        raise ValueError(
            "`UEGRModel` can't tell from the loss what the model's output is. "
            'Set its argument `output_kind` to one of "softmax", "sigmoid", '
            '"regression", or `consistency_weight=0`. '
            f"Received: loss={loss.name}"
        )
    return kind


def is_known(loss):
    """Whether `loss` is one of Keras' own."""
    return _known_kind(loss) is not None


def _known_kind(loss):
    function_name = getattr(getattr(loss, "fn", None), "__name__", None)
    return _KINDS.get(function_name) or _KINDS.get(loss.name)


def divergence_per_example(outputs, kind, from_logits, token_weight=None):
    """Divergence between the sub-models, one number for each example.

    Args:
        outputs: Tensor of shape `(K, B, C)`, or `(K, B, T, C)` for a
            prediction at each token; `(K, B)` is taken as `(K, B, 1)`.
        kind: One of `"softmax"`, `"sigmoid"`, `"regression"`.
        from_logits: Boolean, whether `outputs` are before the softmax or
            sigmoid. Ignored for `"regression"`.
        token_weight: Optional tensor of shape `(B, T)`: 0 at padding. Token
            predictions are averaged over the others only.

    Returns:
        A float32 tensor of shape `(B,)`; nats for the first two kinds, the
        squared unit of the output for `"regression"`.
    """
    if len(outputs.shape) == 2:
        outputs = ops.expand_dims(outputs, axis=-1)
    values = DIVERGENCES[kind](outputs, from_logits)
    return mean_per_example(values, token_weight)


def mean_per_example(values, token_weight=None):
    """The mean of `values` over all axes but the first.

    Args:
        values: Float tensor of shape `(B, ...)`.
        token_weight: Optional tensor of shape `(B, T)`. Values of shape
            `(B, T)` are weighed by it, and averaged over the tokens whose
            weight is not 0.

    Returns:
        A tensor of shape `(B,)`.
    """
    if (
        token_weight is not None
        and len(values.shape) == 2
        and values.shape[1] == token_weight.shape[1]
    ):
        weight = ops.cast(token_weight, values.dtype)
        count = ops.sum(ops.cast(weight != 0, values.dtype), axis=1)
        return ops.sum(values * weight, axis=1) / ops.maximum(count, 1.0)
    if len(values.shape) > 1:
        return ops.mean(values, axis=tuple(range(1, len(values.shape))))
    return values
