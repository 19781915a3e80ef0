import importlib
import json
import os
import pathlib
import subprocess
import sys
import textwrap
import types

import keras
import numpy as np
import pytest

from keras_uegr import exporting, serving
from keras_uegr.exporting import export_saved_model
from keras_uegr.uegr_model import UEGRModel
from tests.backbones import (
    tiny_bert,
    tiny_inputs,
    tiny_masked_lm_preprocessor,
    tiny_texts,
)

pytestmark = pytest.mark.slow

ROOT = pathlib.Path(exporting.__file__).parents[1]
ON_TENSORFLOW = keras.backend.backend() == "tensorflow"
COUNT = 7
TEXTS, _ = tiny_texts(COUNT)
TOKENS, _ = tiny_inputs(COUNT)
BATCHES = (slice(0, 2), slice(2, COUNT))
OWN_CLASSES = """
import keras


def double(x):
    return 2.0 * x


class Shift(keras.layers.Layer):
    def build(self, input_shape):
        self.shift = self.add_weight((input_shape[-1],), name="shift")

    def call(self, inputs):
        return inputs + self.shift


class Tower(keras.Model):
    def __init__(self, units, shift=None, **kwargs):
        super().__init__(**kwargs)
        self.units = units
        self.shift = shift or Shift()
        self.dense = keras.layers.Dense(units, activation=double)

    def call(self, inputs):
        return self.dense(self.shift(inputs))

    def get_config(self):
        return {"units": self.units, "name": self.name}
"""

OWN_FUNCTIONS = """
import keras


@keras.saving.register_keras_serializable("served")
def double(x):
    return 2.0 * x


@keras.saving.register_keras_serializable("served")
def count_letters(texts):
    import tensorflow as tf

    lengths = tf.strings.length(tf.convert_to_tensor(texts))
    return tf.cast(lengths, "float32")[:, None]
"""
SERVE = """
import sys

import tensorflow as tf

served = tf.saved_model.load(sys.argv[1])
print(served.serve(tf.constant(sys.argv[2:])).numpy().tolist())
"""


def numbers(n):
    return np.random.default_rng(n).normal(size=(n, 3)).astype("float32")


def state(model):
    """All that exporting a model must leave as it is, to the bit."""
    variables = [*model.variables, *model.optimizer.variables]
    return [keras.ops.convert_to_numpy(variable) for variable in variables]


@pytest.fixture(scope="module")
def own_classes(tmp_path_factory):
    """A module of the user's, with layers that are not registered."""
    folder = tmp_path_factory.mktemp("own")
    (folder / "own_classes.py").write_text(OWN_CLASSES)
    sys.path.insert(0, str(folder))
    yield importlib.import_module("own_classes")
    sys.path.remove(str(folder))


@pytest.fixture(scope="module")
def exports(tmp_path_factory, own_classes):
    """Four models exported from this backend and served by TensorFlow."""
    folder = tmp_path_factory.mktemp("exports")
    task = tiny_bert()
    task.optimizer.build(task.trainable_variables)
    wrapper = UEGRModel(task)
    wrapper.compile("adam", "mse")
    wrapper.optimizer.build(wrapper.trainable_variables)
    predicted = task.predict(TEXTS, verbose=0)
    before = [*state(wrapper), *state(task), predicted]
    export_saved_model(wrapper, folder / "tokens")
    after = [*state(wrapper), *state(task), task.predict(TEXTS, verbose=0)]

    plain = tiny_bert(preprocessor=False)
    texts = UEGRModel(plain, preprocessor=task.preprocessor)
    export_saved_model(texts, folder / "texts", include_preprocessor=True)

    tower = own_classes.Tower(2)
    tower(numbers(1))
    tower.set_weights([numbers(3)[0], numbers(3)[:, :2], numbers(2)[0, :2]])
    stale = folder / "tower" / "variables" / "variables.index"
    stale.parent.mkdir(parents=True)
    for file in (stale, folder / "tower" / "saved_model.pb"):
        file.write_text("an older SavedModel")
    (folder / "tower" / "notes.txt").write_text("the user's own")
    export_saved_model(tower, str(folder / "tower"))
    dense = dense_model()
    # Keras loads a lambda only where it is told that the file is trusted.
    dense.add(keras.layers.Lambda(lambda x: 2.0 * x))
    export_saved_model(dense, folder / "dense")

    requests = {
        "tokens": [
            {name: array[part].tolist() for name, array in TOKENS.items()}
            for part in BATCHES
        ],
        "tower": [numbers(n).tolist() for n in (1, 5)],
        "dense": [numbers(n).tolist() for n in (1, 5)],
        "texts": [TEXTS[part] for part in BATCHES],
    }
    (folder / "requests.json").write_text(json.dumps(requests))
    # TensorFlow Text imports Keras, which would look for its backend.
    run_python(
        ROOT / "tests" / "serving_process.py",
        folder,
        KERAS_BACKEND="tensorflow",
    )
    responses = json.loads((folder / "responses.json").read_text())
    expected = {
        "tokens": [predicted[part] for part in BATCHES],
        "texts": [predicted[part] for part in BATCHES],
        "tower": [tower.predict(numbers(n), verbose=0) for n in (1, 5)],
        "dense": [dense.predict(numbers(n), verbose=0) for n in (1, 5)],
    }
    return types.SimpleNamespace(
        folder=folder,
        responses=responses,
        expected=expected,
        parameters=task.count_params(),
        before=before,
        after=after,
    )


