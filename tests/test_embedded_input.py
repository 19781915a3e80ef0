"""Which of the inputs of a shared embedding is perturbed."""

import keras
import keras_hub
import numpy as np
import pytest
from keras import ops

import keras_uegr
from keras_uegr import forward_pass
from tests.backbones import tiny_bert

pytestmark = pytest.mark.slow

LENGTHS = {"encoder": 7, "decoder": 5}


def bart():
    """An encoder and a decoder that share one table."""
    keras.utils.set_random_seed(0)
    return keras_hub.models.BartBackbone(
        vocabulary_size=9,
        num_layers=1,
        num_heads=2,
        hidden_dim=8,
        intermediate_dim=16,
        dropout=0.0,
        max_sequence_length=8,
    )


class Translator(keras.Model):
    """A model that knows its inputs when it is called."""

    def __init__(self):
        super().__init__()
        self.backbone = bart()

    def call(self, inputs):
        return self.backbone(inputs)


def inputs():
    # 64 bits, which a functional model casts to its own 32.
    rng = np.random.default_rng(0)
    x = {}
    for part, length in LENGTHS.items():
        x[f"{part}_token_ids"] = rng.integers(1, 9, (4, length))
        lengths = rng.integers(2, length + 1, (4, 1))
        x[f"{part}_padding_mask"] = 1 * (np.arange(length) < lengths)
    return x


def wrap(model, part=None):
    name = part and f"{part}_token_ids"
    return keras_uegr.UEGRModel(
        model, dropout=None, warmup_steps=0, embedded_input=name
    )


def forward(model, shift):
    outputs, seen = forward_pass.run(
        model, inputs(), lambda e: e + shift, training=False
    )
    return {k: ops.convert_to_numpy(x) for k, x in outputs.items()}, seen


@pytest.mark.parametrize("build", [bart, Translator])
@pytest.mark.parametrize(
    ("chosen", "part"),
    [(None, "encoder"), ("encoder", "encoder"), ("decoder", "decoder")],
)
def test_the_chosen_input_is_shifted_and_no_other(build, chosen, part):
    model = wrap(build(), chosen)
    plain, _ = forward(model, 0.0)
    # A constant would vanish in the layer normalization.
    shifted, seen = forward(model, ops.arange(8.0))
    assert tuple(seen.embedding.shape) == (4, LENGTHS[part], 8)
    changed = {
        name: not np.allclose(shifted[name], plain[name], atol=1e-5)
        for name in plain
    }
    # The decoder reads what the encoder gives.
    assert changed == {
        "encoder_sequence_output": part == "encoder",
        "decoder_sequence_output": True,
    }


@pytest.mark.parametrize("part", LENGTHS)
def test_padding_of_the_chosen_input_stays(part):
    _, seen = forward(model := wrap(bart(), part), 0.0)
    embedded = forward_pass.embedded_batch(model, inputs(), seen)
    np.testing.assert_array_equal(
        ops.convert_to_numpy(embedded.movable)[..., 0],
        inputs()[f"{part}_padding_mask"],
    )


@pytest.mark.parametrize("part", LENGTHS)
def test_fit_perturbs_the_chosen_input(part):
    layer = keras.layers.Dense(2, name="head")
    backbone = bart()
    hidden = backbone.output["decoder_sequence_output"][:, 0]
    model = keras_uegr.UEGRModel(
        keras.Model(backbone.input, layer(hidden)),
        keras_uegr.FastGradient(0.5, relative=False),
        warmup_steps=0,
        embedding="token_embedding",
        embedded_input=f"{part}_token_ids",
    )
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.SGD(0.0), loss)
    x, y = inputs(), np.array([0, 1, 0, 1])
    first = model.fit(x, y, verbose=0).history
    assert first["perturbation_norm"] == [pytest.approx(0.5, rel=1e-3)]
    robust = model.evaluate(x, y, verbose=0)
    assert first["adversarial_loss"][0] != pytest.approx(robust, rel=1e-3)


class OptionalSum(keras.layers.Layer):
    def call(self, inputs, other=None):
        return inputs if other is None else inputs + other[..., None]


def test_another_input_may_be_left_out():
    tokens = keras.Input((7,), dtype="int32", name="tokens")
    other = keras.Input((7,), name="other", optional=True)
    x = OptionalSum()(keras.layers.Embedding(9, 8)(tokens), other)
    x = keras.layers.GlobalAveragePooling1D()(x)
    model = keras_uegr.UEGRModel(
        keras.Model(
            {"tokens": tokens, "other": other}, keras.layers.Dense(2)(x)
        ),
        dropout=None,
        warmup_steps=0,
        embedded_input="tokens",
    )
    model.compile("sgd", "mse")
    logs = model.train_on_batch(
        {"tokens": np.ones((4, 7)), "other": None},
        np.ones((4, 2)),
        return_dict=True,
    )
    assert logs["perturbation_norm"] > 0


def test_an_input_that_the_model_lacks_is_told_at_once():
    message = "inputs are a dict, here one of .*decoder_token_ids.*=elsewhere"
    with pytest.raises(ValueError, match=message):
        keras_uegr.UEGRModel(bart(), embedded_input="elsewhere")


def test_a_sequential_model_has_no_input_to_choose():
    model = keras.Sequential(
        [
            keras.Input((3,), dtype="int32"),
            keras.layers.Embedding(9, 4),
            keras.layers.Flatten(),
            keras.layers.Dropout(0.1),
        ]
    )
    assert keras_uegr.UEGRModel(model).embedded_input == ""
    with pytest.raises(ValueError, match=r"one of \[\]. .*=token_ids"):
        keras_uegr.UEGRModel(model, embedded_input="token_ids")


def test_an_input_that_a_subclass_lacks_is_told_at_first_use():
    model = keras_uegr.UEGRModel(Translator(), embedded_input="elsewhere")
    with pytest.raises(ValueError, match="one of .*=elsewhere"):
        forward_pass.run(model, inputs(), None)


def test_an_input_that_is_not_embedded_is_told():
    model = wrap(bart())
    model.chosen_input = "encoder_padding_mask"
    message = "not called in the forward pass with .* encoder_padding_mask"
    with pytest.raises(ValueError, match=message):
        forward_pass.run(model, inputs(), None)


def test_an_attack_reads_the_gradient_of_the_chosen_input():
    message = "not called in the forward pass with the input segment_ids"
    model = keras_uegr.UEGRModel(tiny_bert(), embedded_input="segment_ids")
    wrapper = keras_uegr.evaluation.TextAttackModelWrapper(model)
    with pytest.raises(ValueError, match=message):
        wrapper.get_grad("a warm film")
