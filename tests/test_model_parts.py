import keras
import keras_hub
import numpy as np
import pytest

import keras_uegr
from keras_uegr import model_parts
from tests.backbones import (
    tiny_bert,
    tiny_bert_backbone,
    tiny_bert_tokenizer,
    tiny_llama,
)
from tests.conformance import families
from tests.pooled_model import pooled_model


def dense_model():
    """Neither embedding nor dropout nor blocks."""
    inputs = keras.Input((4,))
    return keras.Model(inputs, keras.layers.Dense(2, name="only")(inputs))


def two_table_model():
    token_ids = keras.Input((None,), dtype="int32")
    tokens = keras.layers.Embedding(9, 4, name="tokens")(token_ids)
    positions = keras.layers.Embedding(9, 4, name="positions")(token_ids)
    return keras.Model(token_ids, tokens + positions)


class Block(keras.layers.Layer):
    """A block with a private layer called like that of every other block."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self._dense = keras.layers.Dense(4, name="dense")

    def call(self, inputs):
        return inputs + self._dense(inputs)


def block_model(attribute="transformer_layers", nested=False):
    """A backbone without dropout layers; its blocks are a list attribute."""
    token_ids = keras.Input((None,), dtype="int32")
    x = keras.layers.Embedding(9, 4, name="embedding")(token_ids)
    blocks = [Block(name=f"block_{i}") for i in range(2)]
    for block in blocks:
        x = block(x)
    backbone = keras.Model(token_ids, x)
    setattr(backbone, attribute, blocks)
    if not nested:
        return backbone
    model = keras.Model(token_ids, keras.layers.Dense(2, name="head")(x))
    model.backbone = backbone
    return model


def test_layer_names_are_those_of_layers_and_names_stay():
    layer = keras.layers.Dense(2, name="own")
    assert model_parts.layer_names(None) is None
    assert model_parts.layer_names("some") == "some"
    assert model_parts.layer_names(layer) == "own"
    assert model_parts.layer_names([layer, "some"]) == ["own", "some"]


def test_the_only_embedding_is_found():
    assert model_parts.find_embedding(pooled_model()).name == "embedding"


@pytest.mark.parametrize("build", [tiny_bert, tiny_llama])
def test_the_token_embedding_of_a_kerashub_backbone_is_found(build):
    model = build()
    found = model_parts.find_embedding(model)
    assert found is model.backbone.token_embedding
    backbone = model.backbone
    assert model_parts.find_embedding(backbone) is backbone.token_embedding


def test_an_embedding_is_chosen_by_name_or_as_a_layer():
    model = two_table_model()
    layer = model.get_layer("positions")
    for embedding in ("positions", layer):
        wrapped = keras_uegr.UEGRModel(model, embedding=embedding, dropout=None)
        assert wrapped.embedding is layer


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (dense_model, "found 0 in the model: \\[\\]. Set its argument"),
        (two_table_model, "found 2 in the model: \\['tokens', 'positions'\\]"),
    ],
)
def test_no_embedding_or_several_are_told(build, message):
    model = build()
    with pytest.raises(ValueError, match=message):
        model_parts.find_embedding(model)
    with pytest.raises(ValueError, match="`embedding` to the layer or its"):
        keras_uegr.UEGRModel(model, dropout=None)
    assert model_parts.find_embedding(model, required=False) is None


def test_an_unknown_name_is_told():
    message = "`embedding` must name .* embedding=nobody, the name of 0 layers"
    with pytest.raises(ValueError, match=message):
        keras_uegr.UEGRModel(pooled_model(), embedding="nobody")
    message = "`dropout_layers` must name .*=nobody, the name of 0 layers"
    with pytest.raises(ValueError, match=message):
        keras_uegr.UEGRModel(pooled_model(), dropout_layers=["nobody"])


def test_an_ambiguous_name_is_told():
    message = "`dropout_layers` must name .*=dense, the name of 2 layers"
    with pytest.raises(ValueError, match=message):
        keras_uegr.UEGRModel(block_model(), dropout_layers=["dense"])


def test_all_dropout_layers_are_found_spatial_ones_too():
    inputs = keras.Input((6, 4))
    x = keras.layers.Dropout(0.0, name="plain")(inputs)
    x = keras.layers.SpatialDropout1D(0.1, name="spatial")(x)
    found = model_parts.find_dropout_layers(keras.Model(inputs, x))
    assert [layer.name for layer in found] == ["plain", "spatial"]


def test_dropout_layers_are_chosen_by_name_or_as_layers():
    model = pooled_model()
    hidden = model.get_layer("hidden")
    for chosen in (["hidden"], [hidden]):
        wrapped = keras_uegr.UEGRModel(model, dropout_layers=chosen)
        assert wrapped.dropout_layers == [hidden]


@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize(
    "attribute", ["transformer_layers", "encoder_transformer_layers"]
)
def test_without_dropout_layers_embedding_and_blocks_are_dropped(
    attribute, nested
):
    model = block_model(attribute, nested)
    embedding = model_parts.find_embedding(model)
    found = model_parts.find_dropout_layers(model, embedding)
    names = [layer.name for layer in found]
    assert names == ["embedding", "block_0", "block_1"]
    found = model_parts.find_dropout_layers(model, None)
    assert [layer.name for layer in found] == ["block_0", "block_1"]


def test_a_llama_without_active_dropout_has_something_to_drop():
    model = tiny_llama()
    embedding = model_parts.find_embedding(model)
    assert model_parts.find_dropout_layers(model, embedding)


def test_a_backbone_without_dropout_drops_what_its_blocks_give():
    token_ids = keras.Input((None,), dtype="int32")
    embedding = keras.layers.Embedding(9, 4, name="token_embedding")
    block = keras.layers.Dense(4, name="block")
    backbone = keras.Model(token_ids, block(embedding(token_ids)))
    backbone.token_embedding, backbone.transformer_layers = embedding, [block]
    pooled = keras.layers.GlobalAveragePooling1D()(backbone.output)
    pooled = keras.layers.Dropout(0.1, name="classifier_dropout")(pooled)
    inner = keras.Model(token_ids, keras.layers.Dense(2)(pooled))
    inner.backbone = backbone
    model = keras_uegr.UEGRModel(inner)
    assert [layer.name for layer in model.dropout_layers] == [
        "token_embedding",
        "block",
        "classifier_dropout",
    ]


def test_dropout_that_attention_leaves_out_at_rate_zero_is_reached():
    backbone = families.backbone("Gemma")
    model = keras_uegr.UEGRModel.from_backbone(backbone, num_classes=2)
    assert [layer.name for layer in model.dropout_layers] == [
        "dropout",
        "classifier_dropout",
    ]


@pytest.mark.slow
def test_uncalled_dropout_layers_of_a_backbone_with_others_are_left_out():
    backbone = families.backbone("GPT-NeoX")
    model = keras_uegr.UEGRModel.from_backbone(backbone, num_classes=2)
    x = {
        name: np.ones((2, 4), "int32") for name in ("token_ids", "padding_mask")
    }
    model.compile("sgd", "sparse_categorical_crossentropy")
    model.train_on_batch(x, np.array([0, 1]))  # a missed layer would warn
    names = [layer.name for layer in model.dropout_layers]
    assert "embeddings_dropout" in names
    assert "attention_dropout" in names


def test_neither_dropout_nor_blocks_is_told():
    message = "found no dropout layer and no transformer block"
    with pytest.raises(ValueError, match=message):
        model_parts.find_dropout_layers(dense_model())
    with pytest.raises(ValueError, match="`dropout_layers` to the layers"):
        keras_uegr.UEGRModel(two_table_model(), embedding="tokens")


def test_a_sequential_model_with_a_backbone_is_searched():
    layers = [keras.layers.Dense(4), keras.layers.Dropout(0.0)]
    model = keras.Sequential([keras.Input((3,)), *layers])
    model.backbone = layers[1]
    assert model_parts.find_dropout_layers(model) == [layers[1]]


def test_a_model_that_needs_no_part_is_not_searched():
    with pytest.warns(UserWarning, match="no layer of the model is known"):
        keras_uegr.UEGRModel(dense_model(), perturbation=None, dropout=None)
    keras_uegr.UEGRModel(
        dense_model(), adversarial_weight=0, consistency_weight=0
    )


def test_variables_outside_the_backbone_are_those_of_the_head():
    model = tiny_bert(preprocessor=False)
    outside = model_parts.variables_outside_backbone(model)
    inside = model.backbone.trainable_variables
    assert outside
    assert len(outside) + len(inside) == len(model.trainable_variables)
    assert {"logits"} <= {x.path.split("/")[-2] for x in outside}
    assert not {id(x) for x in outside} & {id(x) for x in inside}


def test_a_model_without_backbone_has_no_variables_outside_it():
    assert model_parts.variables_outside_backbone(pooled_model()) == []


def test_a_frozen_head_has_no_trainable_variables_outside_the_backbone():
    model = block_model(nested=True)
    assert len(model_parts.variables_outside_backbone(model)) == 2
    model.get_layer("head").trainable = False
    assert model_parts.variables_outside_backbone(model) == []


def test_the_head_of_a_wrapped_model_is_trained_in_full():
    inner = block_model(nested=True)
    model = keras_uegr.UEGRModel(inner, adversarial_weight=0.0)
    model.compile(
        keras_uegr.SaliencyMaskedOptimizer("sgd", density=0.0),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    )
    before = inner.get_weights()
    model.train_on_batch(np.array([[1, 2], [3, 4]]), np.array([[0, 1], [1, 1]]))
    changed = {
        weight.path: (old != keras.ops.convert_to_numpy(weight)).mean()
        for weight, old in zip(inner.weights, before, strict=True)
        if len(weight.shape) > 1
    }
    assert changed.pop("head/kernel") == 1.0
    assert len(changed) == 3
    assert set(changed.values()) == {0.0}


def test_masked_optimizer_is_found_under_loss_scaling():
    masked = keras_uegr.SaliencyMaskedOptimizer("adamw")
    scaled = keras.optimizers.LossScaleOptimizer(masked)
    assert model_parts.find_masked_optimizer(masked) is masked
    assert model_parts.find_masked_optimizer(scaled) is masked
    plain = keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD())
    assert model_parts.find_masked_optimizer(plain) is None
    assert model_parts.find_masked_optimizer(None) is None


def test_special_token_ids_are_those_of_the_tokenizer():
    tokenizer = tiny_bert_tokenizer()
    preprocessor = keras_hub.models.BertTextClassifierPreprocessor(
        tokenizer, sequence_length=8
    )
    found = model_parts.special_token_ids(preprocessor)
    tokens = {tokenizer.id_to_token(token_id) for token_id in found}
    assert {"[CLS]", "[SEP]", "[PAD]", "[MASK]", "[UNK]"} >= tokens
    assert {"[CLS]", "[SEP]", "[PAD]"} <= tokens
    model = keras_uegr.UEGRModel(tiny_bert(), unperturbed_token_ids="special")
    assert model.unperturbed_token_ids == tuple(found)


@pytest.mark.parametrize("preprocessor", [None, np.char.upper])
def test_special_tokens_without_a_tokenizer_are_told(preprocessor):
    message = "needs a preprocessor with a tokenizer"
    with pytest.raises(ValueError, match=message):
        model_parts.special_token_ids(preprocessor)
    with pytest.raises(ValueError, match="Pass the token ids themselves"):
        keras_uegr.UEGRModel(
            tiny_bert(preprocessor=False),
            unperturbed_token_ids="special",
            preprocessor=preprocessor,
        )


def test_a_bare_backbone_can_be_wrapped():
    backbone = tiny_bert_backbone(num_layers=2)
    model = keras_uegr.UEGRModel(backbone)
    assert model.embedding is backbone.token_embedding
    assert len(model.dropout_layers) == 7


def rematerialized(rate=0.1, **scope):
    with keras.RematScope(**scope):
        return pooled_model(rate=rate)


@pytest.mark.parametrize(
    "scope",
    [
        {"mode": "full"},
        {"mode": "larger_than", "output_size_threshold": 1},
        {"mode": "list_of_layers", "layer_names": ["embedding", "hidden"]},
        {"mode": "list_of_layers", "layer_names": ["dropout"]},
    ],
)
def test_a_rematerialized_layer_that_a_pass_changes_is_refused(scope):
    with pytest.raises(ValueError, match="outside of `keras.RematScope`"):
        keras_uegr.UEGRModel(rematerialized(**scope))


def test_a_block_around_a_dropout_layer_is_not_rematerialized_either():
    token_ids = keras.Input((None,), dtype="int32")
    x = keras.layers.Embedding(9, 4)(token_ids)
    with keras.RematScope("list_of_layers", layer_names=["outer"]):
        outer = keras.Sequential([keras.layers.Dropout(0.1)], name="outer")
    model = keras.Model(token_ids, outer(x))
    with pytest.raises(ValueError, match=r"Received: .*\['outer'\]"):
        keras_uegr.UEGRModel(model)


@pytest.mark.parametrize(
    "scope",
    [
        {"mode": "activations"},
        pytest.param(
            {"mode": "list_of_layers", "layer_names": ["hidden"]},
            marks=pytest.mark.skipif(
                keras.backend.backend() == "tensorflow",
                reason="Keras' own `fit` fails at such a layer on TensorFlow",
            ),
        ),
    ],
)
def test_other_layers_may_be_rematerialized(scope):
    def weights_after_a_step(inner):
        keras.utils.set_random_seed(0)
        for weight in inner.weights:
            weight.assign(keras.random.normal(weight.shape, seed=5))
        model = keras_uegr.UEGRModel(inner, warmup_steps=0)
        model.seed_generator.state.assign([1, 2])
        model.compile(
            keras.optimizers.SGD(1.0),
            keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        )
        model.train_on_batch(np.ones((2, 3), "int32"), np.array([0, 1]))
        return [keras.ops.convert_to_numpy(x) for x in inner.weights]

    expected = weights_after_a_step(pooled_model())
    actual = weights_after_a_step(rematerialized(rate=0.0, **scope))
    for one, other in zip(expected, actual, strict=True):
        np.testing.assert_allclose(one, other, rtol=0, atol=1e-6)