def run_python(*arguments, **environment):
    process = subprocess.run(
        [sys.executable, *arguments],
        cwd=ROOT,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert process.returncode == 0, process.stderr
    return process.stdout


@pytest.mark.parametrize("name", ["tokens", "texts", "tower", "dense"])
def test_served_outputs_are_those_of_predict(name, exports):
    first, second = exports.expected[name]
    assert np.ptp(second, axis=0).min() > 0.1
    for outputs, expected in zip(
        exports.responses[name]["outputs"], (first, second), strict=True
    ):
        assert np.shape(outputs) == expected.shape
        np.testing.assert_allclose(outputs, expected, atol=1e-4)


@pytest.mark.parametrize("name", ["tokens", "texts"])
def test_nothing_of_the_training_is_exported(name, exports):
    response = exports.responses[name]
    training = ("Random", "Dropout", "Assign", "Apply")
    assert not [
        operation
        for operation in response["operations"]
        if any(word in operation for word in training)
    ]
    assert not [node for node in response["nodes"] if "seed" in node]
    assert response["parameters"] == exports.parameters


def test_exporting_leaves_the_model_as_it_was(exports):
    assert len(exports.before) > 100
    for before, after in zip(exports.before, exports.after, strict=True):
        np.testing.assert_array_equal(before, after)


def test_saved_model_is_replaced_and_other_files_stay(exports):
    left = {path.name for path in exports.folder.iterdir()}
    files = {"requests.json", "responses.json"}
    assert left == {*files, "tokens", "texts", "tower", "dense"}
    notes = exports.folder / "tower" / "notes.txt"
    assert notes.read_text() == "the user's own"


def test_preprocessor_that_draws_at_random_is_an_error(tmp_path):
    model = tiny_bert(preprocessor=False)
    model.preprocessor = tiny_masked_lm_preprocessor()
    match = "same tokens every time.*BertMaskedLMPreprocessor.*draws at random"
    with pytest.raises(ValueError, match=match):
        export_saved_model(model, tmp_path / "new", include_preprocessor=True)
    assert not list(tmp_path.iterdir())


def test_preprocessor_in_python_is_an_error(tmp_path):
    model = tiny_bert()
    preprocessor = model.preprocessor
    model.preprocessor = lambda texts: preprocessor([x.upper() for x in texts])
    with pytest.raises(ValueError, match="that TensorFlow can trace"):
        export_saved_model(model, tmp_path / "new", include_preprocessor=True)
    assert not list(tmp_path.iterdir())


def test_registered_functions_are_exported(tmp_path, monkeypatch):
    (tmp_path / "served_functions.py").write_text(OWN_FUNCTIONS)
    monkeypatch.syspath_prepend(tmp_path)
    own = importlib.import_module("served_functions")
    dense = keras.layers.Dense(1, activation=own.double)
    model = keras.Sequential([keras.Input((1,)), dense])
    dense.set_weights([np.array([[3.0]]), np.array([1.0])])
    model.preprocessor = own.count_letters
    export_saved_model(model, tmp_path / "new", include_preprocessor=True)
    served = run_python(
        *("-c", SERVE, tmp_path / "new", "good", "bad"),
        KERAS_BACKEND="tensorflow",
    )
    assert json.loads(served) == [[26.0], [20.0]]


def dense_model():
    return keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)])


def test_export_of_keras_writes_the_wrapped_model(tmp_path):
    class Exported(keras.Sequential):
        def export(self, filepath, **options):
            self.asked_for = filepath, options

    model = UEGRModel(
        Exported([keras.Input((3,)), keras.layers.Dense(2)]),
        adversarial_weight=0,
        consistency_weight=0,
    )
    model.export(tmp_path, format="onnx")
    assert model.model.asked_for == (tmp_path, {"format": "onnx"})


