"""What Keras' `fit` offers works with `UEGRModel` too."""

import csv

import keras
import numpy as np
import pytest
from keras import ops

import keras_uegr
from tests import reference
from tests.pooled_model import pooled_model

pytestmark = pytest.mark.slow


def token_batches(examples=8):
    rng = np.random.default_rng(0)
    x = rng.integers(1, 20, (examples, 7)).astype("int32")
    return x, rng.integers(0, 3, examples)


def compiled(
    optimizer=None, of_compile=(), density=0.4, inner=None, **of_optimizer
):
    """A model without randomness."""
    parameters = reference.random_parameters(20, 5, 4, 3)
    model = keras_uegr.UEGRModel(
        inner or pooled_model(parameters=parameters, mask_zero=True),
        dropout=keras_uegr.AdaptiveDropout(0.0, 0.0),
        token_share=1,
        include_clean=True,
        warmup_steps=0,
    )
    model.compile(
        keras_uegr.SaliencyMaskedOptimizer(
            optimizer or keras.optimizers.SGD(0.2, momentum=0.9),
            density=density,
            exact=True,
            **of_optimizer,
        ),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        **dict(of_compile),
    )
    return model


def weights_of(model):
    return [ops.convert_to_numpy(weight) for weight in model.model.weights]


def weights_after_fit(model, batch_size, **arguments):
    x, y = token_batches()
    model.fit(
        x, y, batch_size=batch_size, shuffle=False, verbose=0, **arguments
    )
    return weights_of(model)


def assert_same(first, second):
    for one, other in zip(first, second, strict=True):
        np.testing.assert_allclose(one, other, rtol=0, atol=2e-6)


def test_accumulated_micro_batches_are_one_batch():
    whole = weights_after_fit(compiled(), 8)
    parts = weights_after_fit(compiled(gradient_accumulation_steps=4), 2)
    assert_same(whole, parts)


@pytest.mark.skipif(
    keras.backend.backend() == "torch",
    reason="Keras refuses `steps_per_execution` on PyTorch",
)
def test_several_steps_in_one_execution_are_the_same_steps():
    model = compiled(of_compile={"steps_per_execution": 2})
    one = weights_after_fit(compiled(), 2)
    assert_same(one, weights_after_fit(model, 2))


@pytest.mark.skipif(
    keras.backend.backend() != "torch",
    reason="Keras runs several steps in one execution",
)
def test_several_steps_in_one_execution_are_refused():
    model = compiled(of_compile={"steps_per_execution": 2})
    with pytest.raises(ValueError, match="`steps_per_execution` must be 1"):
        weights_after_fit(model, 2)


class CountingPolicy(keras_uegr.DropoutPolicy):
    """Counts how often Python runs it."""

    calls = 0

    def fractions(self, signals):
        self.calls += 1
        return keras_uegr.ConfidencePolicy().fractions(signals)


def test_run_eagerly_takes_the_same_steps_in_python():
    results = []
    for run_eagerly in (False, True):
        model = compiled(of_compile={"run_eagerly": run_eagerly})
        model.dropout.policy = policy = CountingPolicy()
        results.append(weights_after_fit(model, 2))
    assert policy.calls == 4
    assert_same(*results)


@pytest.mark.skipif(
    keras.backend.backend() == "torch",
    reason="`torch.compile` takes minutes for a tiny model",
)
def test_compiled_steps_are_the_steps_that_are_not_compiled():
    results = []
    for options in ({"jit_compile": True}, {"run_eagerly": True}):
        model = compiled(of_compile={"jit_compile": False, **options})
        assert model.has_sub_models
        x, y = token_batches()
        history = model.fit(x, y, batch_size=4, shuffle=False, verbose=0)
        logs = {name: values[0] for name, values in history.history.items()}
        assert logs["js_divergence"] > 1e-4
        assert 0 < logs["updated_fraction"] < 1
        results.append((logs, weights_of(model)))
    (logs, weights), (expected_logs, expected_weights) = results
    assert_same(weights, expected_weights)
    assert logs == pytest.approx(expected_logs, rel=1e-4)


def test_train_on_batch_is_a_step_of_fit():
    model = compiled()
    model.train_on_batch(*token_batches())
    assert_same(weights_of(model), weights_after_fit(compiled(), 8))


@pytest.mark.parametrize(
    "name", ["loss", "clean_loss", "adversarial_loss", "js_divergence"]
)
def test_the_reported_loss_is_that_of_the_examples_whatever_the_batches(name):
    model = compiled(keras.optimizers.SGD(0.0))
    x, y = token_batches()
    each = [
        model.fit(x[rows], y[rows], verbose=0).history[name][0]
        for rows in (slice(0, 3), slice(3, 4))
    ]
    assert each[0] != pytest.approx(each[1], rel=0.01)
    together = model.fit(x[:4], y[:4], batch_size=3, shuffle=False, verbose=0)
    assert together.history[name][0] == pytest.approx(
        (3 * each[0] + each[1]) / 4, rel=1e-4
    )


