import os
import subprocess
import sys

import h5py
import keras
import numpy as np
import pytest
from keras import ops

import keras_uegr
from keras_uegr import checksums
from tests import reference
from tests.backbones import tiny_bert, tiny_inputs, tiny_texts
from tests.late_model import LateModel
from tests.pooled_model import pooled_model

pytestmark = pytest.mark.slow

BACKENDS = ("tensorflow", "jax", "torch")


def trained(steps=3, inner=None):
    keras.utils.set_random_seed(3)
    model = keras_uegr.UEGRModel(
        inner or tiny_bert(),
        perturbation=keras_uegr.ProjectedGradient(steps=1, random_start=True),
        dropout=keras_uegr.AdaptiveDropout(0.1, 0.5, "divergence"),
        warmup_steps=4,
    )
    model.compile(
        keras_uegr.SaliencyMaskedOptimizer(
            keras.optimizers.AdamW(1e-2), density=0.4, saliency="fisher"
        ),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    )
    train(model, range(steps))
    return model


def train(model, steps):
    x, y = tiny_inputs(24)
    for step in steps:
        rows = slice(4 * step, 4 * step + 4)
        model.train_on_batch({k: v[rows] for k, v in x.items()}, y[rows])


def state(model):
    variables = model.variables + model.optimizer.variables
    return [ops.convert_to_numpy(variable) for variable in variables]


CONTINUE = """
import os, sys
if os.environ["KERAS_BACKEND"] == "torch":
    import torch
import keras, numpy as np
import keras_uegr
from tests import compilers
from tests.test_saving import state, train
compilers.set_hasty(compilers.is_hasty())
model = keras.saving.load_model(sys.argv[1])
if sys.argv[2] == "train":
    train(model, range(3, 6))
    np.savez(sys.argv[3], *state(model))
else:
    from tests.backbones import tiny_texts
    np.savez(sys.argv[3], model.predict(tiny_texts(4)[0], verbose=0),
             np.array(model.optimizer.iterations), np.array(model.state.step))
"""


def in_new_process(arguments, backend):
    environment = {**os.environ, "KERAS_BACKEND": backend}
    process = subprocess.run(
        [sys.executable, "-c", CONTINUE, *map(str, arguments)],
        env=environment,
        capture_output=True,
        text=True,
    )
    assert process.returncode == 0, process.stderr[-3000:]
    with np.load(arguments[-1]) as arrays:
        return [arrays[name] for name in arrays.files]


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    path = tmp_path_factory.mktemp("saved") / "model.keras"
    model = trained()
    model.save(path)
    return path, model


def test_training_resumes_in_a_new_process_as_if_uninterrupted(saved, tmp_path):
    path, _ = saved
    resumed = in_new_process(
        [path, "train", tmp_path / "state.npz"], keras.backend.backend()
    )
    # The global generator of torch goes on from where the file was written.
    uninterrupted = state(trained(6))
    assert len(resumed) == len(uninterrupted)
    tolerance = 1e-6 if keras.backend.backend() == "torch" else 0
    for one, other in zip(resumed, uninterrupted, strict=True):
        np.testing.assert_allclose(one, other, rtol=0, atol=tolerance)


def test_another_models_numbers_follow_the_seed_after_loading(saved):
    path, _ = saved
    parameters = reference.random_parameters(20, 5, 4, 3)
    x, y = np.ones((8, 4), "int32"), np.ones((8, 3))

    def trained_after_loading(seed):
        keras.utils.set_random_seed(seed)
        keras.saving.load_model(path)
        other = pooled_model(parameters=parameters, rate=0.5)
        other.compile("sgd", "mse")
        other.fit(x, y, verbose=0)
        return other.get_weights()[-1]

    one, same, other = (trained_after_loading(seed) for seed in (1, 1, 2))
    np.testing.assert_array_equal(one, same)
    assert np.abs(one - other).max() > 1e-6


# The suite saves on each of the three: that makes all six directions.
@pytest.mark.parametrize(
    "other", [name for name in BACKENDS if name != keras.backend.backend()]
)
def test_a_file_loads_on_another_backend(other, saved, tmp_path):
    path, model = saved
    logits, iterations, step = in_new_process(
        [path, "predict", tmp_path / "logits.npz"], other
    )
    expected = model.predict(tiny_texts(4)[0], verbose=0)
    np.testing.assert_allclose(logits, expected, atol=1e-4)
    assert iterations == step == 3