@pytest.mark.parametrize("dtype", ["mixed_float16", "mixed_bfloat16"])
def test_token_ids_of_half_precision_are_an_error(dtype, tmp_path):
    class Tagger(keras.Model):
        def __init__(self):
            super().__init__(dtype=dtype)
            self.embedding = keras.layers.Embedding(5000, 4, dtype=dtype)

        def call(self, token_ids):
            return self.embedding(token_ids)

    model = Tagger()
    model(np.array([[4001, 4003]], "int32"))
    match = r"type of its inputs.*half precision.*model=tagger.*float16"
    with pytest.raises(ValueError, match=match):
        export_saved_model(model, tmp_path / "new")
    assert not list(tmp_path.iterdir())


def test_missing_preprocessor_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="needs a model with a preprocessor"):
        export_saved_model(
            dense_model(), tmp_path / "new", include_preprocessor=True
        )


def test_model_that_is_not_built_is_an_error(tmp_path):
    model = keras.Sequential([keras.layers.Dense(2)], name="unbuilt")
    with pytest.raises(ValueError, match="must be built.*model=unbuilt"):
        export_saved_model(model, tmp_path / "new")


def test_model_of_unknown_input_is_an_error():
    class Own(keras.Model):
        def call(self, inputs):
            return inputs

    model = Own(name="own")
    model.built = True
    with pytest.raises(ValueError, match="called on a batch.*model=own, whose"):
        exporting._input_signature(model)


def test_path_with_other_files_is_an_error(tmp_path):
    file = tmp_path / "thesis.txt"
    file.write_text("years of work")
    with pytest.raises(ValueError, match="which holds other files"):
        export_saved_model(dense_model(), tmp_path)
    with pytest.raises(ValueError, match="which is a file"):
        export_saved_model(dense_model(), file)
    assert file.read_text() == "years of work"


@pytest.mark.skipif(ON_TENSORFLOW, reason="the backend is TensorFlow")
def test_class_of_the_main_program_is_an_error(tmp_path):
    local = type("Local", (keras.layers.Dense,), {"__module__": "__main__"})
    model = keras.Sequential([keras.Input((3,)), local(2)])
    match = "cannot import `Local` from `__main__`. Move it to a module"
    with pytest.raises(ValueError, match=match):
        export_saved_model(model, tmp_path / "new")
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(ON_TENSORFLOW, reason="the backend is TensorFlow")
def test_error_of_the_tensorflow_process_is_forwarded(tmp_path):
    local = type("Local", (keras.layers.Dense,), {"__module__": "nowhere"})
    model = keras.Sequential([keras.Input((3,)), local(2)])
    model.compile("adam")
    model.optimizer.build(model.trainable_variables)
    before = state(model)
    match = "`Local` of the model is in the module `nowhere`"
    with pytest.raises(ImportError, match=match):
        export_saved_model(model, tmp_path / "new")
    assert not list(tmp_path.iterdir())
    for a, b in zip(before, state(model), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.skipif(ON_TENSORFLOW, reason="the backend is TensorFlow")
def test_crash_leaves_what_was_there(tmp_path, monkeypatch):
    crash = """
    import json, os, sys
    job = json.load(open(sys.argv[1]))
    os.makedirs(job["destination"])
    open(os.path.join(job["destination"], "saved_model.pb"), "w").write("half")
    sys.exit("out of memory")
    """
    monkeypatch.setattr(
        exporting, "_TENSORFLOW_PROCESS", textwrap.dedent(crash)
    )
    old = tmp_path / "old"
    old.mkdir()
    (old / "saved_model.pb").write_text("an older SavedModel")
    for path in (old, tmp_path / "new"):
        with pytest.raises(RuntimeError, match=r"exit code 1.*out of memory"):
            export_saved_model(dense_model(), path)
    assert list(tmp_path.iterdir()) == [old]
    assert (old / "saved_model.pb").read_text() == "an older SavedModel"


@pytest.mark.skipif(ON_TENSORFLOW, reason="the backend is TensorFlow")
def test_missing_tensorflow_is_an_error(tmp_path, monkeypatch):
    # Python takes a module that is `None` for one that cannot be imported.
    monkeypatch.setitem(sys.modules, "tensorflow", None)
    with pytest.raises(ImportError, match="`pip install tensorflow`"):
        export_saved_model(dense_model(), tmp_path / "new")
    assert not list(tmp_path.iterdir())


def test_missing_tensorflow_text_is_an_error(monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorflow_text", None)
    with pytest.raises(ImportError, match="pip install .* tensorflow-text"):
        serving.load_text_function("folder")
