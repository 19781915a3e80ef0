from concurrent.futures import ThreadPoolExecutor

import keras
import numpy as np
import pytest
from keras import ops

from keras_uegr import interception, keras_internals, model_parts
from tests.backbones import tiny_bert, tiny_gpt2, tiny_inputs

SEED = 7


def tokens(n=3):
    x, _ = tiny_inputs(n)
    return {name: ops.convert_to_tensor(value) for name, value in x.items()}


def two_passes(model, layers, rate):
    seed = keras.random.SeedGenerator(SEED)
    rates = ops.full((3,), rate)
    outputs = []
    for _ in range(2):
        with interception.intercept_dropout(
            model, layers, rates, seed
        ) as reached:
            outputs.append(ops.convert_to_numpy(model(tokens(), training=True)))
    return outputs, reached


# The presets of some models come with rate 0, and Keras then skips dropout.
@pytest.mark.parametrize("preset_rate", [0.0, 0.1])
def test_sub_models_differ_exactly_when_the_rate_is_not_zero(preset_rate):
    model = tiny_bert(dropout=preset_rate, preprocessor=False)
    layers = model_parts.find_dropout_layers(model)
    (first, second), _ = two_passes(model, layers, 0.3)
    assert np.abs(first - second).max() > 1e-3
    (first, second), _ = two_passes(model, layers, 0.0)
    np.testing.assert_array_equal(first, second)


@pytest.mark.parametrize("preset_rate", [0.0, 0.1])
def test_every_dropout_layer_is_reached(preset_rate):
    model = tiny_bert(dropout=preset_rate, preprocessor=False, num_layers=2)
    layers = model_parts.find_dropout_layers(model)
    _, reached = two_passes(model, layers, 0.3)
    everything = [
        layer
        for layer in keras_internals.sublayers(model)
        if isinstance(layer, keras.layers.Dropout)
    ]
    # Embeddings, head, and in each of 2 blocks: attention probabilities,
    # attention output, feed-forward.
    assert len(everything) == len(layers) == 8
    assert reached == {id(layer) for layer in everything}


class Block(keras.layers.Layer):
    """A block of a backbone that has no dropout layer at all."""

    def build(self, input_shape):
        self.dense = keras.layers.Dense(input_shape[-1], name="dense")
        self.dense.build(input_shape)

    def call(self, inputs):
        return inputs + self.dense(inputs)


def backbone_without_dropout():
    token_ids = keras.Input((None,), dtype="int32")
    embedding = keras.layers.Embedding(9, 4, name="token_embedding")
    blocks = [Block(name=f"block_{i}") for i in range(2)]
    x = embedding(token_ids)
    for block in blocks:
        x = block(x)
    model = keras.Model(token_ids, x)
    model.transformer_layers = blocks
    return model


def test_a_backbone_without_dropout_gets_it_at_embedding_and_blocks():
    model = backbone_without_dropout()
    embedding = model_parts.find_embedding(model)
    layers = model_parts.find_dropout_layers(model, embedding)
    names = [layer.name for layer in layers]
    assert names == ["token_embedding", "block_0", "block_1"]
    token_ids = np.array([[1, 2, 3], [4, 5, 6]])
    rates, seed = ops.full((2,), 0.3), keras.random.SeedGenerator(SEED)
    plain = ops.convert_to_numpy(model(token_ids))
    with interception.intercept_dropout(model, layers, rates, seed) as reached:
        dropped = ops.convert_to_numpy(model(token_ids, training=True))
    assert reached == {id(layer) for layer in layers}
    assert np.abs(plain - dropped).max() > 1e-3


def test_calls_are_the_models_own_again_also_after_an_error():
    model = tiny_bert(preprocessor=False)
    layers = keras_internals.sublayers(model)
    before = {id(layer): dict(vars(layer)).get("call") for layer in layers}
    plain = ops.convert_to_numpy(model(tokens()))
    dropouts = model_parts.find_dropout_layers(model)
    seed = keras.random.SeedGenerator(SEED)

    def failing_pass():
        rates = ops.full((3,), 0.5)
        with (
            interception.intercept_dropout(model, dropouts, rates, seed),
            interception.intercept_embedding(
                model.backbone.token_embedding, lambda x: x + 1.0
            ),
        ):
            model(tokens(), training=True)
            raise RuntimeError("inside the pass")

    with pytest.raises(RuntimeError, match="inside the pass"):
        failing_pass()
    after = {id(layer): dict(vars(layer)).get("call") for layer in layers}
    assert after == before
    assert set(after.values()) == {None}
    np.testing.assert_array_equal(ops.convert_to_numpy(model(tokens())), plain)


