"""Training in half precision, with its overflows, and in other dtypes."""

import keras
import numpy as np
import pytest
from keras import ops

import keras_uegr
from tests.backbones import tiny_bert, tiny_inputs

pytestmark = pytest.mark.slow

LENGTH = 8


def compiled(inner, of_optimizer=(), **arguments):
    model = keras_uegr.UEGRModel(inner, warmup_steps=0, **arguments)
    model.compile(
        keras_uegr.SaliencyMaskedOptimizer(
            keras.optimizers.AdamW(0.01), **dict(of_optimizer)
        ),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    )
    return model


def values_of(variables):
    values = {
        variable.path: ops.convert_to_numpy(ops.cast(variable, "float32"))
        for variable in variables
    }
    assert len(values) == len(variables)
    return values


def changed(before, after):
    return {x for x in before if not np.array_equal(before[x], after[x])}


@pytest.mark.parametrize(
    ("of_model", "of_optimizer"),
    [
        ({}, {"saliency": "fisher"}),
        ({"skip_nonfinite": True}, {"saliency": "fisher"}),
        # Of two good steps and a bad one between, an update is made.
        ({}, {"gradient_accumulation_steps": 2}),
    ],
    ids=["fisher", "skipping", "accumulation"],
)
def test_overflow_in_float16_skips_the_step_and_halves_the_scale(
    of_model, of_optimizer
):
    keras.config.set_dtype_policy("mixed_float16")
    inner = tiny_bert(preprocessor=False, sequence_length=LENGTH)
    model = compiled(inner, of_optimizer, **of_model)
    x, y = tiny_inputs(4, LENGTH)
    model.train_on_batch(x, y, sample_weight=np.ones(4))
    optimizer = model.optimizer
    assert isinstance(optimizer, keras.optimizers.LossScaleOptimizer)
    everything = [*model.variables, *optimizer.variables]
    before, scale = values_of(everything), float(optimizer.dynamic_scale)
    model.reset_metrics()
    # Too much for half precision, once it is scaled.
    logs = model.train_on_batch(
        x, y, sample_weight=np.full(4, 1e6), return_dict=True
    )
    assert logs.get("skipped_steps", 1) == 1
    moved = changed(before, values_of(everything))
    drawn = {path for path in moved if path.endswith("seed_generator_state")}
    # The warm-up counts the steps of `fit`, whatever becomes of them.
    assert moved - drawn == {
        optimizer.dynamic_scale.path,
        optimizer.step_counter.path,
        model.state.step.path,
    }
    assert float(optimizer.dynamic_scale) == scale / 2
    model.reset_metrics()
    logs = model.train_on_batch(
        x, y, sample_weight=np.ones(4), return_dict=True
    )
    assert logs.get("skipped_steps", 0) == 0
    assert np.isfinite(logs["clean_loss"])
    trained = values_of(model.model.trainable_variables)
    moved = changed(trained, before)
    assert {path for path in trained if "kernel" in path} & moved
    assert all(np.isfinite(x).all() for x in trained.values())


def normalized():
    """A classifier with running means, which NaN would stay in."""
    token_ids = keras.Input((None,), dtype="int32")
    hidden = keras.layers.Embedding(20, 4)(token_ids)
    hidden = keras.layers.GlobalAveragePooling1D()(hidden)
    hidden = keras.layers.Dropout(0.1)(hidden)
    hidden = keras.layers.BatchNormalization()(hidden)
    return keras.Model(token_ids, keras.layers.Dense(2)(hidden))


def test_an_overflow_of_the_scaled_gradient_alone_spoils_nothing():
    keras.config.set_dtype_policy("mixed_float16")
    model = keras_uegr.UEGRModel(normalized(), warmup_steps=0)
    optimizer = keras.optimizers.LossScaleOptimizer(
        keras_uegr.SaliencyMaskedOptimizer("adam"), initial_scale=2.0**24
    )
    model.compile(
        optimizer, keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    )
    x, y = GOOD, LABELS
    logs = model.train_on_batch(x, y, return_dict=True)
    assert float(optimizer.dynamic_scale) == 2.0**23
    assert all(np.isfinite(value) for value in logs.values())
    assert np.isfinite(model.evaluate(x, y, verbose=0))


def test_an_overflow_selects_nothing_anew():
    keras.config.set_dtype_policy("mixed_float16")
    model = keras_uegr.UEGRModel(
        tiny_bert(preprocessor=False, sequence_length=LENGTH),
        warmup_steps=0,
        sub_models_select=True,
    )
    optimizer = keras_uegr.SaliencyMaskedOptimizer("sgd", refresh_steps=None)
    model.compile(
        optimizer, keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    )
    x, y = tiny_inputs(4, LENGTH)
    model.train_on_batch(x, y, sample_weight=np.ones(4))
    masks = [v for v in optimizer.variables if v.path.endswith("_mask")]
    before = values_of(masks)
    assert len(before) > 5
    assert any(mask.any() for mask in before.values())
    model.train_on_batch(x, y, sample_weight=np.full(4, 1e6))
    assert not changed(before, values_of(masks))
    other, labels = tiny_inputs(4, LENGTH, seed=1)
    model.train_on_batch(other, labels, sample_weight=np.ones(4))
    assert changed(before, values_of(masks))


