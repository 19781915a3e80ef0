"""Reads back what `exporting.py` wrote."""

import os
import pathlib


def load_text_function(path):
    """The outputs of a SavedModel that takes strings, as a function.

    Args:
        path: Path of the folder, written with `include_preprocessor=True`.

    Returns:
        A function of a list of strings that gives a NumPy array.

    Raises:
        ImportError: If TensorFlow or TensorFlow Text is missing.
        ValueError: If `path` holds no SavedModel that takes strings, or one of
            several outputs.
    """
    tf = _import_tensorflow()
    if not pathlib.Path(path, "saved_model.pb").is_file():
        raise ValueError(
            "`model` must be the path of a SavedModel, as "
            f"`export_saved_model` writes it. Received: model={path}"
        )
    loaded = tf.saved_model.load(os.fspath(path))
    served = loaded.signatures["serving_default"]
    specs = served.structured_input_signature[1]
    if [spec.dtype for spec in specs.values()] != [tf.string]:
        raise ValueError(
            "`model` must be a SavedModel that takes strings: export it with "
            f"`include_preprocessor=True`. Received: model={path}"
        )
    if len(served.structured_outputs) > 1:
        raise ValueError(
            "`model` must be a SavedModel of one output. Received: "
            f"model={path} of {sorted(served.structured_outputs)}"
        )
    (name,) = specs

    def outputs(texts):
        if isinstance(texts[0], tuple):
            raise ValueError(
                "Texts must be strings for a SavedModel, whose signature has "
                f"no place for further parts. Received: {texts[0]}"
            )
        # The function alone doesn't keep the model's variables alive.
        served = loaded.signatures["serving_default"]
        (values,) = served(**{name: tf.constant(texts)}).values()
        return values.numpy()

    return outputs


def _import_tensorflow():
    try:
        import tensorflow as tf
        import tensorflow_text  # noqa: F401
    except ImportError as error:
        raise ImportError(
            "To load a SavedModel that takes strings, install TensorFlow and "
            "TensorFlow Text: `pip install tensorflow tensorflow-text`."
        ) from error
    return tf
