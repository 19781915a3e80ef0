"""A TensorFlow SavedModel of the wrapped model, from every backend.

What is written is one plain forward pass of the user's own model: nothing of
the training stays in it. TensorFlow has to trace that pass itself, so on JAX
and PyTorch the model is saved, and exported by a second Python process that
runs Keras on TensorFlow. The model in memory is not touched.
"""

import importlib.util
import json
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile

import keras

from keras_uegr import keras_internals, model_parts
from keras_uegr.custom_objects import (
    find_custom_objects,
    import_custom_objects,
    is_serializable,
)
from keras_uegr.text_input import apply_preprocessor
from keras_uegr.uegr_model import UEGRModel

_ENDPOINT = "serve"
_TENSORFLOW_PROCESS = """
import sys
from keras_uegr import exporting
exporting.run_job(sys.argv[1])
"""


def export_saved_model(model, path, include_preprocessor=False):
    """Writes a TensorFlow SavedModel for inference, on any backend.

    The SavedModel has one endpoint, `serve`, which is its `serving_default`
    signature too. It needs neither Keras nor this package, and takes batches
    of any size. Without the preprocessor it takes what the model takes (for a
    KerasHub classifier a dictionary of `token_ids`, `padding_mask` and
    `segment_ids`, all of type int32; for a subclassed model, which doesn't tell
    its inputs' type, tensors of its `input_dtype`); with it, a 1-D tensor of
    strings.

    On JAX and PyTorch, TensorFlow has to be installed too, and the model's own
    classes and registered functions have to be in modules that another Python
    process can import.

    Args:
        model: A `keras_uegr.UEGRModel`, of which the wrapped model is
            exported, or a `keras.Model`. It must be built.
        path: Path of the folder to write. A SavedModel that is there already
            is replaced.
        include_preprocessor: bool. Whether the SavedModel takes strings, and
            preprocesses them. The model must have a preprocessor that
            TensorFlow can trace, as those of KerasHub's text classifiers. A
            program that loads the SavedModel must `import tensorflow_text`
            first. Defaults to `False`.

    Raises:
        ImportError: If TensorFlow, or for strings TensorFlow Text, is missing.
        RuntimeError: If TensorFlow fails to export the model.
        ValueError: If `path` holds something else than a SavedModel, or the
            model or its preprocessor cannot be exported.

    Example:

    ```python
    keras_uegr.export_saved_model(model, "serving", include_preprocessor=True)

    import tensorflow as tf
    import tensorflow_text

    served = tf.saved_model.load("serving")
    served.serve(tf.constant(["a delight", "a bore"]))
    ```
    """
    path = pathlib.Path(path).resolve()
    check_destination(path)
    exported, preprocessor = _parts(model)
    if not exported.built:
        raise ValueError(
            "`model` must be built before it is exported: call it on a batch "
            f"first. Received: model={exported.name}"
        )
    if include_preprocessor and preprocessor is None:
        raise ValueError(
            "`include_preprocessor=True` needs a model with a preprocessor. "
            "Give it one when it is made, or export with "
            "`include_preprocessor=False`. Received: "
            f"model={exported.name}, whose preprocessor is None"
        )
    if not include_preprocessor:
        _check_token_ids_are_exact(exported)
    path.parent.mkdir(parents=True, exist_ok=True)
    # Next to `path`, so that moving it there is a renaming.
    with tempfile.TemporaryDirectory(
        prefix=f".{path.name}-", dir=path.parent
    ) as folder:
        written = pathlib.Path(folder, "saved_model")
        if keras.backend.backend() == "tensorflow":
            _write_saved_model(model, written, include_preprocessor)
        else:
            _write_in_tensorflow_process(model, written, include_preprocessor)
        _move_into_place(written, path)


