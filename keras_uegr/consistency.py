"""Jensen-Shannon divergence between the outputs of the sub-models.

Algorithm (Lin, "Divergence measures based on the Shannon entropy", 1991):
for `K` distributions `p_1 .. p_K` with equal weights and mixture
`m = (p_1 + .. + p_K) / K`,

    JS(p_1 .. p_K) = 1/K * sum_k KL(p_k || m),    0 <= JS <= log K   (nats)

It is symmetric in its members, and 0 when all are equal. R-Drop
(arXiv:2106.14448) and SMART (arXiv:1911.03437) use the symmetric
Kullback-Leibler divergence of two members instead, which has no upper bound:

    symmetric KL = 1/(K * (K - 1)) * sum_j sum_k KL(p_j || p_k)

The released code of R-Drop sums it over the batch, so that its weight depends
on the batch size; that of SMART and R3F leaves out the mean over the two
directions, a factor of 2. Here every value is per example.

`K` is the first axis everywhere in this module, the example the second.
"""

import math

import keras
from keras import ops

from keras_uegr import keras_internals

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
    log_ratio = log_p - log_mixture
    p = ops.exp(log_p)
    # `m - p_k` adds nothing to the sum over the members, and makes each term
    # the square of a small ratio where they are nearly equal.
    difference = ops.where(
        log_ratio > -1.0,
        p * ops.expm1(-log_ratio),
        ops.exp(log_mixture) - p,
    )
    terms = p * log_ratio + difference
    return ops.mean(ops.sum(terms, axis=-1), axis=0)


def symmetric_kl_from_logits(logits):
    """Mean Kullback-Leibler divergence of the ordered pairs of `K` members.

    For two members it is half the symmetric divergence. It has no upper bound.

    Args:
        logits: Tensor of shape `(K, ..., classes)`: unnormalized
            log-probabilities, of any float dtype.

    Returns:
        A float32 tensor of shape `(...)`, in nats.

    Example:

    >>> logits = keras.ops.convert_to_tensor([[[1.0, -1.0]], [[-1.0, 1.0]]])
    >>> symmetric_kl_from_logits(logits)

    Reference:
        - [Liang et al., 2021](https://arxiv.org/abs/2106.14448)
    """
    members = logits.shape[0]
    log_p = ops.maximum(
        ops.log_softmax(ops.cast(logits, "float32"), axis=-1),
        _LOWEST_LOG_PROBABILITY,
    )
    # The mean over the pairs is a covariance, which of the centred factors
    # stays exact where the members are nearly equal.
    covariance = ops.sum(
        _centred(ops.exp(log_p)) * _centred(log_p), axis=(0, -1)
    )
    return covariance / (members - 1)


def _centred(members):
    return members - ops.mean(members, axis=0)


def softmax_divergence(outputs, from_logits, measure):
    """Of the categorical distributions `(K, B, ..., C)`: `(B, ...)`."""
    if not from_logits:
        outputs = _log(outputs)
    return measure(outputs)


def sigmoid_divergence(outputs, from_logits, measure):
    """Mean over the independent Bernoullis `(K, B, ..., C)`: `(B, ...)`."""
    outputs = ops.cast(outputs, "float32")
    if not from_logits:
        outputs = _log(outputs) - _log(1.0 - outputs)
    two_classes = ops.stack([outputs, ops.zeros_like(outputs)], axis=-1)
    return ops.mean(measure(two_classes), axis=-1)


def regression_divergence(outputs, from_logits=False, measure=None):
    """Mean variance over the sub-models of `(K, B, ..., C)`: `(B, ...)`."""
    del from_logits, measure
    return ops.mean(ops.var(ops.cast(outputs, "float32"), axis=0), axis=-1)


def _log(probabilities):
    probabilities = ops.cast(probabilities, "float32")
    return ops.log(ops.maximum(probabilities, keras.config.epsilon()))


MEASURES = {
    "jensen_shannon": jensen_shannon_from_logits,
    "symmetric_kl": symmetric_kl_from_logits,
}