def test_another_thread_sees_the_plain_model():
    model = tiny_bert(preprocessor=False)
    plain = ops.convert_to_numpy(model(tokens()))
    dropouts = model_parts.find_dropout_layers(model)
    seed, rates = keras.random.SeedGenerator(SEED), ops.full((3,), 0.5)
    embedding = model.backbone.token_embedding
    with (
        ThreadPoolExecutor(1) as other,
        interception.intercept_dropout(model, dropouts, rates, seed) as reached,
        interception.intercept_embedding(embedding, ops.zeros_like) as seen,
    ):
        served = other.submit(lambda: ops.convert_to_numpy(model(tokens())))
        np.testing.assert_array_equal(served.result(), plain)
        assert not reached
        assert seen.embedding is None
        model(tokens(), training=True)
    assert reached == {id(layer) for layer in dropouts}
    assert seen.embedding is not None


def test_an_override_of_the_users_own_is_put_back():
    layer = keras.layers.Embedding(4, 2)

    def own_call(inputs):
        return ops.ones((*inputs.shape, 2))

    layer.call = own_call
    with interception.intercept_embedding(layer, lambda x: x + 1.0):
        shifted = layer(np.array([[1, 2]]))
    assert vars(layer)["call"] is own_call
    np.testing.assert_allclose(ops.convert_to_numpy(shifted), 2.0)


def test_each_row_is_dropped_at_its_own_rate():
    rates = np.array([0.0, 0.1, 0.5, 0.9], "float32")
    dropped = ops.convert_to_numpy(
        interception.drop(
            ops.ones((4, 100, 200)),
            ops.convert_to_tensor(rates),
            (4, 100, 200),
            keras.random.SeedGenerator(SEED),
        )
    )
    np.testing.assert_allclose(
        (dropped == 0).mean(axis=(1, 2)), rates, atol=0.01
    )
    # Inverted dropout keeps the expectation.
    np.testing.assert_allclose(dropped.mean(axis=(1, 2)), 1.0, atol=0.1)


def test_spatial_dropout_drops_whole_channels():
    inputs = keras.Input((6, 8))
    model = keras.Model(inputs, keras.layers.SpatialDropout1D(0.1)(inputs))
    layers = model_parts.find_dropout_layers(model)
    rates, seed = ops.full((5,), 0.5), keras.random.SeedGenerator(SEED)
    with interception.intercept_dropout(model, layers, rates, seed):
        outputs = ops.convert_to_numpy(
            model(ops.ones((5, 6, 8)), training=True)
        )
    assert 0 < (outputs == 0).mean() < 1
    np.testing.assert_array_equal(outputs, outputs[:, :1].repeat(6, axis=1))


class Switched(keras.Model):
    """Calls a part of its own as in inference, or as in training."""

    def __init__(self, inner, training):
        super().__init__()
        self.inner = inner
        self.as_told = training

    def call(self, inputs):
        return self.inner(inputs, training=self.as_told)


@pytest.mark.parametrize("training", [False, True])
def test_what_is_called_without_training_drops_nothing(training):
    inner = keras.Sequential([keras.layers.Dropout(0.5)])
    model = Switched(inner, training)
    rates, seed = ops.full((5,), 0.5), keras.random.SeedGenerator(SEED)
    x = ops.ones((5, 8))
    with interception.intercept_dropout(
        model, inner.layers, rates, seed
    ) as reached:
        outputs = ops.convert_to_numpy(model(x, training=True))
    assert reached == {id(inner.layers[0])}
    assert (outputs == 0).any() == training


@pytest.mark.parametrize("rows", [None, 2])
def test_noise_shape_of_a_dropout_layer_is_kept(rows):
    """But for fixed rows, as those of a batch: sub-models have more."""
    inputs = keras.Input((6, 8))
    layer = keras.layers.Dropout(0.1, noise_shape=(rows, 1, 8))
    model = keras.Model(inputs, layer(inputs))
    rates, seed = ops.full((5,), 0.5), keras.random.SeedGenerator(SEED)
    with interception.intercept_dropout(model, [layer], rates, seed):
        outputs = ops.convert_to_numpy(
            model(ops.ones((5, 6, 8)), training=True)
        )
    assert 0 < (outputs == 0).mean() < 1
    np.testing.assert_array_equal(outputs, outputs[:, :1].repeat(6, axis=1))


class DropAndAdd(keras.layers.Dropout):
    """Does more than to drop."""

    def call(self, inputs, residual, training=False):
        return super().call(inputs, training=training) + residual


@pytest.mark.parametrize(("rate", "values"), [(0.0, {3}), (0.5, {0, 6})])
def test_a_dropout_layer_with_a_call_of_its_own_computes_what_it_does(
    rate, values
):
    inputs = keras.Input((8,))
    layer = DropAndAdd(0.1)
    model = keras.Model(inputs, layer(inputs, 2.0 * inputs))
    rates, seed = ops.full((50,), rate), keras.random.SeedGenerator(SEED)
    with interception.intercept_dropout(model, [layer], rates, seed):
        outputs = ops.convert_to_numpy(model(ops.ones((50, 8)), training=True))
    assert set(outputs.flat) == values
    assert layer.rate == 0.1


class MaskedBlock(keras.layers.Layer):
    """Hands a mask on, and attention scores that it may lack."""

    def call(self, inputs, mask):
        return inputs, mask, None


