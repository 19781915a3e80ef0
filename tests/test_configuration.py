"""Each argument of `UEGRModel` is saved, and varied as a tuner would."""

import inspect

import keras
import numpy as np
import pytest

import keras_uegr
from tests import reference
from tests.backbones import tiny_bert
from tests.pooled_model import pooled_model

# Each argument but `model`, off its default.
ARGUMENTS = {
    "perturbation": lambda: keras_uegr.ProjectedGradient(0.02, steps=2),
    "dropout": lambda: keras_uegr.AdaptiveDropout(0.1, 0.2, "uniform"),
    "sub_models": lambda: 3,
    "token_share": lambda: 0.25,
    "adversarial_weight": lambda: 0.5,
    "consistency_weight": lambda: 2.0,
    "clean_weight": lambda: 0.25,
    "divergence": lambda: "symmetric_kl",
    "sharpness_radius": lambda: 0.03,
    "include_clean": lambda: True,
    "warmup_steps": lambda: 7,
    "sub_models_select": lambda: True,
    "skip_nonfinite": lambda: True,
    "output_kind": lambda: "sigmoid",
    "consistency_outputs": lambda: ["topic"],
    "embedding": lambda: "embedding",
    "embedded_input": lambda: "token_ids",
    "dropout_layers": lambda: ["dropout"],
    "unperturbed_token_ids": lambda: [3, 4],
    "preprocessor": lambda: tiny_bert().preprocessor,
    "name": lambda: "tuned",
}
# What a tuner may try.
TRIALS = [
    {"sub_models": 3},
    {"perturbation": keras_uegr.GaussianNoise(0.2)},
    {"dropout": keras_uegr.AdaptiveDropout(0.2, 0.4, "uniform")},
    {"divergence": "symmetric_kl", "include_clean": True},
    {"adversarial_weight": 0.0, "consistency_weight": 2.0},
    {"sharpness_radius": 0.05, "clean_weight": 0.5},
]


def two_outputs():
    model = pooled_model(
        outputs=lambda x: {
            name: keras.layers.Dense(2, name=name)(x)
            for name in ("topic", "tone")
        }
    )
    return keras.Model({"token_ids": model.input}, model.output)


def defaults():
    parameters = inspect.signature(keras_uegr.UEGRModel.__init__).parameters
    return {
        name: parameter.default
        for name, parameter in parameters.items()
        if name not in ("self", "model")
    }


def assert_holds(config, arguments):
    for name, value in arguments.items():
        expected = keras.saving.serialize_keras_object(value)
        actual = config[name]
        # A tuple is as good as a list.
        actual = list(actual) if isinstance(actual, tuple) else actual
        assert actual == expected, name


def test_every_argument_is_tried():
    assert ARGUMENTS.keys() == defaults().keys()


def test_every_argument_is_saved(tmp_path):
    arguments = {name: make() for name, make in ARGUMENTS.items()}
    for name, default in defaults().items():
        assert arguments[name] != default, name
    keras.utils.clear_session(free_memory=False)
    model = keras_uegr.UEGRModel(two_outputs(), **arguments)
    assert_holds(model.get_config(), arguments)
    copy = keras_uegr.UEGRModel.from_config(model.get_config())
    assert_holds(copy.get_config(), arguments)
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    assert_holds(loaded.get_config(), arguments)


def test_several_models_are_made_of_one_configuration():
    config = keras_uegr.UEGRModel(pooled_model()).get_config()
    first, second = (keras_uegr.UEGRModel.from_config(config) for _ in range(2))
    assert second.get_config() == first.get_config() == config


@pytest.mark.slow
@pytest.mark.parametrize("arguments", TRIALS, ids=lambda x: ", ".join(x))
def test_clone_with_other_arguments_trains(arguments):
    parameters = reference.random_parameters(20, 5, 4, 3)
    original = keras_uegr.UEGRModel(
        pooled_model(parameters=parameters, mask_zero=True), warmup_steps=0
    )
    changes = {
        name: keras.saving.serialize_keras_object(value)
        for name, value in arguments.items()
    }
    clone = keras_uegr.UEGRModel.from_config(original.get_config() | changes)
    clone.set_weights(original.get_weights())
    assert_holds(clone.get_config(), arguments)
    clone.compile(
        keras_uegr.SaliencyMaskedOptimizer("sgd"),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    )
    rng = np.random.default_rng(0)
    x = rng.integers(1, 20, (6, 7)).astype("int32")
    logs = clone.train_on_batch(x, rng.integers(0, 3, 6), return_dict=True)
    assert all(np.isfinite(value) for value in logs.values())
    assert logs["perturbation_norm"] > 0
    trained = clone.model.get_weights()
    # The original's values are as they were.
    for weight, value in zip(
        original.model.get_weights(), parameters.values(), strict=True
    ):
        np.testing.assert_array_equal(weight, value.astype(weight.dtype))
    assert np.abs(trained[0] - original.model.get_weights()[0]).max() > 0