def test_csv_logger_and_initial_epoch(tmp_path):
    model = compiled()
    path = tmp_path / "log.csv"
    logger = keras.callbacks.CSVLogger(path)
    weights_after_fit(model, 8, initial_epoch=3, epochs=5, callbacks=[logger])
    with path.open() as file:
        rows = list(csv.DictReader(file))
    assert [row["epoch"] for row in rows] == ["3", "4"]
    names = {"loss", *model.training_metrics}
    assert all(np.isfinite(float(row[name])) for row in rows for name in names)
    assert int(model.state.step) == 2


def test_early_stopping_restores_the_best_weights():
    x, y = token_batches()
    model = compiled(keras.optimizers.SGD(0.2))
    seen = []

    class Spoil(keras.callbacks.Callback):
        """After the first epoch, weights that are wrong on purpose."""

        def on_epoch_begin(self, epoch, logs=None):
            if epoch:
                model.optimizer.learning_rate = 50.0

        def on_epoch_end(self, epoch, logs=None):
            seen.append(weights_of(model))

    stopping = keras.callbacks.EarlyStopping(
        patience=1, restore_best_weights=True
    )
    model.fit(
        x,
        y,
        validation_data=(x, y),
        batch_size=8,
        epochs=4,
        verbose=0,
        callbacks=[Spoil(), stopping],
    )
    assert len(seen) == 2
    assert np.abs(seen[0][0] - seen[1][0]).max() > 0.1
    assert_same(weights_of(model), seen[0])


def test_a_layer_frozen_between_two_fits_keeps_every_bit():
    model = compiled()
    first = weights_after_fit(model, 8)
    model.model.get_layer("hidden").trainable = False
    model.compile(
        keras_uegr.SaliencyMaskedOptimizer("sgd", density=0.4),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    )
    second = weights_after_fit(model, 8)
    changed = [
        bool((one != other).any())
        for one, other in zip(first, second, strict=True)
    ]
    assert changed == [True, False, False, True, True]


def test_a_variable_excluded_from_weight_decay_does_not_decay():
    def step(exclude):
        optimizer = keras_uegr.SaliencyMaskedOptimizer(
            keras.optimizers.SGD(0.1, weight_decay=0.5), density=1.0
        )
        if exclude:
            optimizer.exclude_from_weight_decay(var_names=["excluded"])
        variables = [
            keras.Variable([2.0, -2.0], name=name)
            for name in ("excluded", "other")
        ]
        gradients = [ops.zeros(2)] * 2
        optimizer.apply(gradients, variables)
        return [ops.convert_to_numpy(variable) for variable in variables]

    excluded, other = step(exclude=True)
    np.testing.assert_array_equal(excluded, [2.0, -2.0])
    np.testing.assert_allclose(other, [1.9, -1.9], rtol=1e-6)
    decayed, _ = step(exclude=False)
    np.testing.assert_allclose(decayed, [1.9, -1.9], rtol=1e-6)


def test_a_schedule_sets_the_learning_rate_of_each_step():
    schedule = keras.optimizers.schedules.PiecewiseConstantDecay(
        [1], [0.2, 0.0]
    )
    two_steps = weights_after_fit(compiled(keras.optimizers.SGD(0.2)), 4)
    model = compiled(keras.optimizers.SGD(schedule))
    assert_same(weights_after_fit(model, 4, epochs=3), two_steps)


def test_a_schedule_warms_the_learning_rate_up():
    schedule = keras.optimizers.schedules.CosineDecay(
        0.0, decay_steps=8, warmup_target=0.4, warmup_steps=4
    )
    model = compiled(keras.optimizers.SGD(schedule))
    warm = weights_after_fit(model, 8, epochs=4)
    by_hand = keras.callbacks.LearningRateScheduler(lambda epoch: 0.1 * epoch)
    model = compiled(keras.optimizers.SGD(0.2))
    expected = weights_after_fit(model, 8, epochs=4, callbacks=[by_hand])
    assert_same(warm, expected)


def model_of_two_inputs(kind):
    """The pooled model, its embedding scaled by a second input."""
    inner = pooled_model(
        parameters=reference.random_parameters(20, 5, 4, 3), mask_zero=True
    )
    factor = keras.Input((1,), name="factor")
    outputs = inner.output * factor
    inputs = [inner.input, factor]
    if kind == "dictionary":
        inputs = {"token_ids": inner.input, "factor": factor}
    return keras.Model(inputs, outputs)


