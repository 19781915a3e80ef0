"""Which padding mask belongs to what, in models with more than one input."""

import keras
import numpy as np
import pytest
from keras import ops

import keras_uegr
from keras_uegr import objective

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


def embedded_by(part, model=None):
    model = keras_uegr.UEGRModel(
        model or translator(),
        embedding=f"{part}_table",
        dropout=None,
        warmup_steps=0,
    )
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile("sgd", loss)
    x = padded_inputs()
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
