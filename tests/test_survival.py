"""Training outlives kills, bad files and strangers' files."""

import json
import pathlib
import zipfile

import h5py
import keras
import numpy as np
import pytest

import keras_uegr
from tests import survival_process
from tests.backbones import VOCABULARY, tiny_inputs
from tests.pooled_model import pooled_model

pytestmark = pytest.mark.slow

BACKEND = keras.backend.backend()


def test_killed_training_ends_as_if_it_had_not_been():
    outcomes = survival_process.train_through_kills(2)
    assert list(outcomes) == ["BackupAndRestore", "ModelCheckpoint"]
    for outcome in outcomes.values():
        assert outcome.began == outcome.expected_epochs
        assert outcome.began[-1] > 0
        assert outcome.difference <= survival_process.TOLERANCE


def created(seed=3):
    return survival_process.create(
        seed,
        lambda: pooled_model(
            vocabulary=len(VOCABULARY), hidden=64, classes=2, rate=0.1
        ),
    )


@pytest.fixture
def model():
    return created()


def fit(model, **arguments):
    x, y = tiny_inputs(8)
    model.fit(x["token_ids"], y, 4, verbose=0, shuffle=False, **arguments)
    return survival_process.state(model)


def truncate(path):
    content = path.read_bytes()
    path.write_bytes(content[: len(content) * 2 // 3])


def assert_same(first, second):
    for one, other in zip(first, second, strict=True):
        np.testing.assert_array_equal(one, other)


def test_truncated_backup_falls_back_to_the_one_before(model, tmp_path):
    check_fall_back(model, tmp_path, truncate)


def check_fall_back(model, tmp_path, spoil):
    def backup():
        return keras.callbacks.BackupAndRestore(
            tmp_path, double_checkpoint=True, delete_checkpoint=False
        )

    fit(model, epochs=2, callbacks=[backup()])
    spoil(tmp_path / "latest.weights.h5")
    epochs = []
    resumed = created(seed=77)
    log = keras.callbacks.LambdaCallback(
        on_epoch_begin=lambda epoch, logs: epochs.append(epoch)
    )
    fit(resumed, epochs=3, callbacks=[backup(), log])
    assert epochs == [1, 2]


def test_model_checkpoint_resumes(model, tmp_path):
    path = tmp_path / "{epoch}.keras"
    checkpoint = keras.callbacks.ModelCheckpoint(path)
    expected = fit(model, epochs=3, callbacks=[checkpoint])
    if BACKEND == "torch":
        keras.utils.set_random_seed(77)
    resumed = keras.saving.load_model(tmp_path / "2.keras")
    actual = fit(resumed, epochs=3, initial_epoch=2)
    assert len(actual) == len(expected)
    for one, other in zip(actual, expected, strict=True):
        np.testing.assert_allclose(
            one, other, rtol=0, atol=survival_process.TOLERANCE
        )


def test_truncated_model_file_is_refused(model, tmp_path):
    fit(model)
    model.save(tmp_path / "model.keras")
    truncate(tmp_path / "model.keras")
    with pytest.raises((ValueError, zipfile.BadZipFile), match="zip"):
        keras.saving.load_model(tmp_path / "model.keras")


def test_changed_model_file_is_refused(model, tmp_path):
    fit(model)
    path = tmp_path / "model.keras"
    model.save(path)
    with zipfile.ZipFile(path) as archive:
        weights = archive.getinfo("model.weights.h5")
    content = bytearray(path.read_bytes())
    content[weights.header_offset + weights.file_size // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(zipfile.BadZipFile, match="CRC"):
        keras.saving.load_model(path)


def test_truncated_weights_leave_the_model_alone(model, tmp_path):
    before = fit(model)
    path = tmp_path / "model.weights.h5"
    model.save_weights(path)
    truncate(path)
    with pytest.raises(OSError, match="truncated"):
        model.load_weights(path)
    assert_same(before, survival_process.state(model))


def change_weights(path):
    """Change one bit among the weights of a `.weights.h5` file."""
    with h5py.File(path, "r") as file:
        arrays = []
        file.visititems(lambda name, item: arrays.append(item))
        largest = max(arrays, key=lambda item: getattr(item, "nbytes", 0))
        place = largest.id.get_offset() + largest.nbytes // 2
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("name", ["model.weights.h5", "model.weights.json"])
def test_changed_weights_leave_the_model_alone(model, tmp_path, name):
    before = fit(model)
    size = None if name.endswith(".h5") else 6e-6
    model.save_weights(tmp_path / name, max_shard_size=size)
    model.load_weights(tmp_path / name)
    files = sorted(tmp_path.glob("*.h5"))
    assert (len(files) > 1) == name.endswith(".json")
    change_weights(files[0])
    with pytest.raises(OSError, match="have changed since they were saved"):
        model.load_weights(tmp_path / name)
    assert_same(before, survival_process.state(model))


def test_changed_backup_falls_back_to_the_one_before(model, tmp_path):
    check_fall_back(model, tmp_path, change_weights)


def test_weights_of_keras_have_no_checksum_and_load(model, tmp_path):
    expected = fit(model)
    path = tmp_path / "model.weights.h5"
    keras.Model.save_weights(model, path)
    resumed = created(seed=77)
    resumed.optimizer.build(resumed.trainable_variables)
    resumed.load_weights(path)
    assert_same(expected, survival_process.state(resumed))


def test_weights_of_another_model_leave_the_model_alone(model, tmp_path):
    path = tmp_path / "model.weights.h5"
    # The wrapped model fits, so that loading fails half-way only.
    plain = keras_uegr.UEGRModel(model.model, dropout=None)
    plain.compile("sgd", "mse")
    model.save_weights(path)
    before = fit(model)
    with pytest.raises(ValueError, match="could not be loaded"):
        model.load_weights(path)
    assert_same(before, survival_process.state(model))


def rewritten(path, change):
    """Let `change` edit the configuration in a `.keras` file."""
    with zipfile.ZipFile(path) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    config = json.loads(parts["config.json"])
    change(config)
    parts["config.json"] = json.dumps(config)
    with zipfile.ZipFile(path, "w") as archive:
        for name, part in parts.items():
            archive.writestr(name, part)


@pytest.mark.parametrize("part", ["perturbation", "dropout", "preprocessor"])
def test_a_strangers_file_runs_no_code(model, tmp_path, part):
    path, target = tmp_path / "model.keras", tmp_path / "made"

    def call_a_function(config):
        config["config"][part] = {
            "module": "os",
            "class_name": "mkdir",
            "config": {"path": str(target)},
            "registered_name": None,
        }

    fit(model)
    model.save(path)
    rewritten(path, call_a_function)
    with pytest.raises((TypeError, ValueError)):
        keras.saving.load_model(path)
    assert not target.exists()


def test_a_strangers_lambda_is_refused(tmp_path):
    inner = keras.Sequential(
        [
            keras.layers.Embedding(9, 4),
            keras.layers.Lambda(lambda x: x),
            keras.layers.Dropout(0.1),
            keras.layers.GlobalAveragePooling1D(),
            keras.layers.Dense(2),
        ]
    )
    inner.build((None, 5))
    model = keras_uegr.UEGRModel(inner)
    model.save(tmp_path / "model.keras")
    with pytest.raises(ValueError, match="[Ll]ambda"):
        keras.saving.load_model(tmp_path / "model.keras")


def test_a_strangers_saliency_is_not_run(tmp_path):
    path, target = tmp_path / "model.keras", str(tmp_path / "made")
    model = keras_uegr.UEGRModel(pooled_model())
    model.compile(
        keras_uegr.SaliencyMaskedOptimizer(
            "sgd",
            saliency=lambda value, gradient: (
                open(target, "w").close() or gradient * gradient
            ),
        ),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    )
    with pytest.warns(UserWarning, match="lambda"):
        model.save(path)
    with pytest.raises(ValueError, match="deserialization of a Python lambda"):
        keras.saving.load_model(path)
    assert not pathlib.Path(target).exists()
    # It is safe mode that kept it from running.
    trusted = keras.saving.load_model(path, safe_mode=False)
    trusted.train_on_batch(np.ones((2, 3), "int32"), np.array([0, 1]))
    assert pathlib.Path(target).exists()