def check_destination(path):
    """Nothing would be lost at `path`, a `pathlib.Path`, but a SavedModel."""
    if not path.exists():
        return
    if not path.is_dir():
        raise ValueError(
            f"`path` must be a folder. Received: path={path}, which is a file"
        )
    if any(path.iterdir()) and not (path / "saved_model.pb").is_file():
        raise ValueError(
            "`path` must be a new or empty folder, or a SavedModel to "
            f"replace. Received: path={path}, which holds other files"
        )


def _check_token_ids_are_exact(model):
    """Half precision holds integers up to 256 or 2048: not those of tokens."""
    if model_parts.symbolic_inputs(model) is not None:
        return
    layers = keras_internals.sublayers(model)
    embeds = any(isinstance(x, keras.layers.Embedding) for x in layers)
    if embeds and model.input_dtype in ("bfloat16", "float16"):
        raise ValueError(
            "`model` must tell the type of its inputs where it embeds tokens "
            "and computes in half precision: they would be rounded. Export "
            "`keras.Model(inputs, model(inputs))` instead, with `inputs` made "
            'by `keras.Input(shape, dtype="int32")`. Received: '
            f"model={model.name}, a subclass, of dtype {model.input_dtype}"
        )


def _move_into_place(written, path):
    if not path.exists():
        written.rename(path)
        return
    # Entry by entry: the folder may hold files of the user's, too.
    for entry in written.iterdir():
        replaced = path / entry.name
        if replaced.is_dir():
            shutil.rmtree(replaced)
        entry.replace(replaced)


def _parts(model):
    """The model to export and the preprocessor of what it is given."""
    exported = model.model if isinstance(model, UEGRModel) else model
    return exported, getattr(model, "preprocessor", None)


def _write_saved_model(model, destination, include_preprocessor):
    """Exports on the TensorFlow backend."""
    import tensorflow as tf

    model, preprocessor = _parts(model)
    archive = keras.export.ExportArchive()
    if include_preprocessor:
        text = tf.TensorSpec((None,), tf.string, name="text")
        _check_preprocessor(preprocessor, text)
        if isinstance(preprocessor, keras.Layer):
            # Tokenizers hold lookup tables, which must be saved too.
            archive.track(preprocessor)

        def serve(texts):
            x, _, _ = apply_preprocessor(preprocessor, texts, None, None)
            return model(x, training=False)

        archive.add_endpoint(_ENDPOINT, serve, [text])
    else:

        def serve(*inputs):
            return model(*inputs, training=False)

        # Not `archive.track(model)`: it would save every weight twice.
        archive.add_endpoint(_ENDPOINT, serve, _input_signature(model))
    archive.write_out(destination, verbose=False)


def _input_signature(model):
    inputs = model_parts.symbolic_inputs(model)
    if inputs is not None:
        return [inputs]
    # A subclassed model takes what it was built with, at any batch size.
    config = model.get_build_config() or {}
    shapes = config.get("shapes_dict") or {"inputs": config.get("input_shape")}
    if None in shapes.values():
        raise ValueError(
            "`model` must have been called on a batch before it is exported. "
            f"Received: model={model.name}, whose input shape is unknown"
        )
    return [
        keras.tree.map_shape_structure(
            lambda shape: keras.InputSpec(
                shape=(None, *shape[1:]), dtype=model.input_dtype
            ),
            shape,
        )
        for shape in shapes.values()
    ]


def _check_preprocessor(preprocessor, text):
    import tensorflow as tf

    @tf.function(input_signature=[text], autograph=False)
    def preprocess(texts):
        return apply_preprocessor(preprocessor, texts, None, None)[0]

    try:
        # An eager call first, so that nothing is created inside the graph.
        apply_preprocessor(preprocessor, ["a"], None, None)
        graph = preprocess.get_concrete_function().graph.as_graph_def()
    except ImportError:
        raise
    except Exception as error:
        raise ValueError(
            "`include_preprocessor=True` needs a preprocessor that TensorFlow "
            "can trace. Export with `include_preprocessor=False` and "
            "preprocess the texts before serving. Received: "
            f"preprocessor={preprocessor}, which failed with: {error}"
        ) from error
    operations = {node.op for node in graph.node}
    for function in graph.library.function:
        operations.update(node.op for node in function.node_def)
    if any("Random" in operation for operation in operations):
        raise ValueError(
            "`include_preprocessor=True` needs a preprocessor that gives a "
            "text the same tokens every time. Received: "
            f"preprocessor={preprocessor}, which draws at random"
        )


