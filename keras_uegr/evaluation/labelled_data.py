"""The examples that a model is measured on, and their labels, as arrays."""

import keras
import numpy as np

from keras_uegr import data_checks, keras_internals, text_input
from keras_uegr.string_data import as_arrays, to_array


def preprocessed(model, x, y):
    """The examples as arrays, and their labels, if they fit to each other.

    A preprocessor that makes labels, as those of language models do, makes
    weights besides, which tell what to count.

    Args:
        model: A compiled `UEGRModel`.
        x: List of strings, or arrays, of `N` examples, as for `predict`.
        y: Array of `N` labels; a list or dictionary of arrays for a model of
            several outputs; or `None` if the preprocessor makes the labels.

    Returns:
        Tuple `(x, y, sample_weight)`, the last one `None` if there is none.

    Raises:
        ValueError: If `x` isn't arrays or strings, if there is no example or
            another number of labels, or a label of no class.
    """
    x, y, sample_weight = text_input.preprocess_data(
        model.preprocessor, x, _label_arrays(model.model, y)
    )
    inputs = keras.tree.flatten(x)
    if not all(getattr(each, "shape", ()) for each in inputs):
        raise ValueError(
            "`x` must be a list of strings, or arrays. Received: x with "
            f"{sorted({type(each).__name__ for each in inputs})}"
        )
    data_checks.check_examples(x)
    _check_counts(inputs, y)
    data_checks.check_labels(model.loss, y, model.model)
    if keras.tree.is_nested(y):
        _build_loss(model, x, y)
    return x, y, sample_weight


def _label_arrays(model, y):
    output = getattr(model, "output", None)
    # A list may be the rows of an array, or an array for each output.
    if keras.tree.is_nested(output) or (output is None and isinstance(y, dict)):
        return keras.tree.map_structure(to_array, as_arrays(y))
    return None if y is None else to_array(y)


def _check_counts(inputs, y):
    counts = {len(each) for each in inputs}
    shapes = [np.shape(each) for each in keras.tree.flatten(y)]
    if any({*shape[:1]} != counts for shape in shapes):
        of_shape = ", ".join(map(str, shapes))
        raise ValueError(
            "`y` must be an array of one label for each example, a list or "
            "dictionary of arrays for several outputs, or `None` if the "
            f"preprocessor makes it. Received: {sorted(counts)} examples and "
            f"y of shape {of_shape}"
        )


def _build_loss(model, x, y):
    """Creates what counts the losses of several outputs.

    A compiled function would create it from values that it can't keep.
    """
    loss = keras_internals.compiled_loss(model)
    if loss.built:
        return
    shapes = keras.tree.map_structure(
        lambda array: keras.KerasTensor(array.shape, array.dtype), (x, y)
    )
    keras_internals.trace(
        lambda data: loss(data[1], model(data[0], training=False)), shapes
    )
