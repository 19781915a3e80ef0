"""Calibration: whether a model is right as often as it says.

    conf_i = max_c p_ic,   hit_i = (argmax_c p_ic == y_i)
    ECE = sum_m |B_m| / N * |mean of hit over B_m - mean of conf over B_m|

Bin `B_m` of `M` holds the examples with `conf` in `((m - 1) / M, m / M]`.
"""

import numpy as np
from keras import ops

from keras_uegr import value_checks

# Each entry of a softmax in bfloat16 is off by up to a 256th of itself.
_ROUNDING = 1e-2


def expected_calibration_error(probabilities, labels, bins=15):
    """The mean gap between a model's confidence and its accuracy.

    Args:
        probabilities: Array of shape `(N, C)`, the rows sum to 1: a softmax,
            not logits.
        labels: Integer array of shape `(N,)`, the true classes, from 0 to
            `C - 1`.
        bins: Positive integer, the number of bins of equal width. Defaults to
            `15`.

    Returns:
        Float between 0 and 1. 0 is a perfectly calibrated model.

    Raises:
        ValueError: If an argument is not as above.

    Example:

    >>> probabilities = [[0.8, 0.2], [0.2, 0.8], [0.8, 0.2], [0.6, 0.4]]
    >>> round(expected_calibration_error(probabilities, [0, 1, 1, 0]), 3)
    0.2

    Reference:
        - [Guo et al., 2017](https://arxiv.org/abs/1706.04599)
    """
    # Tensors may lie on another device.
    probabilities = np.asarray(ops.convert_to_numpy(probabilities), float)
    labels = np.asarray(ops.convert_to_numpy(labels))
    _check(probabilities, labels, bins)
    confidences = probabilities.max(axis=-1)
    hits = probabilities.argmax(axis=-1) == labels
    # The first edge has no bin below it; rounding may put 1 above the last.
    edges = np.linspace(0, 1, bins + 1)[1:-1]
    index = np.digitize(confidences, edges, right=True)
    gaps = np.bincount(index, weights=hits - confidences, minlength=bins)
    return float(np.abs(gaps).sum() / len(labels))


def are_probabilities(rows):
    """Whether each row is at least 0 and sums to 1, but for rounding.

    Args:
        rows: NumPy array of shape `(N, C)`.
    """
    sums = rows.sum(axis=-1)
    return (rows >= 0).all() and np.allclose(sums, 1, rtol=0, atol=_ROUNDING)


def _check(probabilities, labels, bins):
    value_checks.check_positive_integers(bins=bins)
    shapes = probabilities.shape, labels.shape
    if probabilities.ndim != 2 or shapes[1] != shapes[0][:1] or not len(labels):
        raise ValueError(
            "`probabilities` must have shape `(N, C)` and `labels` `(N,)`, of "
            f"at least one example. Received: shapes {shapes[0]} and "
            f"{shapes[1]}"
        )
    _check_labels(labels, classes=shapes[0][1])
    if not are_probabilities(probabilities):
        raise ValueError(
            "`probabilities` must be at least 0, and each row must sum to 1. "
            "Apply a softmax to logits first. "
            f"Received: probabilities={probabilities[:2]}..."
        )


def _check_labels(labels, classes):
    # Whole numbers of any type, for those are labels to Keras' metrics too.
    are_numbers = labels.dtype.kind in "biuf"
    known = np.isin(labels, np.arange(classes)) & are_numbers
    if not known.all():
        raise ValueError(
            f"`labels` must be integers from 0 to {classes - 1}, the index of "
            f"each example's class. Received: labels={labels[~known][0]}"
        )
