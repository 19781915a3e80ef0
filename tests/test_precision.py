"""Training in half precision, with its overflows, and in other dtypes."""

import keras
import numpy as np
import pytest
from keras import ops

import keras_uegr
from tests.backbones import tiny_bert, tiny_inputs

LENGTH = 8


def compiled(inner, **arguments):
    model = keras_uegr.UEGRModel(inner, warmup_steps=0, **arguments)
    model.compile(
        keras_uegr.SaliencyMaskedOptimizer(keras.optimizers.AdamW(0.01)),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    )
    return model


def values_of(variables):
    return {
        variable.path: ops.convert_to_numpy(ops.cast(variable, "float32"))
        for variable in variables
    }


def changed(before, after):
    return {x for x in before if not np.array_equal(before[x], after[x])}


def test_overflow_in_float16_skips_the_step_and_halves_the_scale():
    keras.config.set_dtype_policy("mixed_float16")
    model = compiled(tiny_bert(preprocessor=False, sequence_length=LENGTH))
    x, y = tiny_inputs(4, LENGTH)
    model.train_on_batch(x, y, sample_weight=np.ones(4))
    optimizer = model.optimizer
    assert isinstance(optimizer, keras.optimizers.LossScaleOptimizer)
    masked = optimizer.inner_optimizer
    trained = [*model.model.trainable_variables, *masked.variables]
    before, scale = values_of(trained), float(optimizer.dynamic_scale)
    # Too much for half precision, once it is scaled.
    model.train_on_batch(x, y, sample_weight=np.full(4, 1e6))
    assert changed(before, values_of(trained)) == set()
    assert float(optimizer.dynamic_scale) == scale / 2
    logs = model.train_on_batch(
        x, y, sample_weight=np.ones(4), return_dict=True
    )
    moved = changed(before, values_of(trained))
    assert {x.path for x in model.model.trainable_variables} & moved
    assert np.isfinite(logs["clean_loss"])


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


GOOD, BAD = np.ones((2, 3), "int32"), np.full((2, 3), 13, "int32")
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
        *model.model.trainable_variables,
        *optimizer.variables,
        *model.state.feedback,
    ]
    before = values_of(kept)
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
    assert changed(before, after)


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
