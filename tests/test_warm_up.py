import contextlib

import keras
import numpy as np
import pytest

import keras_uegr
from tests.pooled_model import pooled_model

pytestmark = pytest.mark.slow

STEPS = 5


class EnoughError(Exception):
    pass


def data():
    rng = np.random.default_rng(0)
    token_ids = rng.integers(1, 20, (STEPS * 4, 5)).astype("int32")
    return token_ids, rng.integers(0, 3, STEPS * 4)


def compiled(**arguments):
    keras.utils.set_random_seed(0)
    model = keras_uegr.UEGRModel(pooled_model(), dropout=None, **arguments)
    model.compile(
        keras.optimizers.SGD(0.5),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    )
    return model


def fit(model, **arguments):
    settings = {"batch_size": 4, "epochs": 6, "shuffle": False, "verbose": 0}
    return model.fit(*data(), **settings | arguments)


def weights_after_fit(**arguments):
    model = compiled(**arguments)
    fit(model)
    return model.model.get_weights()


def endless_batches():
    while True:
        token_ids, labels = data()
        yield token_ids[:4], labels[:4]


def test_fit_warms_up_for_ten_percent_of_its_steps():
    expected = weights_after_fit(warmup_steps=3)
    for found, value in zip(weights_after_fit(), expected, strict=True):
        np.testing.assert_allclose(found, value, atol=1e-6)
    none = weights_after_fit(warmup_steps=0)
    assert np.abs(none[1] - expected[1]).max() > 1e-4


def test_perturbation_grows_to_its_full_size():
    model = compiled(perturbation=keras_uegr.FastGradient(0.3))
    model.optimizer.learning_rate = 1e-5
    norms = []
    log = keras.callbacks.LambdaCallback(
        on_train_batch_end=lambda batch, logs: norms.append(
            float(logs["perturbation_norm"])
        )
    )
    fit(model, batch_size=20, epochs=50, callbacks=log)
    expected = np.minimum(np.arange(50) / 5, 1)
    np.testing.assert_allclose(np.divide(norms, norms[-1]), expected, atol=1e-3)


def test_later_fits_start_at_full_strength(tmp_path):
    model = compiled()
    fit(model, epochs=4)
    assert int(model.state.warmup_end) == 2
    fit(model)
    assert int(model.state.warmup_end) == 2
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    fit(loaded)
    assert int(loaded.state.warmup_end) == 2


@pytest.mark.optimized
def test_there_is_none_without_fit():
    token_ids, labels = data()

    def step(**arguments):
        model = compiled(**arguments)
        model.train_on_batch(token_ids, labels)
        return model.model.get_weights()

    for found, value in zip(step(), step(warmup_steps=0), strict=True):
        np.testing.assert_array_equal(found, value)


def test_unknown_number_of_steps_is_told():
    model = compiled()
    with pytest.raises(ValueError, match=r"Pass `steps_per_epoch` to `fit`"):
        model.fit(endless_batches(), verbose=0)
    assert int(model.optimizer.iterations) == 0


@pytest.mark.parametrize(
    ("arguments", "settings"),
    [
        ({}, {"steps_per_epoch": 3}),
        ({"adversarial_weight": 0, "consistency_weight": 0}, {}),
        ({"warmup_steps": 2}, {}),
    ],
    ids=["steps given", "no sub-models", "warm-up given"],
)
def test_number_of_steps_is_asked_for_only_where_needed(arguments, settings):
    class StopAfterThree(keras.callbacks.Callback):
        steps = 0

        def on_train_batch_end(self, batch, logs=None):
            self.steps += 1
            if self.steps == 3:
                raise EnoughError

    stop = StopAfterThree()
    with contextlib.suppress(EnoughError):
        compiled(**arguments).fit(
            endless_batches(), callbacks=[stop], verbose=0, **settings
        )
    assert stop.steps == 3


def test_epochs_that_are_left_out_do_not_count():
    model = compiled()
    fit(model, initial_epoch=6, epochs=12)
    assert int(model.state.warmup_end) == round(0.1 * 6 * STEPS)


def test_it_starts_where_fit_does_and_goes_on_where_it_was_saved(tmp_path):
    token_ids, labels = data()
    model = compiled(perturbation=keras_uegr.FastGradient(0.3))
    model.optimizer.learning_rate = 1e-5
    for _ in range(20):
        model.train_on_batch(token_ids, labels)
    norms = []

    def note(model, stop_after):
        def end(batch, logs):
            norms.append(float(logs["perturbation_norm"]))
            model.stop_training = len(norms) >= stop_after

        log = keras.callbacks.LambdaCallback(on_train_batch_end=end)
        fit(model, batch_size=20, epochs=50, callbacks=log)

    note(model, stop_after=2)
    model.save(tmp_path / "model.keras")
    note(keras.saving.load_model(tmp_path / "model.keras"), stop_after=8)
    expected = np.minimum(np.arange(8) / 5, 1)
    np.testing.assert_allclose(np.divide(norms, norms[-1]), expected, atol=1e-3)
