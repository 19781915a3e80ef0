"""What is frozen stays frozen in a file, and the optimizer keeps its state."""

import keras
import numpy as np
import pytest
from keras import ops

import keras_uegr
from keras_uegr import keras_internals
from tests.backbones import tiny_bert, tiny_inputs
from tests.pooled_model import pooled_model


def freeze_embedding(backbone):
    backbone.token_embedding.trainable = False


def freeze_block(backbone):
    backbone.transformer_layers[0].trainable = False


def freeze_backbone(backbone):
    backbone.trainable = False


def freeze_all_but_one_block(backbone):
    backbone.trainable = False
    backbone.transformer_layers[-1].trainable = True


each_freezing = pytest.mark.parametrize(
    "freeze",
    [freeze_embedding, freeze_block, freeze_backbone, freeze_all_but_one_block],
)


def frozen(freeze):
    classifier = tiny_bert(num_layers=2)
    freeze(classifier.backbone)
    return keras_uegr.UEGRModel(classifier)


def trained_paths(model):
    return [variable.path for variable in model.model.trainable_variables]


@each_freezing
def test_a_configuration_holds_what_is_frozen(freeze):
    model = frozen(freeze)
    keras.utils.clear_session(free_memory=False)
    copy = keras_uegr.UEGRModel.from_config(model.get_config())
    assert trained_paths(copy) == trained_paths(model)
    assert len(trained_paths(copy)) < len(model.model.variables)


def test_a_clone_is_frozen():
    model = frozen(freeze_embedding)
    keras.utils.clear_session(free_memory=False)
    clone = keras.models.clone_model(model)
    assert trained_paths(clone) == trained_paths(model)


def test_a_configuration_without_frozen_layers_is_as_before():
    model = keras_uegr.UEGRModel(tiny_bert())
    assert "frozen_layers" not in model.get_config()
    keras.utils.clear_session(free_memory=False)
    copy = keras_uegr.UEGRModel.from_config(model.get_config())
    assert trained_paths(copy) == trained_paths(model)


def test_variables_that_a_layer_froze_itself_stay_so():
    classifier = pooled_model()
    classifier.get_layer("hidden").enable_lora(2)
    classifier.get_layer("embedding").trainable = False
    model = keras_uegr.UEGRModel(classifier)
    keras.utils.clear_session(free_memory=False)
    copy = keras_uegr.UEGRModel.from_config(model.get_config())
    assert trained_paths(copy) == trained_paths(model)


def test_a_thawed_layer_of_a_frozen_block_stays_thawed():
    def flags(model):
        layers = keras_internals.sublayers(model)
        return [layer.trainable for layer in layers]

    block = keras.Sequential(
        [keras.layers.Dense(4) for _ in range(2)], name="block"
    )
    inner = pooled_model(outputs=lambda x: keras.layers.Dense(3)(block(x)))
    block.trainable = False
    block.layers[1].trainable = True
    model = keras_uegr.UEGRModel(inner)
    copy = keras_uegr.UEGRModel.from_config(model.get_config())
    assert flags(copy.model) == flags(model.model)


@keras.saving.register_keras_serializable("test_frozen_layers")
class MadeWhenBuilt(keras.layers.Layer):
    def build(self, input_shape):
        self.inner = [keras.layers.Dense(3) for _ in range(2)]
        for layer in self.inner:
            layer.build(input_shape[:-1] + (3,))

    def call(self, inputs):
        return self.inner[1](self.inner[0](inputs))


@keras.saving.register_keras_serializable("test_frozen_layers")
class Unbuilt(keras.Model):
    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.embedding = keras.layers.Embedding(9, 3)
        self.hidden = MadeWhenBuilt()
        self.dropout = keras.layers.Dropout(0.1)
        self.head = keras.layers.Dense(2)

    def call(self, inputs):
        hidden = ops.mean(self.hidden(self.embedding(inputs)), axis=1)
        return self.head(self.dropout(hidden))


def test_layers_that_are_not_built_yet_shift_no_other():
    classifier = Unbuilt()
    classifier(np.ones((2, 3), "int32"))
    classifier.head.trainable = False
    model = keras_uegr.UEGRModel(classifier)
    copy = keras_uegr.UEGRModel.from_config(model.get_config()).model
    assert [layer.trainable for layer in copy.layers] == [True] * 3 + [False]


@pytest.mark.slow
def test_a_loaded_model_goes_on_where_the_saved_one_stopped(tmp_path):
    model = frozen(freeze_embedding)
    model.compile(
        keras_uegr.SaliencyMaskedOptimizer(keras.optimizers.AdamW(1e-2)),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    )
    model.train_on_batch(*tiny_inputs(4))
    model.save(tmp_path / "model.keras")
    # Keras would warn of an optimizer of other variables.
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    assert trained_paths(loaded) == trained_paths(model)
    state, expected = loaded.optimizer.variables, model.optimizer.variables
    for one, other in zip(state, expected, strict=True):
        np.testing.assert_array_equal(
            ops.convert_to_numpy(one), ops.convert_to_numpy(other)
        )
