"""Each family of models, trained by a compiled UEGR step."""

import keras
import keras_hub
import numpy as np
import pytest

import keras_uegr
from tests.backbones import randomize
from tests.conformance import families

# Plain Keras says the same of these models.
pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:Gradients do not exist"),
    pytest.mark.filterwarnings("ignore:Layer .* does not support masking"),
    pytest.mark.filterwarnings("ignore:Layer .* looks like it has unbuilt"),
    pytest.mark.filterwarnings("ignore:(?s).*non-tuple sequence"),
]
LABELS = np.array([0, 1, 0, 1])
PADDED = 5
# Their inputs don't say what is padding.
WITHOUT_PADDING_MASK = ("FNet", "RoFormer-v2")


def compiled(model):
    model.compile(
        keras_uegr.SaliencyMaskedOptimizer(keras.optimizers.Adam(0.0)),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    )
    return model


def token_ids(padding=0):
    """Four examples, all but the first with three positions of padding."""
    rng = np.random.default_rng(0)
    ids = rng.integers(1, families.VOCABULARY_SIZE, (4, families.LENGTH))
    ids[1:, PADDED:] = padding
    return ids.astype("int32")


def inputs_of(backbone, padding=0):
    """What the backbone takes, with any token at the padded positions."""
    mask = np.ones((4, families.LENGTH), "int32")
    mask[1:, PADDED:] = 0
    values = {
        "token_ids": token_ids(padding),
        "padding_mask": mask,
        "segment_ids": np.zeros_like(mask),
    }
    return {
        name: values[name.removeprefix("encoder_").removeprefix("decoder_")]
        for name in backbone.input
    }


def steps(model, x, count=1):
    """The metrics of the first and of the last one of some steps."""
    history = model.fit(
        x, LABELS, batch_size=4, shuffle=False, epochs=count, verbose=0
    ).history
    return [
        {name: values[at] for name, values in history.items()} for at in (0, -1)
    ]


def assert_same_norm(one, other):
    """The norm is relative to what may move, so padding would change it."""
    assert one["perturbation_norm"] == pytest.approx(
        other["perturbation_norm"], rel=1e-5
    )


def assert_trains(model, x):
    """A step perturbs, its sub-models differ, and training lowers the loss."""
    first, _ = steps(model, x)
    assert first["perturbation_norm"] > 1e-2
    assert first["js_divergence"] > 1e-8
    model.optimizer.learning_rate = 0.02
    _, last = steps(model, x, count=12)
    assert last["clean_loss"] < 0.9 * first["clean_loss"]
    return first


def assert_same_after_loading(model, x, path):
    model.save(path)
    loaded = keras.saving.load_model(path)
    np.testing.assert_allclose(
        loaded.predict(x, verbose=0), model.predict(x, verbose=0), atol=1e-5
    )


@pytest.mark.parametrize("family", families.BACKBONES)
def test_backbone(family, tmp_path):
    if not hasattr(keras_hub.models, families.BACKBONES[family][0]):
        pytest.skip(f"this KerasHub has no {families.BACKBONES[family][0]}")
    backbone = families.backbone(family)
    model = keras_uegr.UEGRModel.from_backbone(
        backbone, num_classes=2, warmup_steps=0
    )
    randomize(model.model)
    compiled(model)
    x = inputs_of(backbone)
    if family not in WITHOUT_PADDING_MASK:
        one, _ = steps(model, x)
        other, _ = steps(model, inputs_of(backbone, padding=7))
        assert_same_norm(one, other)
    assert_trains(model, x)
    assert_same_after_loading(model, x, tmp_path / "model.keras")


@pytest.mark.parametrize("kind", families.OTHER_MODELS)
def test_other_model(kind, tmp_path):
    inner = families.OTHER_MODELS[kind]()
    x = token_ids()[:, :PADDED]
    inner(x)
    model = compiled(keras_uegr.UEGRModel(randomize(inner), warmup_steps=0))
    one, _ = steps(model, x)
    other, _ = steps(model, np.pad(x, ((0, 0), (0, 3))))
    assert_same_norm(one, other)
    assert_trains(model, x)
    assert_same_after_loading(model, x, tmp_path / "model.keras")
