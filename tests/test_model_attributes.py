import keras
import numpy as np
import pytest

import keras_uegr
from keras_uegr import model_attributes, model_parts
from tests.backbones import (
    randomize,
    tiny_bert,
    tiny_bert_backbone,
    tiny_inputs,
    tiny_texts,
)

COUNT = 8
TEXTS, _ = tiny_texts(COUNT)
INPUTS, _ = tiny_inputs(COUNT)


@keras.saving.register_keras_serializable("test_model_attributes")
class Block(keras.layers.Layer):
    """As in some decoders, its dropout isn't called at the rate 0."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.dropout = keras.layers.Dropout(0.0)
        self.dense = keras.layers.Dense(4)

    def build(self, input_shape):
        self.dense.build(input_shape)

    def call(self, inputs):
        return self.dense(inputs)


def plain_bert():
    """A `keras.Model` that calls the backbone as one of its layers."""
    bert = tiny_bert(preprocessor=False)
    model = keras.Model(bert.input, bert.output)
    model.backbone = bert.backbone
    return model


def through_backbone():
    """A `keras.Model` that goes through the layers of the backbone itself."""
    backbone = tiny_bert_backbone()
    outputs = keras.layers.Dropout(0.1)(backbone.output["pooled_output"])
    outputs = keras.layers.Dense(2, name="logits")(outputs)
    model = keras.Model(backbone.input, outputs)
    model.backbone = backbone
    return randomize(model)


def compiled(inner, **arguments):
    model = keras_uegr.UEGRModel(inner, warmup_steps=0, **arguments)
    model.compile(
        keras_uegr.SaliencyMaskedOptimizer(
            keras.optimizers.Adam(1e-2), density=0.2
        ),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    )
    model.optimizer.build(model.trainable_variables)
    return model


def reloaded(model, path):
    model.save(path / "model.keras")
    return keras.saving.load_model(path / "model.keras")


def found(model):
    """What the method works on, by what a loaded model has in common."""
    return {
        "embedding": model.embedding.name,
        "dropout": len(model.dropout_layers),
        "outside": sorted(
            x.path for x in model_parts.variables_outside_backbone(model.model)
        ),
        "masked": [
            variable.path
            for variable, is_masked in zip(
                model.trainable_variables,
                model.optimizer._is_masked,
                strict=True,
            )
            if is_masked
        ],
    }


@pytest.mark.slow
@pytest.mark.parametrize("make", [plain_bert, through_backbone])
@pytest.mark.parametrize("again", [False, True])
def test_backbone_of_a_plain_model_is_kept(make, again, tmp_path):
    model = compiled(make())
    loaded = reloaded(model, tmp_path)
    if again:
        loaded = reloaded(loaded, tmp_path)
    assert found(loaded) == found(model)
    assert len(found(model)["outside"]) >= 2
    np.testing.assert_allclose(
        loaded.predict(INPUTS, verbose=0),
        model.predict(INPUTS, verbose=0),
        atol=1e-6,
    )


def test_blocks_of_a_backbone_without_dropout_are_kept(tmp_path):
    token_ids = keras.Input((16,), dtype="int32")
    x = keras.layers.Embedding(50, 4, name="tokens")(token_ids)
    blocks = [Block(name="one"), Block(name="two")]
    for block in blocks:
        x = block(x)
    backbone = keras.Model(token_ids, x)
    backbone.transformer_layers = blocks
    x = keras.layers.GlobalAveragePooling1D()(backbone.output)
    inner = keras.Model(token_ids, keras.layers.Dense(2)(x))
    inner.backbone = backbone
    loaded = reloaded(keras_uegr.UEGRModel(inner), tmp_path)
    assert [x.name for x in loaded.dropout_layers] == ["tokens", "one", "two"]


def test_head_stays_updated_in_full_with_a_named_embedding(tmp_path):
    model = compiled(plain_bert(), embedding="token_embedding")
    loaded = reloaded(model, tmp_path)
    assert found(loaded) == found(model)
    masked = found(loaded)["masked"]
    assert masked
    assert not [path for path in masked if "logits" in path]


def test_embedding_that_is_an_attribute_is_kept(tmp_path):
    letters = keras.Input((16,), dtype="int32", name="letters")
    words = keras.Input((16,), dtype="int32", name="words")
    embeddings = [
        keras.layers.Embedding(50, 4, name=name)
        for name in ("of_letters", "of_words")
    ]
    x = keras.layers.Add()([embeddings[0](letters), embeddings[1](words)])
    x = keras.layers.GlobalAveragePooling1D()(keras.layers.Dropout(0.1)(x))
    inner = keras.Model([letters, words], keras.layers.Dense(2)(x))
    inner.token_embedding = embeddings[1]
    loaded = reloaded(keras_uegr.UEGRModel(inner), tmp_path)
    assert loaded.embedding is loaded.model.get_layer("of_words")


def test_preprocessor_of_a_plain_model_is_kept(tmp_path):
    inner = plain_bert()
    inner.preprocessor = tiny_bert().preprocessor
    model = keras_uegr.UEGRModel(inner, unperturbed_token_ids="special")
    expected = model.predict(TEXTS, verbose=0)
    loaded = reloaded(model, tmp_path)
    assert loaded.padding_token_id == model.padding_token_id == 0
    np.testing.assert_allclose(
        loaded.predict(TEXTS, verbose=0), expected, atol=1e-6
    )


def test_preprocessor_that_cannot_be_loaded_is_left_out(tmp_path):
    inner = plain_bert()
    tokens = {name: x[:1] for name, x in INPUTS.items()}
    inner.preprocessor = lambda texts: tokens
    model = keras_uegr.UEGRModel(inner)
    assert model.predict(["good"], verbose=0).shape == (1, 2)
    loaded = reloaded(model, tmp_path)
    assert loaded.predict(tokens, verbose=0).shape == (1, 2)
    with pytest.raises(ValueError, match="the model has no preprocessor"):
        loaded.predict(["good"], verbose=0)


def test_what_a_task_saves_itself_is_not_saved_twice():
    config = keras_uegr.UEGRModel(tiny_bert()).get_config()
    assert config["model_attributes"] == {}


def test_file_of_an_earlier_version_is_read():
    config = keras_uegr.UEGRModel(tiny_bert()).get_config()
    del config["model_attributes"], config["token_share"]
    loaded = keras_uegr.UEGRModel.from_config(config)
    assert loaded.model.backbone is not None
    assert loaded.token_share == 1


def test_attribute_whose_layer_is_not_in_the_model_is_left_out():
    inner = tiny_bert(preprocessor=False)
    inner = keras.Model(inner.input, inner.output)
    inner.token_embedding = keras.layers.Embedding(5, 4)
    assert model_attributes.serialize(inner, inner.get_config()) == {}


def test_backbone_of_a_loaded_model_cannot_be_called_alone(tmp_path):
    loaded = reloaded(keras_uegr.UEGRModel(through_backbone()), tmp_path)
    with pytest.raises(NotImplementedError, match="Call `model` instead"):
        loaded.model.backbone(INPUTS)
