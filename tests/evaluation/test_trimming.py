import importlib.util

import keras
import numpy as np
import pytest
from keras import ops

import keras_uegr
from keras_uegr.evaluation import TextAttackModelWrapper, trimming
from tests.backbones import VOCABULARY, randomize, tiny_bert, tiny_texts

needs_textattack = pytest.mark.skipif(
    importlib.util.find_spec("textattack") is None,
    reason="TextAttack is not installed: see the README",
)
LENGTH = 40


def batch(used, total):
    """Token ids and mask of texts that use so many of all positions."""
    mask = np.arange(total) < np.array(used)[:, None]
    return {"token_ids": np.where(mask, 7, 0), "padding_mask": mask}


@pytest.mark.parametrize(
    ("used", "expected"),
    [
        ([0], 8),
        ([1, 3], 8),
        ([8, 2], 8),
        ([9], 16),
        ([17], 24),
        ([32], 32),
        ([33], 48),
        ([65, 1], 96),
        ([90], 90),
    ],
)
def test_length_left(used, expected):
    x = batch(used, total=max(90, expected))
    x = {name: value[:, :90] for name, value in x.items()}
    trimmed = trimming.trim({k: ops.convert_to_tensor(v) for k, v in x.items()})
    for name, value in trimmed.items():
        value = ops.convert_to_numpy(value)
        np.testing.assert_array_equal(value, x[name][:, :expected])
        assert value.shape[1] == min(90, expected)
    # Nothing but padding is left out.
    left = ops.convert_to_numpy(trimmed["padding_mask"])
    assert left.sum() == x["padding_mask"].sum()


def test_padding_at_the_start_stays():
    x = {name: value[:, ::-1] for name, value in batch([3], 40).items()}
    assert trimming.trim(x)["token_ids"].shape == (1, 40)


def test_what_can_be_trimmed():
    x = batch([3], 12)

    def model(**lengths):
        inputs = {k: keras.Input((v,), name=k) for k, v in lengths.items()}
        total = sum(ops.sum(each, axis=-1) for each in inputs.values())
        return keras.Model(inputs, total)

    assert trimming.is_possible(model(token_ids=None, padding_mask=None), x)
    assert not trimming.is_possible(model(token_ids=12, padding_mask=12), x)
    assert not trimming.is_possible(model(token_ids=None), x)
    tokens = {"token_ids": x["token_ids"]}
    assert not trimming.is_possible(model(token_ids=None), tokens)
    assert not trimming.is_possible(keras.Sequential(), x)
    x["other"] = np.zeros((1, 5))
    longer = model(token_ids=None, padding_mask=None, other=None)
    assert not trimming.is_possible(longer, x)


@needs_textattack
@pytest.mark.parametrize("pooling", [None, "average", "max"])
def test_outputs_are_those_with_all_padding(pooling, monkeypatch):
    model = tiny_bert(sequence_length=LENGTH)
    if pooling:
        model = keras_uegr.UEGRModel(
            pool_of_all_positions(pooling),
            dropout=None,
            preprocessor=model.preprocessor,
        )
    seen = []
    trim = trimming.trim

    def record(x):
        trimmed = trim(x)
        seen.append(trimmed["token_ids"].shape)
        return trimmed

    wrapper = TextAttackModelWrapper(model, batch_size=4)
    monkeypatch.setattr(trimming, "trim", record)
    texts, _ = tiny_texts(7)
    rows = wrapper(texts)
    outputs = np.asarray(model.predict(texts, verbose=0), "float64")
    expected = ops.convert_to_numpy(ops.softmax(outputs))
    np.testing.assert_allclose(rows, expected, atol=1e-5)
    # Where a new number of texts is traced anew, three are made four.
    last = 3 if keras.backend.backend() == "torch" else 4
    assert seen == ([(4, 16), (last, 16)] if pooling is None else [])


def test_what_is_tried_leaves_no_padding():
    tried = trimming.without_a_rest(batch([2, 20], 20))
    for name, expected in batch([2, 8], 20).items():
        value = ops.convert_to_numpy(tried[name])
        np.testing.assert_array_equal(value, expected)
    trimmed = ops.convert_to_numpy(trimming.trim(tried)["padding_mask"])
    assert trimmed[1].all()


def test_outputs_that_are_zero_tell_nothing():
    zeros = np.zeros((2, 2))
    assert not trimming.changes_nothing(zeros, zeros)
    assert trimming.changes_nothing(zeros + 1, zeros + 1)


def pool_of_all_positions(pooling):
    layers = {
        "average": keras.layers.GlobalAveragePooling1D,
        "max": keras.layers.GlobalMaxPooling1D,
    }
    inputs = {
        name: keras.Input((None,), name=name, dtype="int32")
        for name in ("token_ids", "segment_ids", "padding_mask")
    }
    embedded = keras.layers.Embedding(len(VOCABULARY), 8)(inputs["token_ids"])
    pooled = layers[pooling]()(embedded)
    return randomize(keras.Model(inputs, keras.layers.Dense(2)(pooled)))
