"""Models of which only a part is trained: LoRA, frozen layers, int8."""

import keras
import numpy as np
import pytest
from keras import ops

import keras_uegr
from tests.backbones import tiny_bert, tiny_texts

# Keras warns of each layer that has nothing to quantize.
pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:Layer .* `quantize` method"),
]


def compiled(classifier):
    model = keras_uegr.UEGRModel(classifier, warmup_steps=0)
    model.compile(
        keras_uegr.SaliencyMaskedOptimizer(
            keras.optimizers.SGD(0.5), density=0.3
        ),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    )
    return model


def trained(model, n=8, epochs=1):
    """The metrics of the last epoch, each of two steps."""
    texts, labels = tiny_texts(n)
    history = model.fit(
        texts,
        labels,
        batch_size=n // 2,
        epochs=epochs,
        shuffle=False,
        verbose=0,
    )
    return {name: values[-1] for name, values in history.history.items()}


def values_of(model):
    return {
        weight.path: ops.convert_to_numpy(weight)
        for weight in model.weights
        if "seed" not in weight.path
    }


def moved(before, after):
    return {path for path in before if np.any(before[path] != after[path])}


def assert_method_at_work(logs):
    assert logs["perturbation_norm"] > 1e-3
    assert logs["js_divergence"] > 1e-6
    assert np.isfinite(logs["loss"])


def freeze_backbone(classifier):
    classifier.backbone.trainable = False


def freeze_embedding(classifier):
    classifier.backbone.token_embedding.trainable = False


def add_lora(classifier):
    classifier.backbone.enable_lora(2)


def quantize_and_add_lora(classifier):
    classifier.backbone.quantize("int8")
    classifier.backbone.enable_lora(2)


@pytest.mark.parametrize(
    "prepare",
    [freeze_backbone, freeze_embedding, add_lora, quantize_and_add_lora],
)
def test_only_what_is_trainable_moves(prepare):
    classifier = tiny_bert()
    prepare(classifier)
    before = values_of(classifier)
    model = compiled(classifier)
    logs = trained(model)
    assert_method_at_work(logs)
    trainable = {x.path for x in classifier.trainable_variables}
    changed = moved(before, values_of(classifier))
    assert changed
    assert changed <= trainable
    if prepare is freeze_backbone:
        # Nothing is left to select from.
        assert logs["updated_fraction"] == 1.0
    else:
        assert any("logits" not in path for path in changed)
    # The head is new, so all of it is updated.
    assert {path for path in trainable if "logits" in path} <= changed


@pytest.mark.parametrize("prepare", [add_lora, quantize_and_add_lora])
def test_every_lora_factor_learns(prepare):
    classifier = tiny_bert()
    prepare(classifier)
    before = values_of(classifier)
    model = compiled(classifier)
    # One factor of each pair starts at zero, and the other has no gradient
    # before the first has moved.
    trained(model, epochs=2)
    factors = {path for path in before if "/lora_" in path}
    assert len(factors) > 2
    assert factors <= moved(before, values_of(classifier))


@pytest.mark.parametrize("prepare", [add_lora, quantize_and_add_lora])
def test_a_file_holds_what_one_of_the_classifier_alone_holds(prepare, tmp_path):
    classifier = tiny_bert()
    prepare(classifier)
    model = compiled(classifier)
    trained(model)
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    classifier.save(tmp_path / "classifier.keras")
    with pytest.warns(UserWarning, match="was not called as part"):
        alone = keras.saving.load_model(tmp_path / "classifier.keras")
    texts, _ = tiny_texts(5)
    predicted = loaded.predict(texts, verbose=0)
    expected = alone.predict(texts, verbose=0)
    np.testing.assert_allclose(predicted, expected, atol=1e-6)
    if prepare is add_lora:
        # Into int8 Keras merges the factors by rounding once more.
        expected = model.predict(texts, verbose=0)
        np.testing.assert_allclose(predicted, expected, atol=1e-6)


def test_layers_thawed_between_two_fits_move_from_then_on():
    classifier = tiny_bert()
    freeze_embedding(classifier)
    model = compiled(classifier)
    trained(model)
    classifier.backbone.token_embedding.trainable = True
    before = values_of(classifier)
    model = compiled(classifier)
    trained(model)
    changed = moved(before, values_of(classifier))
    assert any("token_embedding" in path for path in changed)