@pytest.mark.parametrize(
    ("given", "stored"), [({}, "auto"), ({"jit_compile": False}, False)]
)
def test_the_backend_that_loads_decides_how_to_compile(given, stored):
    model = keras_uegr.UEGRModel(tiny_bert())
    model.compile("sgd", "mse", **given)
    assert model.get_compile_config()["jit_compile"] == stored


def test_weights_file_round_trip(saved, tmp_path):
    _, model = saved
    model.save_weights(tmp_path / "model.weights.h5")
    other = trained(1, tiny_bert(seed=9))
    other.load_weights(tmp_path / "model.weights.h5")
    for one, two in zip(state(model), state(other), strict=True):
        np.testing.assert_array_equal(one, two)


def test_the_inner_model_is_the_users_own(saved, tmp_path):
    _, model = saved
    assert type(model.model).__name__ == "BertTextClassifier"
    model.model.save(tmp_path / "inner.keras")
    with pytest.warns(UserWarning, match="was not called as part"):
        inner = keras.saving.load_model(tmp_path / "inner.keras")
    assert type(inner) is type(model.model)
    assert not any("uegr" in weight.path for weight in inner.weights)
    texts, _ = tiny_texts(4)
    np.testing.assert_allclose(
        inner.predict(texts, verbose=0),
        model.predict(texts, verbose=0),
        atol=1e-6,
    )