class Poison(keras.layers.Layer):
    """Passes on what it gets, but for NaN or infinity where the id is 13."""

    def __init__(self, value):
        super().__init__()
        self.value = value

    def call(self, token_ids, hidden):
        poisoned = ops.any(ops.equal(token_ids, 13))
        return hidden * ops.where(poisoned, self.value, 1.0)


def poisonable(value, optimizer=None, **arguments):
    """A model that a token of id 13 gives a loss that isn't finite."""
    token_ids = keras.Input((None,), dtype="int32")
    embedded = keras.layers.Embedding(20, 4)(token_ids)
    hidden = keras.layers.GlobalAveragePooling1D()(embedded)
    hidden = keras.layers.Dropout(0.1)(Poison(value)(token_ids, hidden))
    hidden = keras.layers.BatchNormalization()(hidden)
    outputs = keras.layers.Dense(2)(hidden)
    model = keras_uegr.UEGRModel(
        keras.Model(token_ids, outputs), warmup_steps=0, **arguments
    )
    model.compile(
        optimizer
        or keras_uegr.SaliencyMaskedOptimizer(keras.optimizers.AdamW(0.01)),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    )
    return model


GOOD = np.arange(1, 7, dtype="int32").reshape(2, 3)
BAD = np.full((2, 3), 13, "int32")
LABELS = np.array([0, 1])


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("accumulation", [None, 2])
def test_a_step_that_is_not_finite_is_left_out(value, accumulation):
    optimizer = keras_uegr.SaliencyMaskedOptimizer(
        keras.optimizers.AdamW(0.01), gradient_accumulation_steps=accumulation
    )
    dropout = keras_uegr.AdaptiveDropout(policy="divergence")
    model = poisonable(value, optimizer, skip_nonfinite=True, dropout=dropout)
    model.train_on_batch(GOOD, LABELS)
    kept = [
        *model.model.weights,
        *optimizer.variables,
        *model.state.feedback,
    ]
    before = values_of(kept)
    assert any("moving_variance" in path for path in before)
    model.reset_metrics()
    logs = model.train_on_batch(BAD, LABELS, return_dict=True)
    assert logs["skipped_steps"] == 1
    assert logs["updated_fraction"] == 0
    assert changed(before, values_of(kept)) == set()
    model.reset_metrics()
    for _ in range(2):
        logs = model.train_on_batch(GOOD, LABELS, return_dict=True)
    assert logs["skipped_steps"] == 0
    assert np.isfinite(logs["loss"])
    after = values_of(kept)
    assert all(np.isfinite(x).all() for x in after.values())
    moved = changed(before, after)
    # The running means of good batches go on.
    assert {x for x in before if "/moving_" in x or "/kernel" in x} <= moved
    assert np.isfinite(model.predict(GOOD, verbose=0)).all()


def test_skipped_steps_are_counted():
    model = poisonable(np.nan, skip_nonfinite=True)
    x, y = np.concatenate([BAD, GOOD, BAD]), np.concatenate([LABELS] * 3)
    logs = model.fit(x, y, batch_size=2, shuffle=False, verbose=0).history
    assert logs["skipped_steps"] == [2]


def test_a_step_is_left_out_where_no_gradient_is_that_of_a_table():
    """There is no list of rows among the gradients then."""
    model = poisonable(np.nan, keras.optimizers.SGD(0.1), skip_nonfinite=True)
    model.embedding.trainable = False
    model.compile(model.optimizer, model.loss)
    weights = model.model.weights
    before = values_of(weights)
    logs = model.train_on_batch(BAD, LABELS, return_dict=True)
    assert logs["skipped_steps"] == 1
    assert changed(before, values_of(weights)) == set()


def test_what_selects_may_overflow_where_the_rest_does_not():
    keras.config.set_dtype_policy("mixed_float16")
    model = keras_uegr.UEGRModel(
        tiny_bert(preprocessor=False, sequence_length=LENGTH),
        # The sub-models' gradient alone is this large.
        consistency_weight=1e9,
        warmup_steps=0,
        sub_models_select=True,
        skip_nonfinite=True,
    )
    optimizer = keras_uegr.SaliencyMaskedOptimizer("sgd", refresh_steps=None)
    model.compile(
        optimizer, keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    )
    before = values_of(model.model.trainable_variables)
    logs = model.train_on_batch(*tiny_inputs(4, LENGTH), return_dict=True)
    assert logs["skipped_steps"] == 1
    assert not changed(before, values_of(model.model.trainable_variables))


def test_without_being_asked_to_nothing_is_left_out():
    model = poisonable(np.nan)
    logs = model.train_on_batch(BAD, LABELS, return_dict=True)
    assert "skipped_steps" not in logs
    weights = values_of(model.model.trainable_variables)
    assert not all(np.isfinite(x).all() for x in weights.values())


def test_an_overflow_does_not_spoil_the_feedback_of_the_dropout():
    dropout = keras_uegr.AdaptiveDropout(policy="divergence")
    model = poisonable(np.nan, keras.optimizers.SGD(0.0), dropout=dropout)
    model.train_on_batch(GOOD, LABELS)
    before = values_of(model.state.feedback)
    assert before["uegr_model/dropout_fraction"] > 0
    model.train_on_batch(BAD, LABELS)
    after = values_of(model.state.feedback)
    assert all(np.isfinite(x) for x in after.values())
