"""The examples that a model is measured on, and their labels, as arrays."""

import keras

from keras_uegr import data_checks, text_input
from keras_uegr.string_data import to_array


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
    x, y, _ = text_input.preprocess_data(model.preprocessor, x, to_array(y))
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