def _check_serializable(preprocessor):
    if is_serializable(preprocessor):
        return
    raise ValueError(
        "`include_preprocessor=True` needs a preprocessor that TensorFlow "
        "can trace in another Python process: a "
        "`keras_hub.models.Preprocessor`, or a function that is registered "
        "with `keras.saving.register_keras_serializable`. Export with "
        "`include_preprocessor=False` and preprocess the texts before "
        f"serving. Received: preprocessor={preprocessor}"
    )


def _write_in_tensorflow_process(model, destination, include_preprocessor):
    """Exports on another backend."""
    if importlib.util.find_spec("tensorflow") is None:
        raise ImportError(
            "Exporting a SavedModel requires TensorFlow on every backend. "
            "Install it with `pip install tensorflow`."
        )
    # Not `model` itself: it would add its optimizer's state to the file.
    exported, preprocessor = _parts(model)
    if include_preprocessor:
        _check_serializable(preprocessor)
        # A file of a plain `keras.Model` would lack its preprocessor.
        exported = UEGRModel(
            exported,
            adversarial_weight=0.0,
            consistency_weight=0.0,
            preprocessor=getattr(model, "own_preprocessor", None),
        )
    folder = destination.parent
    archive, job_file = folder / "model.keras", folder / "job.json"
    exported.save(archive)
    job = {
        "archive": str(archive),
        "destination": str(destination),
        "include_preprocessor": include_preprocessor,
        "custom_objects": find_custom_objects(archive),
    }
    job_file.write_text(json.dumps(job), encoding="utf-8")
    process = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", _TENSORFLOW_PROCESS, job_file],
        env={
            **os.environ,
            "KERAS_BACKEND": "tensorflow",
            # This process may have reserved all of the accelerator's memory.
            "CUDA_VISIBLE_DEVICES": "-1",
            "PYTHONPATH": os.pathsep.join(x or os.getcwd() for x in sys.path),
        },
        capture_output=True,
        encoding="utf-8",
        errors="replace",
        check=False,
    )
    if process.returncode:
        raise _failure(folder / "error.json", process)


def _failure(error_file, process):
    """The exception that stands for what went wrong in the other process."""
    if error_file.is_file():
        error = json.loads(error_file.read_text(encoding="utf-8"))
        kinds = {"ImportError": ImportError, "ValueError": ValueError}
        kind = kinds.get(error["kind"], RuntimeError)
        message = error["message"]
    else:
        kind = RuntimeError
        message = process.stderr[-2000:].strip()
    return kind(
        "The model could not be exported by the TensorFlow process (exit code "
        f"{process.returncode}). It reported: {message}"
    )


def run_job(job_file):
    """Does, on the TensorFlow backend, what another process asks for."""
    job_file = pathlib.Path(job_file)
    job = json.loads(job_file.read_text(encoding="utf-8"))
    try:
        model = keras.saving.load_model(
            job["archive"],
            custom_objects=import_custom_objects(job["custom_objects"]),
            compile=False,
            # The user's own process has just written it, lambdas too.
            safe_mode=False,
        )
        _write_saved_model(
            model, job["destination"], job["include_preprocessor"]
        )
    except Exception as error:
        kind = "ImportError" if isinstance(error, ImportError) else None
        report = {
            "kind": kind or type(error).__name__,
            "message": f"{type(error).__name__}: {error}",
        }
        job_file.with_name("error.json").write_text(
            json.dumps(report), encoding="utf-8"
        )
        raise