def test_a_model_that_training_has_built_is_loaded_with_its_weights(tmp_path):
    x = np.arange(12, dtype="int32").reshape(4, 3)
    model = keras_uegr.UEGRModel(LateModel())
    model.compile(
        keras_uegr.SaliencyMaskedOptimizer("adam"),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    )
    model.fit(x, np.array([0, 1, 2, 0]), verbose=0)
    model.save(tmp_path / "model.keras")
    model.model.save(tmp_path / "inner.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    for one, other in zip(state(model), state(loaded), strict=True):
        np.testing.assert_array_equal(one, other)
    inner = keras.saving.load_model(tmp_path / "inner.keras")
    np.testing.assert_array_equal(
        inner.predict(x, verbose=0), loaded.predict(x, verbose=0)
    )


def assert_weights_load(path, source, target):
    source.save_weights(path)
    target.load_weights(path)
    for one, two in zip(
        source.model.get_weights(), target.model.get_weights(), strict=True
    ):
        np.testing.assert_array_equal(one, two)


@pytest.mark.parametrize(("saved_with", "other"), [(None, 0), (0, None)])
def test_weights_load_whatever_the_warm_up(saved_with, other, tmp_path):
    source, target = (
        keras_uegr.UEGRModel(pooled_model(), warmup_steps=steps)
        for steps in (saved_with, other)
    )
    assert_weights_load(tmp_path / "model.weights.h5", source, target)


@pytest.mark.parametrize("steps", [None, 7])
def test_a_file_without_the_end_of_the_warm_up_loads(steps):
    source, target = (
        keras_uegr.UEGRModel(pooled_model(), warmup_steps=steps)
        for _ in range(2)
    )
    source.state.step.assign(3)
    source.state.divergence.assign(0.25)
    source.state.fraction.assign(0.5)
    store = {}
    source.save_own_variables(store)
    # As earlier versions wrote it where `warmup_steps` was given.
    earlier = {key: x for key, x in store.items() if not key.isdigit()}
    earlier |= {str(i): store[str(i + 1)] for i in range(3)}
    target.load_own_variables(earlier)
    state = target.state
    found = [state.warmup_end, state.step, state.divergence, state.fraction]
    assert [float(variable) for variable in found] == [0, 3, 0.25, 0.5]


def test_a_file_without_the_start_of_the_warm_up_loads():
    source, target = (keras_uegr.UEGRModel(pooled_model()) for _ in range(2))
    source.state.plan_warm_up(4)
    source.state.step.assign(3)
    store = {}
    source.save_own_variables(store)
    del store["4"]
    target.load_own_variables(store)
    assert float(target.state.ramp()) == 0.75


@pytest.mark.parametrize(("saved_with", "other"), [(0.0, 0.1), (0.1, 0.0)])
def test_weights_load_whatever_the_dropout_rate(saved_with, other, tmp_path):
    """A dropout layer of rate 0 has no random state."""
    source, target = (
        keras_uegr.UEGRModel(pooled_model(rate=rate))
        for rate in (saved_with, other)
    )
    assert_weights_load(tmp_path / "model.weights.h5", source, target)


def two_tables():
    """A model in which `embedding` has to be named."""
    token_ids = keras.Input((3,), dtype="int32")
    tables = [keras.layers.Embedding(5, 2, name=name) for name in ("a", "b")]
    embedded = tables[0](token_ids) + tables[1](token_ids)
    pooled = keras.layers.GlobalAveragePooling1D()(embedded)
    hidden = keras.layers.Dense(3, name="hidden")(pooled)
    return keras.Model(token_ids, keras.layers.Dropout(0.1)(hidden))


@pytest.mark.parametrize(
    ("saved_with", "other"),
    [
        ({"embedding": "a"}, {"perturbation": None}),
        ({"perturbation": None}, {"embedding": "a"}),
        ({"embedding": "a"}, {"embedding": "b"}),
        (
            {"embedding": "a", "dropout_layers": ["hidden"]},
            {"embedding": "a", "dropout": None},
        ),
    ],
)
def test_weights_load_whatever_layers_are_named(saved_with, other, tmp_path):
    source, target = (
        keras_uegr.UEGRModel(two_tables(), **settings)
        for settings in (saved_with, other)
    )
    assert_weights_load(tmp_path / "model.weights.h5", source, target)


def test_a_file_with_the_embedding_in_another_place_loads(tmp_path):
    """Earlier versions had it under the name of an attribute."""
    path = tmp_path / "model.weights.h5"
    source, target = (keras_uegr.UEGRModel(pooled_model()) for _ in range(2))
    source.save_weights(path)
    with h5py.File(path, "r+") as file:
        file.move("layers/functional/layers/embedding", "embedding")
        del file["vars/layout"], file.attrs[checksums.ATTRIBUTE]
    target.load_weights(path)
    for one, two in zip(
        source.model.get_weights(), target.model.get_weights(), strict=True
    ):
        np.testing.assert_array_equal(one, two)
    # It is written as it should be.
    target.save_weights(path)
    with h5py.File(path) as file:
        assert "embedding" not in file


@pytest.mark.filterwarnings("ignore:Saving sharded weights requires")
def test_shards_that_keras_names_otherwise_have_checksums(tmp_path):
    model = keras_uegr.UEGRModel(tiny_bert())
    model.save_weights(tmp_path / "model.weights.h5", max_shard_size=1e-5)
    shards = sorted(tmp_path.glob("*.h5"))
    assert len(shards) > 1
    for shard in shards:
        with h5py.File(shard) as file:
            assert checksums.ATTRIBUTE in file.attrs


@pytest.mark.skipif(
    keras.backend.backend() != "torch",
    reason="the other backends draw from seed generators alone",
)
@pytest.mark.parametrize("devices", [0, 1, 3])
def test_random_state_of_gpus_is_restored_where_there_are_any(
    devices, monkeypatch
):
    import torch

    states = [torch.arange(16, dtype=torch.uint8) + i for i in range(2)]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_rng_state_all", lambda: states)
    model, store, found = keras_uegr.UEGRModel(pooled_model()), {}, {}
    model.save_random_state(store)
    of_processor = torch.get_rng_state()
    torch.rand(3)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: devices)
    monkeypatch.setattr(
        torch.cuda,
        "set_rng_state",
        lambda state, device: found.update({device: state.tolist()}),
    )
    # As `BackupAndRestore` does it.
    monkeypatch.setattr(model, "is_fitting", True)
    model.load_random_state(store)
    assert torch.get_rng_state().equal(of_processor)
    # The file is of a machine with two.
    expected = {i: states[i].tolist() for i in range(min(devices, 2))}
    assert found == expected
