"""Checks of what a white-box attack is given, before it takes any time."""

import keras
import numpy as np

from keras_uegr import argument_checks, data_checks, text_input
from keras_uegr.uegr_model import UEGRModel


def check_model(model):
    """It is wrapped, has a loss to raise, and weights.

    Args:
        model: What was passed to the attack.
    """
    if not isinstance(model, UEGRModel):
        raise ValueError(
            "`model` must be a `keras_uegr.UEGRModel`, which knows the "
            "embeddings of the model that it wraps: pass "
            "`keras_uegr.UEGRModel(model)`, compiled. "
            f"Received: model={model} of type {type(model).__name__}"
        )
    argument_checks.check_compiled(model)
    argument_checks.check_built(model)


def preprocessed(model, x, y):
    """The examples as arrays, and their labels, if they fit to each other.

    Args:
        model: A compiled `UEGRModel`.
        x: List of strings, or arrays, of `N` examples, as for `predict`.
        y: Array of `N` labels.

    Returns:
        Tuple `(x, y)`.

    Raises:
        ValueError: If `x` isn't arrays or strings, if there is no example or
            another number of labels, or a label of no class.
    """
    x, y, _ = text_input.preprocess_data(model.preprocessor, x, np.asarray(y))
    inputs = keras.tree.flatten(x)
    if not all(getattr(each, "shape", ()) for each in inputs):
        raise ValueError(
            "`x` must be a list of strings, or arrays. Received: x with "
            f"{sorted({type(each).__name__ for each in inputs})}"
        )
    data_checks.check_examples(x)
    counts = {len(each) for each in inputs}
    if y.ndim == 0 or counts != {len(y)}:
        raise ValueError(
            "`y` must be an array of one label for each example. Received: "
            f"{sorted(counts)} examples and y of shape {y.shape}"
        )
    data_checks.check_labels(model.loss, y, model.model)
    return x, y
