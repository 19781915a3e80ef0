import keras
import keras_hub
import numpy as np
import pytest
from keras import ops

import keras_uegr
from keras_uegr import classifiers
from tests.backbones import (
    VOCABULARY,
    randomize,
    tiny_bert_backbone,
    tiny_bert_tokenizer,
)


def tiny_llama_backbone():
    backbone = keras_hub.models.LlamaBackbone(
        vocabulary_size=len(VOCABULARY),
        num_layers=1,
        num_query_heads=2,
        num_key_value_heads=1,
        hidden_dim=16,
        intermediate_dim=32,
    )
    return randomize(backbone)


def pooled_classifier(**arguments):
    arguments = {"num_classes": 3, **arguments}
    return randomize(
        classifiers.PooledClassifier(tiny_llama_backbone(), **arguments)
    )


def tokens(*lengths, total=6, filling=0, seed=0):
    """Random token ids, the first `lengths` of each row not padding."""
    rng = np.random.default_rng(seed)
    token_ids = rng.integers(5, len(VOCABULARY), (len(lengths), total))
    mask = np.arange(total) < np.array(lengths)[:, None]
    token_ids = np.where(mask, token_ids, filling)
    return {
        "token_ids": token_ids.astype("int32"),
        "padding_mask": mask.astype("int32"),
    }


def outputs_of(model, x):
    return ops.convert_to_numpy(model(x, training=False))


def preprocessor():
    return keras_hub.models.BertTextClassifierPreprocessor(
        tiny_bert_tokenizer(), sequence_length=8
    )


def test_a_backbone_with_a_classifier_gets_it():
    backbone, given = tiny_bert_backbone(), preprocessor()
    model = keras_uegr.UEGRModel.from_backbone(
        backbone, num_classes=3, preprocessor=given
    )
    assert type(model.model) is keras_hub.models.BertTextClassifier
    assert model.model.backbone is backbone
    assert model.model.num_classes == 3
    assert model.preprocessor is given
    assert model.predict(["good film"], verbose=0).shape == (1, 3)


def test_a_backbone_without_a_classifier_is_pooled():
    backbone = tiny_llama_backbone()
    model = keras_uegr.UEGRModel.from_backbone(backbone, num_classes=3)
    assert type(model.model) is classifiers.PooledClassifier
    assert model.model.backbone is backbone
    assert model.preprocessor is None
    assert model.embedding is backbone.token_embedding
    assert outputs_of(model, tokens(3, 6)).shape == (2, 3)


def test_a_pooled_classifier_leaves_the_preprocessor_to_the_wrapper():
    def own_preprocessor(x):
        return tokens(*[len(text.split()) for text in x])

    model = keras_uegr.UEGRModel.from_backbone(
        tiny_llama_backbone(), num_classes=3, preprocessor=own_preprocessor
    )
    assert model.preprocessor is own_preprocessor


def test_pooled_classifier_is_the_mean_of_the_unpadded_positions():
    model = pooled_classifier()
    x = tokens(3, 6)
    sequence = outputs_of(model.backbone, x)
    pooled = np.stack([sequence[0, :3].mean(axis=0), sequence[1].mean(axis=0)])
    kernel, bias = map(
        ops.convert_to_numpy, model.get_layer("logits").get_weights()
    )
    np.testing.assert_allclose(
        outputs_of(model, x), pooled @ kernel + bias, atol=1e-5
    )


def test_pooled_classifier_ignores_padding():
    model = pooled_classifier()
    short, long = tokens(3, 3, total=3), tokens(3, 3, filling=9)
    long["token_ids"][:, :3] = short["token_ids"]
    np.testing.assert_allclose(
        outputs_of(model, long), outputs_of(model, short), atol=1e-5
    )


def test_pooled_classifier_of_nothing_but_padding_is_finite():
    """An empty string of a tokenizer without special tokens."""
    model = pooled_classifier()
    x, beside = tokens(0, 3), tokens(3, 3)
    beside["token_ids"][1] = x["token_ids"][1]
    outputs = outputs_of(model, x)
    assert np.isfinite(outputs).all()
    np.testing.assert_allclose(
        outputs[1], outputs_of(model, beside)[1], atol=1e-5
    )