DIVERGENCES = {
    "softmax": softmax_divergence,
    "sigmoid": sigmoid_divergence,
    "regression": regression_divergence,
}

_KINDS = {
    "categorical_crossentropy": "softmax",
    "sparse_categorical_crossentropy": "softmax",
    "categorical_focal_crossentropy": "softmax",
    "categorical_generalized_cross_entropy": "softmax",
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

# Of either kind, so that `output_kind` has to be set, but never of logits.
_OF_PROBABILITIES = (keras.losses.dice, keras.losses.tversky)


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
    """Whether `loss`, an object or a function, is one of Keras' own."""
    return _known_kind(loss) is not None


def _known_kind(loss):
    function_name = getattr(getattr(loss, "fn", loss), "__name__", None)
    return _KINDS.get(function_name) or _KINDS.get(getattr(loss, "name", None))


def reads_logits(loss):
    """Whether the outputs are logits to `loss`; so they are to a user's own.

    Args:
        loss: A `keras.losses.Loss`.
    """
    if getattr(loss, "fn", loss) in _OF_PROBABILITIES:
        return False
    if not is_known(loss):
        return True
    return bool(loss.get_config().get("from_logits", False))


def check_axis(loss, outputs):
    """The loss reads its outputs along their last axis, as divergences do.

    Args:
        loss: A `keras.losses.Loss`.
        outputs: Tensor, the outputs that it reads.

    Raises:
        ValueError: If its `axis` is another.
    """
    if not is_along_last_axis(loss, outputs):
        raise ValueError(
            "The divergence between the sub-models is taken along the last "
            "axis of the outputs: transpose them, and let the loss have "
            "`axis=-1`, or set `consistency_weight=0`. Received: "
            f"loss={loss.name} with axis={keras_internals.axis_of(loss)}"
        )


def is_along_last_axis(loss, outputs):
    """Whether the loss, if it is Keras' own, reads along their last axis."""
    last = len(outputs.shape) - 1
    return not is_known(loss) or keras_internals.axis_of(loss) in (-1, last)


def divergence_per_example(
    outputs, kind, from_logits, token_weight=None, measure="jensen_shannon"
):
    """Divergence between the sub-models, one number for each example.

    Args:
        outputs: Tensor of shape `(K, B, C)`, or `(K, B, T, C)` for a
            prediction at each token; `(K, B)` is taken as `(K, B, 1)`.
        kind: One of `"softmax"`, `"sigmoid"`, `"regression"`.
        from_logits: Boolean, whether `outputs` are before the softmax or
            sigmoid. Ignored for `"regression"`.
        token_weight: Optional tensor of shape `(B, T)`: 0 at padding. Token
            predictions are averaged over the others only.
        measure: `"jensen_shannon"` (default) or `"symmetric_kl"`. Ignored for
            `"regression"`.

    Returns:
        A float32 tensor of shape `(B,)`; nats for the first two kinds, the
        squared unit of the output for `"regression"`.
    """
    if len(outputs.shape) == 2:
        outputs = ops.expand_dims(outputs, axis=-1)
    values = DIVERGENCES[kind](outputs, from_logits, MEASURES[measure])
    return mean_per_example(values, token_weight)


def weights(loss, labels, sample_weight, unpadded=None):
    """What the examples, and their tokens, weigh in the divergence.

    Args:
        loss: As in `counted_tokens`; its `reduction` is looked at, too.
        labels: As in `counted_tokens`.
        sample_weight: As in `counted_tokens`.
        unpadded: As in `counted_tokens`.

    Returns:
        Tuple of the weights of the examples and of those of their tokens, of
        shape `(B, T)`; either may be `None`.
    """
    token_weight = counted_tokens(loss, labels, unpadded, sample_weight)
    if sample_weight is None:
        return None, token_weight
    weight, weight_of_tokens = sample_weight, of_tokens(sample_weight)
    if weight_of_tokens is not None:
        weight = token_weight * ops.cast(weight_of_tokens, token_weight.dtype)
    if getattr(loss, "reduction", None) == "mean_with_sample_weight":
        weight = without_scale(weight)
    if weight_of_tokens is None:
        return weight, token_weight
    return None, weight


def counted_tokens(loss, labels, unpadded=None, sample_weight=None):
    """The tokens that count in the loss.

    Args:
        loss: The loss of an output. Only its `ignore_class` is looked at, that
            of Keras' sparse categorical cross-entropy.
        labels: The labels of that output, of shape `(B, T)` or `(B, T, 1)` if
            it has a prediction at each token.
        unpadded: Optional tensor of shape `(B, T)`: 0 at padding.
        sample_weight: Optional tensor, the weights of that output, of such a
            shape too if each token has its own.

    Returns:
        A float32 tensor of shape `(B, T)`: 0 at padding, where the label is to
        be ignored, and where the weight is 0. `unpadded` if no token has a
        label to ignore or a weight of its own.
    """
    ignored, counted = getattr(loss, "ignore_class", None), unpadded
    labels = None if ignored is None else of_tokens(labels)
    if labels is not None:
        counted = _both(counted, ops.not_equal(labels, ignored))
    weight = of_tokens(sample_weight)
    if weight is not None:
        counted = _both(counted, ops.not_equal(weight, 0))
    return counted


def of_tokens(tensor):
    """Labels or weights as `(B, T)`, `None` if not each token has its own."""
    if tensor is not None and len(tensor.shape) == 3 and tensor.shape[2] == 1:
        tensor = ops.squeeze(tensor, axis=2)
    if tensor is None or len(tensor.shape) != 2 or tensor.shape[1] == 1:
        return None
    return tensor


def _both(token_weight, counts):
    """`token_weight`, which may be `None`, where a token `counts` too."""
    counts = ops.cast(counts, "float32")
    if token_weight is None:
        return counts
    return counts * ops.cast(fitted(token_weight, counts), "float32")


def fitted(token_weight, values):
    """`token_weight` if it has as many tokens as `values`, or else ones.

    Args:
        token_weight: Tensor of shape `(B, T)`.
        values: Tensor of shape `(B, S)`. Either length may be unknown.

    Returns:
        A tensor of shape `(B, S)`, of the dtype of `token_weight`.
    """
    lengths = token_weight.shape[1], values.shape[1]
    if lengths[0] == lengths[1] is not None:
        return token_weight
    tokens, length = ops.shape(token_weight)[1], ops.shape(values)[1]
    # In a graph the shape has to be right, whichever length it comes to.
    positions = ops.minimum(ops.arange(length), tokens - 1)
    return ops.where(
        ops.equal(tokens, length),
        ops.take(token_weight, positions, axis=1),
        ops.ones((), dtype=token_weight.dtype),
    )


def mean_per_example(values, token_weight=None):
    """The mean of `values` over all axes but the first.

    Args:
        values: Float tensor of shape `(B, ...)`.
        token_weight: Optional tensor of shape `(B, T)`. Values of shape
            `(B, T)` are weighed by it, and averaged over the tokens whose
            weight is not 0; those of another length are averaged in full.

    Returns:
        A tensor of shape `(B,)`.
    """
    if token_weight is not None and len(values.shape) == 2:
        weight = ops.cast(fitted(token_weight, values), values.dtype)
        count = ops.sum(ops.cast(weight != 0, values.dtype), axis=1)
        return ops.sum(values * weight, axis=1) / ops.maximum(count, 1.0)
    if len(values.shape) > 1:
        return ops.mean(values, axis=tuple(range(1, len(values.shape))))
    return values


def without_scale(weight):
    """`weight` in units of its mean over the examples, 0 if that is 0.

    Args:
        weight: Tensor of shape `(B,)` or `(B, 1)`, or `(B, T)`: an example
            then has the mean of its tokens' weights that are not 0.

    Returns:
        A float32 tensor of the shape of `weight`.
    """
    weight = ops.cast(weight, "float32")
    of_examples = weight
    if len(weight.shape) == 2 and weight.shape[1] != 1:
        of_examples = mean_per_example(ops.ones_like(weight), weight)
    return ops.divide_no_nan(weight, ops.mean(of_examples))
