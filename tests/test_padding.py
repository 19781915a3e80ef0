"""Which padding mask belongs to what, in models with more than one input."""

import keras
import numpy as np
import pytest
from keras import ops

import keras_uegr
from keras_uegr import objective, padding

ENCODED, DECODED = 7, 5


def translator():
    """An encoder and a decoder, each with a table, and logits per token."""
    names = [
        f"{part}_{kind}"
        for part in ("encoder", "decoder")
        for kind in ("token_ids", "padding_mask")
    ]
    inputs = {
        name: keras.Input((None,), dtype="int32", name=name) for name in names
    }
    source, target = (
        keras.layers.Embedding(9, 4, name=f"{part}_table")(
            inputs[f"{part}_token_ids"]
        )
        for part in ("encoder", "decoder")
    )
    attended = keras.layers.MultiHeadAttention(1, 4, name="attention")(
        target, source
    )
    return keras.Model(inputs, keras.layers.Dense(9, name="head")(attended))


def padded_inputs():
    rng = np.random.default_rng(0)
    x = {}
    for part, length in (("encoder", ENCODED), ("decoder", DECODED)):
        x[f"{part}_token_ids"] = rng.integers(1, 9, (4, length))
        lengths = rng.integers(2, length + 1, (4, 1))
        x[f"{part}_padding_mask"] = 1 * (np.arange(length) < lengths)
    return x


def embedded_by(part, model=None, x=None):
    model = keras_uegr.UEGRModel(
        model or translator(),
        embedding=f"{part}_table",
        dropout=None,
        warmup_steps=0,
    )
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile("sgd", loss)
    x = padded_inputs() if x is None else x
    y = np.zeros((4, DECODED), "int32")
    batch = objective.Batch(keras.tree.map_structure(np.asarray, x), y)
    _, clean = objective.clean_pass(model, batch, None)
    return x, clean.embedded


@pytest.mark.parametrize("part", ["encoder", "decoder"])
def test_what_moves_is_told_by_the_mask_of_the_embedded_input(part):
    x, embedded = embedded_by(part)
    np.testing.assert_array_equal(
        ops.convert_to_numpy(embedded.movable)[..., 0],
        x[f"{part}_padding_mask"],
    )


@pytest.mark.parametrize("part", ["encoder", "decoder"])
def test_outputs_follow_the_decoder(part):
    x, embedded = embedded_by(part)
    np.testing.assert_array_equal(
        ops.convert_to_numpy(embedded.unpadded), x["decoder_padding_mask"]
    )


def movable(inputs, x, table, **arguments):
    """What may move of the embedding of the first input."""
    hidden = table(keras.tree.flatten(inputs)[0])
    hidden = keras.layers.GlobalAveragePooling1D()(hidden)
    outputs = keras.layers.Dense(2)(hidden)
    model = keras_uegr.UEGRModel(
        keras.Model(inputs, outputs), dropout=None, **arguments
    )
    model.compile(
        "sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    )
    batch = objective.Batch(
        keras.tree.map_structure(ops.convert_to_tensor, x), np.zeros(2, "int32")
    )
    _, clean = objective.clean_pass(model, batch, None)
    return ops.convert_to_numpy(clean.embedded.movable)[..., 0]


@pytest.mark.parametrize("name", ["input_ids", "token_ids"])
def test_a_padding_mask_tells_whatever_the_tokens_are_called(name):
    x = {
        name: np.array([[1, 2, 3], [4, 0, 0]]),
        "padding_mask": np.array([[1, 1, 0], [1, 0, 0]]),
    }
    inputs = {key: keras.Input((None,), dtype="int32", name=key) for key in x}
    actual = movable(inputs, x, keras.layers.Embedding(9, 4))
    np.testing.assert_array_equal(actual, x["padding_mask"])


@pytest.mark.parametrize("container", [list, tuple])
def test_masks_in_a_list_are_known_by_the_names_of_the_inputs(container):
    x = padded_inputs()
    model = translator()
    listed = keras.Model([model.input[name] for name in x], model.output)
    for part in ("encoder", "decoder"):
        _, embedded = embedded_by(part, listed, container(x.values()))
        np.testing.assert_array_equal(
            ops.convert_to_numpy(embedded.movable)[..., 0],
            x[f"{part}_padding_mask"],
        )
        np.testing.assert_array_equal(
            ops.convert_to_numpy(embedded.unpadded), x["decoder_padding_mask"]
        )


def test_a_list_of_other_names_tells_nothing():
    tokens, kinds = (keras.Input((None,), dtype="int32") for _ in range(2))
    x = [np.array([[1, 2, 0], [3, 0, 0]]), np.zeros((2, 3), "int32")]
    actual = movable([tokens, kinds], x, keras.layers.Embedding(9, 4))
    assert (actual == 1).all()


def test_an_encoders_mask_is_none_of_the_decoder():
    x = padded_inputs()
    model = translator()
    inputs = {
        name: model.input[name] for name in x if name != "decoder_padding_mask"
    }
    x = {name: x[name] for name in inputs}
    x["decoder_token_ids"] = np.ones((4, ENCODED), "int32")
    model = keras_uegr.UEGRModel(
        keras.Model(inputs, model.output),
        embedding="decoder_table",
        dropout=None,
    )
    model.compile(
        "sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    )
    y = np.zeros((4, ENCODED), "int32")
    batch = objective.Batch(keras.tree.map_structure(np.asarray, x), y)
    _, clean = objective.clean_pass(model, batch, None)
    assert (ops.convert_to_numpy(clean.embedded.movable) == 1).all()


def test_predictions_at_masked_positions_are_none_of_padding():
    mask = np.array([[1, 1, 0]])
    x = {"mask_positions": np.array([[0, 1, 0]]), "padding_mask": mask}
    assert padding.unpadded_outputs(x, mask) is None


def test_a_mask_that_the_embedding_computes_tells():
    class Table(keras.layers.Embedding):
        def compute_mask(self, inputs, mask=None):
            return ops.not_equal(inputs, 7)

    tokens = np.array([[1, 2, 7], [0, 7, 7]])
    inputs = {
        "token_ids": keras.Input((None,), dtype="int32", name="token_ids")
    }
    actual = movable(inputs, {"token_ids": tokens}, Table(9, 4))
    np.testing.assert_array_equal(actual, tokens != 7)


def test_a_subclassed_model_perturbs_its_encoder():
    class Translator(keras.Model):
        def __init__(self):
            super().__init__()
            self.inner = translator()

        def call(self, inputs):
            return self.inner(inputs)

    x, embedded = embedded_by("encoder", Translator())
    np.testing.assert_array_equal(
        ops.convert_to_numpy(embedded.movable)[..., 0],
        x["encoder_padding_mask"],
    )
