"""Each family of models, trained by a compiled UEGR step."""

import keras
import keras_hub
import numpy as np
import pytest

import keras_uegr
from keras_uegr import objective
from tests.backbones import randomize, tiny_bert
from tests.conformance import families
from tests.conformance.late_dropout import (
    assert_perturbation_reaches_the_model,
    assert_sub_models_differ,
    late_dropout,
    without_own_dropout,
)

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
# Of the decoder where there is an encoder too.
DECODER_LENGTH = 6
# Their inputs don't say what is padding: the preprocessor's tokenizer does.
WITHOUT_PADDING_MASK = ("FNet", "RoFormer-v2")


def compiled(model):
    model.compile(
        keras_uegr.SaliencyMaskedOptimizer(keras.optimizers.RMSprop(0.0)),
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
    # Other tokens than the encoder's, fewer of them, and none of them padding.
    of_decoder = {
        "token_ids": token_ids()[::-1, :DECODER_LENGTH] % 7 + 1,
        "padding_mask": mask[:1, :DECODER_LENGTH].repeat(4, axis=0),
    }
    return {
        name: of_decoder[name.removeprefix("decoder_")]
        if name.startswith("decoder_")
        else values[name.removeprefix("encoder_")]
        for name in backbone.input
    }


def step(model, x, times=1):
    """The metrics of one step, or their means over several."""
    # An epoch for each would take TensorFlow longer than the steps.
    x, y = keras.tree.map_structure(
        lambda values: np.concatenate([values] * times), (x, LABELS)
    )
    logs = model.fit(x, y, batch_size=4, shuffle=False, verbose=0).history
    return {name: value for name, (value,) in logs.items()}


def assert_perturbs_unpadded_tokens(model, x, metrics):
    """The norm is relative to what may move: here a part of `token_ids`."""
    named = x if isinstance(x, dict) else {"token_ids": x}
    part = "encoder_" if "encoder_token_ids" in named else ""
    ids = named[f"{part}token_ids"]
    mask = named.get(f"{part}padding_mask", ids != 0)
    embedded = keras.ops.convert_to_numpy(model.embedding(ids))
    norms = np.linalg.norm(embedded * mask[..., None], axis=(1, 2))
    assert metrics["perturbation_norm"] == pytest.approx(
        model.perturbation.epsilon * norms.mean(), rel=1e-5
    )
    np.testing.assert_array_equal(perturbed_positions(model, x), mask != 0)


def perturbed_positions(model, x):
    """Where noise is added to the embedding, Booleans of shape `(B, T)`.

    A gradient is no witness: at padding that the model ignores it is 0 anyhow.
    """
    noise = keras_uegr.UniformNoise(0.1)

    def perturb(data):
        _, clean = objective.clean_pass(model, objective.Batch(*data), None)
        at = (clean.embedded.embedding, clean.embedded.movable)
        return noise.start(*at, 1.0, model.seed_generator)

    data = keras.tree.map_structure(keras.ops.convert_to_tensor, (x, LABELS))
    delta = keras.ops.convert_to_numpy(model.compile_inference(perturb)(data))
    return (delta != 0).any(axis=-1)


def assert_trains(model, x):
    """A step's sub-models differ, and training lowers the loss."""
    first = step(model, x)
    assert_sub_models_differ(first)
    model.optimizer.learning_rate = 0.02
    step(model, x, times=23)
    last = step(model, x)
    assert last["clean_loss"] < 0.9 * first["clean_loss"]


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
    is_told = family not in WITHOUT_PADDING_MASK
    model = keras_uegr.UEGRModel.from_backbone(
        backbone,
        num_classes=2,
        preprocessor=None if is_told else tiny_bert().preprocessor,
        # Strong enough, on all tokens, that no step is without effect.
        perturbation=keras_uegr.FastGradient(0.1),
        dropout=late_dropout(),
        token_share=1,
        warmup_steps=0,
    )
    without_own_dropout(randomize(model.model))
    compiled(model)
    x = inputs_of(backbone, padding=7 if is_told else model.padding_token_id)
    first = step(model, x)
    assert_perturbation_reaches_the_model(first)
    assert_perturbs_unpadded_tokens(model, x, first)
    assert_trains(model, x)
    assert_same_after_loading(model, x, tmp_path / "model.keras")


@pytest.mark.parametrize("kind", families.OTHER_MODELS)
def test_other_model(kind, tmp_path):
    inner = families.OTHER_MODELS[kind]()
    x = token_ids()
    inner(x)
    model = compiled(
        keras_uegr.UEGRModel(
            without_own_dropout(randomize(inner)),
            # These are less sensitive than transformers.
            perturbation=keras_uegr.FastGradient(0.5),
            dropout=late_dropout(),
            token_share=1,
            warmup_steps=0,
        )
    )
    first = step(model, x)
    assert_perturbation_reaches_the_model(first)
    assert_perturbs_unpadded_tokens(model, x, first)
    assert_trains(model, x)
    assert_same_after_loading(model, x, tmp_path / "model.keras")