def test_only_floats_of_a_layers_outputs_are_dropped():
    layer, kept = MaskedBlock(), np.ones((5, 6), "bool")
    rates, seed = ops.full((5,), 0.5), keras.random.SeedGenerator(SEED)
    with interception.intercept_dropout(layer, [layer], rates, seed):
        outputs, mask, scores = layer(ops.ones((5, 6, 8)), kept)
    assert set(ops.convert_to_numpy(outputs).flat) == {0, 2}
    np.testing.assert_array_equal(ops.convert_to_numpy(mask), kept)
    assert scores is None


class Positions(keras.layers.Layer):
    """Adds positions, dropped as they are: all examples get the same."""

    def __init__(self, rows):
        super().__init__()
        self.rows = rows
        self.dropout = keras.layers.Dropout(0.1, name="position_dropout")

    def call(self, inputs):
        return inputs + self.dropout(ops.ones(self.rows + (8,)))


@pytest.mark.parametrize(("rows", "fits"), [((1, 6), True), ((6,), False)])
def test_what_is_dropped_must_have_the_axis_of_the_batch(rows, fits):
    inputs = keras.Input((6, 8))
    layer = Positions(rows)
    model = keras.Model(inputs, layer(inputs))
    seed = keras.random.SeedGenerator(SEED)
    rates = ops.convert_to_tensor(np.linspace(0.0, 0.9, 4, dtype="float32"))

    def outputs():
        with interception.intercept_dropout(
            model, [layer.dropout], rates, seed
        ):
            return model(ops.zeros((4, 6, 8)), training=True)

    if fits:
        zeros = (ops.convert_to_numpy(outputs()) == 0).mean(axis=(1, 2))
        assert zeros[0] == 0 < zeros[-1]
        return
    match = r"`dropout_layers`.*position_dropout.*shape \(6, 8\) for 4 rows"
    with pytest.raises(ValueError, match=match):
        outputs()


def test_the_embedding_is_shifted_and_the_mask_kept():
    layer = keras.layers.Embedding(5, 3, mask_zero=True)
    token_ids = ops.convert_to_tensor([[1, 2, 0]])
    plain = ops.convert_to_numpy(layer(token_ids))
    with interception.intercept_embedding(layer, lambda x: x + 1.0) as seen:
        shifted = layer(token_ids)
    np.testing.assert_allclose(ops.convert_to_numpy(shifted), plain + 1.0)
    np.testing.assert_array_equal(
        ops.convert_to_numpy(seen.token_ids), [[1, 2, 0]]
    )
    pooled = keras.layers.GlobalAveragePooling1D()(shifted)
    np.testing.assert_allclose(
        ops.convert_to_numpy(pooled), (plain + 1.0)[:, :2].mean(axis=1), 1e-6
    )


def test_a_tied_embedding_used_for_logits_is_left_alone():
    model = tiny_gpt2()
    token_ids = ops.convert_to_tensor(np.array([[3, 4, 5, 6]]))
    x = {"token_ids": token_ids, "padding_mask": ops.ones_like(token_ids)}
    layer = model.backbone.token_embedding
    with interception.intercept_embedding(layer, None) as seen:
        logits = model(x)
    assert tuple(seen.embedding.shape) == (1, 4, 16)
    assert logits.shape[-1] > 16


def test_only_the_first_call_of_a_shared_embedding_is_shifted():
    layer = keras.layers.Embedding(5, 3)
    plain = ops.convert_to_numpy(layer(np.array([[1, 2]])))
    with interception.intercept_embedding(layer, lambda x: x + 1.0):
        first = layer(np.array([[1, 2]]))
        second = layer(np.array([[1, 2]]))
    np.testing.assert_allclose(ops.convert_to_numpy(first), plain + 1.0)
    np.testing.assert_array_equal(ops.convert_to_numpy(second), plain)


def test_half_precision_drops_at_the_given_rate():
    dropped = interception.drop(
        ops.ones((2, 100, 100), dtype="float16"),
        ops.convert_to_tensor(np.array([0.0, 0.3], "float32")),
        (2, 100, 100),
        keras.random.SeedGenerator(SEED),
    )
    assert keras.backend.standardize_dtype(dropped.dtype) == "float16"
    zeros = (ops.convert_to_numpy(dropped) == 0).mean(axis=(1, 2))
    assert zeros[0] == 0
    assert zeros[1] == pytest.approx(0.3, abs=0.02)


def test_logits_of_a_tied_embedding_are_not_dropped():
    layer = keras.layers.ReversibleEmbedding(9, 4)
    token_ids = ops.convert_to_tensor(np.arange(1, 9).reshape(2, 4))
    hidden = layer(token_ids)
    logits = ops.convert_to_numpy(layer(hidden, reverse=True))
    model = keras.Sequential([layer])
    seed, rates = keras.random.SeedGenerator(SEED), ops.full((2,), 0.6)
    with interception.intercept_dropout(model, [layer], rates, seed):
        dropped = ops.convert_to_numpy(layer(token_ids))
        again = ops.convert_to_numpy(layer(hidden, reverse=True))
    assert 0.2 < (dropped == 0).mean() < 1
    np.testing.assert_array_equal(again, logits)