def test_pooled_classifier_takes_a_backbone_that_gives_a_dictionary():
    model = classifiers.PooledClassifier(tiny_bert_backbone(), num_classes=2)
    x = {**tokens(3, 6), "segment_ids": np.zeros((2, 6), "int32")}
    assert outputs_of(model, x).shape == (2, 2)


def test_pooled_classifier_drops_in_training_only():
    model = pooled_classifier(dropout=0.5)
    x = tokens(3, 6)
    plain = outputs_of(model, x)
    np.testing.assert_array_equal(outputs_of(model, x), plain)
    dropped = ops.convert_to_numpy(model(x, training=True))
    assert np.abs(dropped - plain).max() > 1e-3


def test_pooled_classifier_makes_the_round_trip_to_a_file(tmp_path):
    model = pooled_classifier(dropout=0.3, name="own_name")
    path = tmp_path / "model.keras"
    model.save(path)
    restored = keras.saving.load_model(path)
    assert type(restored) is classifiers.PooledClassifier
    assert restored.get_config() == model.get_config()
    assert (restored.num_classes, restored.dropout) == (3, 0.3)
    assert restored.name == "own_name"
    assert type(restored.backbone) is keras_hub.models.LlamaBackbone
    x = tokens(3, 6)
    np.testing.assert_array_equal(outputs_of(restored, x), outputs_of(model, x))


def test_preset_folder_of_a_classifier_gives_it_with_its_weights(tmp_path):
    backbone = randomize(tiny_bert_backbone())
    backbone.save_to_preset(str(tmp_path))
    preprocessor().save_to_preset(str(tmp_path))
    model = keras_uegr.UEGRModel.from_preset(
        str(tmp_path), num_classes=3, sub_models=3
    )
    assert type(model.model) is keras_hub.models.BertTextClassifier
    assert model.model.num_classes == 3
    assert model.sub_models == 3
    x = model.preprocessor(["good film", "bad actor"])
    found, expected = (
        ops.convert_to_numpy(encoder(x)["sequence_output"])
        for encoder in (model.model.backbone, backbone)
    )
    np.testing.assert_allclose(found, expected, atol=1e-6)
    assert model.predict(["good film"], verbose=0).shape == (1, 3)


def test_preset_folder_of_a_bare_backbone_is_pooled(tmp_path):
    backbone = tiny_llama_backbone()
    backbone.save_to_preset(str(tmp_path))
    model = keras_uegr.UEGRModel.from_preset(str(tmp_path), num_classes=2)
    assert type(model.model) is classifiers.PooledClassifier
    x = tokens(3, 6)
    np.testing.assert_allclose(
        outputs_of(model.model.backbone, x), outputs_of(backbone, x), atol=1e-6
    )


def test_preset_without_its_weights_starts_afresh(tmp_path):
    backbone = tiny_llama_backbone()
    backbone.save_to_preset(str(tmp_path))
    model = keras_uegr.UEGRModel.from_preset(
        str(tmp_path), num_classes=2, load_weights=False
    )
    x = tokens(3, 6)
    difference = outputs_of(model.model.backbone, x) - outputs_of(backbone, x)
    assert np.abs(difference).max() > 1e-3


def test_an_unknown_preset_is_told(tmp_path):
    with pytest.raises((ValueError, FileNotFoundError), match="nowhere"):
        keras_uegr.UEGRModel.from_preset(
            str(tmp_path / "nowhere"), num_classes=2
        )


def test_the_precision_is_that_of_the_backbone():
    keras.config.set_dtype_policy("mixed_float16")
    backbone = tiny_llama_backbone()
    keras.config.set_dtype_policy("float32")
    model = keras_uegr.UEGRModel.from_backbone(backbone, num_classes=2)
    model.compile("sgd", "mean_squared_error")
    assert isinstance(model.optimizer, keras.optimizers.LossScaleOptimizer)
    assert model.model.get_layer("logits").compute_dtype == "float16"