@pytest.mark.parametrize("kind", ["dictionary", "list"])
def test_several_inputs(kind):
    x, y = token_batches()
    factor = np.ones((len(x), 1), "float32")
    inputs = {"token_ids": x, "factor": factor}
    model = compiled(inner=model_of_two_inputs(kind))
    model.fit(
        inputs if kind == "dictionary" else list(inputs.values()),
        y,
        batch_size=4,
        shuffle=False,
        verbose=0,
    )
    assert_same(weights_of(model), weights_after_fit(compiled(), 4))


def test_moving_averages_replace_the_weights_after_fit():
    averaged = compiled(
        keras.optimizers.SGD(0.2, use_ema=True, ema_momentum=0.0)
    )
    unmasked = compiled(keras.optimizers.SGD(0.2), density=1.0)
    # Averages that forget the past are the steps proposed, without the mask.
    assert_same(weights_after_fit(averaged, 8), weights_after_fit(unmasked, 8))


@pytest.mark.parametrize("dtype", ["float32", "mixed_float16"])
def test_moving_averages_are_swapped_in_for_validation(dtype):
    keras.config.set_dtype_policy(dtype)

    def validated_and_final(*callbacks):
        model = compiled(
            keras.optimizers.SGD(0.2, use_ema=True, ema_momentum=0.9)
        )
        seen = []
        look = keras.callbacks.LambdaCallback(
            on_test_begin=lambda logs: seen.extend(weights_of(model))
        )
        final = weights_after_fit(
            model,
            4,
            validation_data=token_batches(),
            callbacks=[*callbacks, look],
        )
        return seen, final

    # At its end, `fit` makes the averages the weights.
    trained, averages = validated_and_final()
    assert np.abs(trained[0] - averages[0]).max() > 1e-3
    assert_same(*validated_and_final(keras.callbacks.SwapEMAWeights()))


def test_tensorboard_shows_the_metrics_of_training(tmp_path):
    from tensorboard.backend.event_processing import event_accumulator

    model = compiled()
    board = keras.callbacks.TensorBoard(tmp_path)
    weights_after_fit(model, 8, epochs=2, callbacks=[board])
    events = event_accumulator.EventAccumulator(
        str(tmp_path / "train"), size_guidance={"tensors": 0}
    ).Reload()
    shown = set(events.Tags()["tensors"])
    assert {f"epoch_{name}" for name in model.training_metrics} < shown
    assert len(events.Tensors("epoch_adversarial_loss")) == 2


def test_a_clone_trains_like_the_original():
    model = compiled()
    clone = keras_uegr.UEGRModel.from_config(model.get_config())
    clone.compile_from_config(model.get_compile_config())
    clone.set_weights(model.get_weights())
    assert clone.model is not model.model
    expected = weights_after_fit(model, 4)
    assert_same(weights_after_fit(clone, 4), expected)


def test_several_optimizers_inside_the_mask_each_update_their_own():
    def inner(variable):
        is_hidden = "hidden" in variable.path
        return keras.optimizers.SGD(0.5 if is_hidden else 0.2)

    several = weights_after_fit(
        compiled(keras.optimizers.MultiOptimizer(inner)), 8
    )
    fast = weights_after_fit(compiled(keras.optimizers.SGD(0.5)), 8)
    slow = weights_after_fit(compiled(keras.optimizers.SGD(0.2)), 8)
    embedding, *hidden_and_head = slow
    expected = [embedding, *fast[1:3], *hidden_and_head[2:]]
    assert_same(several, expected)
    assert np.abs(several[1] - slow[1]).max() > 1e-3


def with_mask_inside(is_function=False):
    """A `MultiOptimizer` around a masked one and another."""
    masked = keras_uegr.SaliencyMaskedOptimizer("sgd", density=0.4)
    optimizers = keras.optimizers.OptimizerMap(
        keras.optimizers.SGD(0.1), {"hidden/.*": masked}
    )
    return keras.optimizers.MultiOptimizer(
        (lambda variable: optimizers(variable)) if is_function else optimizers
    )


def compiled_with(optimizer):
    model = keras_uegr.UEGRModel(pooled_model(mask_zero=True))
    model.compile(
        optimizer,
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    )
    return model


@pytest.mark.parametrize(
    "outside",
    [lambda optimizer: optimizer, keras.optimizers.LossScaleOptimizer],
    ids=["alone", "scaled"],
)
def test_a_mask_inside_of_several_optimizers_is_refused(outside):
    with pytest.raises(
        ValueError,
        match=r"`SaliencyMaskedOptimizer\(MultiOptimizer.*Received: optimizer=",
    ):
        compiled_with(outside(with_mask_inside()))


def test_a_mask_that_a_function_gives_is_refused_in_the_first_step():
    model = compiled_with(with_mask_inside(is_function=True))
    with pytest.raises(ValueError, match="not inside"):
        weights_after_fit(model, 8)
