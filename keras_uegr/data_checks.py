"""Checks of the data that a user passes to a `UEGRModel`."""

import keras
import numpy as np

from keras_uegr import keras_internals
from keras_uegr.string_data import (
    common_length,
    excerpt,
    holds_strings,
    to_array,
)


def check_examples(x):
    """There is at least one example, where `x` is of arrays.

    The backends disagree on what happens otherwise.

    Args:
        x: What was passed to `fit`, `evaluate` or `predict`.
    """
    flat = keras.tree.flatten(x)
    shapes = [tuple(getattr(leaf, "shape", None) or ()) for leaf in flat]
    if not flat or any(shape and shape[0] == 0 for shape in shapes):
        raise ValueError(
            "`x` must hold at least one example. "
            f"Received: x with arrays of shapes {shapes}"
        )


def count_examples(x, y, sample_weight):
    """The number of examples, the same in every array.

    Args:
        x: Arrays.
        y: Arrays, or `None`.
        sample_weight: Arrays, or `None`.

    Returns:
        Integer, 0 where there is no array.

    Raises:
        ValueError: If arrays differ in length.
    """
    named = {"x": x, "y": y, "sample_weight": sample_weight}
    return common_length({name: _lengths(data) for name, data in named.items()})


def _lengths(data):
    shapes = [
        tuple(getattr(leaf, "shape", None) or ())
        for leaf in keras.tree.flatten(data)
    ]
    return [shape[0] for shape in shapes if shape]


def check_labels_are_there(loss, x, y):
    """Examples come with labels, where a loss compares with them.

    Keras' own error is of an invalid type, and that of `validation_data` comes
    after the first epoch.

    Args:
        loss: What was passed to `compile`.
        x: What was passed to `fit` or `evaluate`; only arrays are looked at,
            for batches bring their labels along.
        y: Labels, or `None`.

    Raises:
        ValueError: If there are none.
    """
    are_arrays = all(
        getattr(leaf, "shape", None) for leaf in keras.tree.flatten(x)
    )
    if y is None and loss is not None and are_arrays:
        raise ValueError(
            "`y` must be given, for the compiled loss needs labels: "
            "`validation_data` is a tuple `(x, y)`. "
            f"Received: y=None, with loss={loss}"
        )


def check_labels_are_numbers(labels):
    """Labels are no strings.

    Args:
        labels: What was passed to `fit` or `evaluate`, or those of a batch.

    Raises:
        ValueError: If there is a string among them.
    """
    if holds_strings(labels):
        raise ValueError(
            "`y` must be numbers: give each class an index. Received: "
            f"y={excerpt(labels)}"
        )


def check_labels(loss, labels, model):
    """Labels are numbers, and sparse ones name one of the model's classes.

    The backends disagree on what happens otherwise, and some go on silently.

    Args:
        loss: What was passed to `compile`; only Keras' losses of integers are
            looked at, of one output, under whatever name.
        labels: What was passed to `fit` or `evaluate`, or those of a batch;
            only arrays, tensors and lists of numbers are looked at.
        model: The wrapped model.

    Raises:
        ValueError: If a label is a string, or out of range.
    """
    check_labels_are_numbers(labels)
    shape = getattr(model, "output_shape", None)
    if not is_sparse(loss) or not isinstance(shape, tuple):
        return
    classes = shape[keras_internals.axis_of(loss)]
    if not classes:
        return
    if not (
        isinstance(labels, (list, np.ndarray)) or keras.ops.is_tensor(labels)
    ):
        return
    labels = to_array(labels)
    ignored = getattr(loss, "get_config", dict)().get("ignore_class")
    if ignored is not None:
        labels = labels[labels != ignored]
    if labels.size and (labels.min() < 0 or labels.max() >= classes):
        raise ValueError(
            f"The labels must be integers from 0 to {classes - 1}, the model "
            f"having {classes} outputs. Received: labels from {labels.min()} "
            f"to {labels.max()}"
        )


def is_sparse(loss):
    """Whether labels are integers to `loss`, by Keras' own functions.

    Args:
        loss: A Keras loss, its function or its name.
    """
    if isinstance(loss, str):
        loss = keras.losses.get(loss)
    # Keras' own classes hold these functions.
    function = getattr(loss, "fn", loss)
    return function in (
        keras.losses.sparse_categorical_crossentropy,
        keras.losses.categorical_generalized_cross_entropy,
    )


def check_is_not_ragged(x):
    """A batch that is perturbed, or tiled for the sub-models, is of one length.

    Args:
        x: The inputs of a batch.

    Raises:
        ValueError: If a tensor in it is ragged.
    """
    for tensor in keras.tree.flatten(x):
        if hasattr(tensor, "row_splits"):
            raise ValueError(
                "`UEGRModel` needs examples that are padded to one length: "
                "call `to_tensor()` on ragged batches, and let the model's "
                "`Embedding` have `mask_zero=True`. Received: a "
                f"{type(tensor).__name__} of shape {tuple(tensor.shape)}"
            )


def check_loss(model):
    """What trains by sub-models has a loss to train on.

    Args:
        model: A `UEGRModel`, as it begins to train.
    """
    if model.compiled and model.loss is None and model.has_sub_models:
        raise ValueError(
            "The sub-models need a loss: call `compile(loss=...)`, or set "
            "`adversarial_weight=0` and `consistency_weight=0` for plain "
            "training. Received: loss=None"
        )
