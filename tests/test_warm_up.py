import contextlib

import keras
import numpy as np
import pytest
from keras import ops

import keras_uegr
from tests import reference
from tests.pooled_model import pooled_model

pytestmark = pytest.mark.slow

STEPS = 5


class EnoughError(Exception):
    pass


def data():
    rng = np.random.default_rng(0)
    token_ids = rng.integers(1, 20, (STEPS * 4, 5)).astype("int32")
    return token_ids, rng.integers(0, 3, STEPS * 4)


def compiled(inner=None, dropout=None, **arguments):
    keras.utils.set_random_seed(0)
    model = keras_uegr.UEGRModel(
        inner or pooled_model(), dropout=dropout, **arguments
    )
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


def test_noise_grows_to_its_full_size():
    model = compiled(
        pooled_model(width=50),
        perturbation=keras_uegr.UniformNoise(0.3, relative=False),
        warmup_steps=4,
    )
    norms = []
    for _ in range(6):
        model.reset_metrics()
        logs = model.train_on_batch(*data(), return_dict=True)
        norms.append(float(logs["perturbation_norm"]))
    expected = np.minimum(np.arange(6) / 4, 1)
    np.testing.assert_allclose(
        np.divide(norms, np.mean(norms[4:])), expected, atol=0.05
    )


@pytest.mark.parametrize("train_on_steps", [False, True])
def test_both_losses_rise_linearly(train_on_steps):
    model = compiled(
        pooled_model(parameters=reference.random_parameters(20, 5, 4, 3)),
        keras_uegr.AdaptiveDropout(0.3, 0.6),
        perturbation=keras_uegr.ProjectedGradient(
            0.3, train_on_steps=train_on_steps
        ),
        warmup_steps=4,
    )
    model.optimizer.learning_rate = 0.0
    for number in range(6):
        model.reset_metrics()
        logs = model.train_on_batch(*data(), return_dict=True)
        assert logs["adversarial_loss"] > 0.1
        assert logs["js_divergence"] > 1e-4
        extra = logs["adversarial_loss"] + 5.0 * logs["js_divergence"]
        assert logs["loss"] - logs["clean_loss"] == pytest.approx(
            min(number / 4, 1) * extra, rel=1e-4, abs=1e-6
        )


def test_the_shortest_warm_up_is_one_step():
    model, norms = compiled(), []
    log = keras.callbacks.LambdaCallback(
        on_epoch_end=lambda epoch, logs: norms.append(logs["perturbation_norm"])
    )
    fit(model, batch_size=20, epochs=2, callbacks=log)
    assert int(model.state.warmup_end) == 1
    assert norms[0] == 0 < norms[1]


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


def test_early_stopping_puts_its_step_back():
    model = compiled()
    model.optimizer.learning_rate = 0.0
    stopping = keras.callbacks.EarlyStopping(
        patience=2, restore_best_weights=True
    )
    # Nothing is learnt, so the first epoch is the best one.
    fit(
        model,
        batch_size=20,
        epochs=40,
        validation_data=data(),
        callbacks=stopping,
    )
    assert int(model.state.warmup_end) == 4
    assert int(model.state.step) == 1
    assert float(ops.convert_to_numpy(model.state.ramp())) == 0.25
