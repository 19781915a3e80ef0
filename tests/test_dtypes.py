"""Models in double precision, and models whose layers differ in precision."""

import contextlib
import functools

import keras
import numpy as np
import pytest
from keras import ops

import keras_uegr
from keras_uegr import evaluation
from tests import reference
from tests.pooled_model import pooled_model

pytestmark = pytest.mark.slow

PARAMETERS = reference.random_parameters(20, 5, 4, 3)
TOKEN_IDS = np.random.default_rng(0).integers(1, 20, (6, 7)).astype("int32")
LABELS = np.arange(6) % 3


@contextlib.contextmanager
def double_precision():
    """What a user of `float64` sets, also on JAX, which has none otherwise."""
    before = keras.config.floatx(), keras.config.dtype_policy()
    is_jax = keras.backend.backend() == "jax"
    if is_jax:
        import jax

        jax.config.update("jax_enable_x64", True)
    keras.config.set_floatx("float64")
    keras.config.set_dtype_policy("float64")
    try:
        yield
    finally:
        keras.config.set_floatx(before[0])
        keras.config.set_dtype_policy(before[1])
        if is_jax:
            jax.config.update("jax_enable_x64", False)


@pytest.fixture
def float64():
    with double_precision():
        yield


def compiled(optimizer=None, inner=None, **settings):
    settings = {"warmup_steps": 0, "token_share": 1, **settings}
    model = keras_uegr.UEGRModel(
        inner or pooled_model(parameters=PARAMETERS, rate=0.1), **settings
    )
    model.compile(
        keras_uegr.SaliencyMaskedOptimizer(
            keras.optimizers.SGD(0.1), **(optimizer or {})
        ),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    )
    return model


def weights_of(model):
    return [ops.convert_to_numpy(weight) for weight in model.model.weights]


def assert_trains(model):
    """Two steps change every weight, and all stays finite."""
    before = weights_of(model)
    for _ in range(2):
        logs = model.train_on_batch(TOKEN_IDS, LABELS, return_dict=True)
    assert all(np.isfinite(value) for value in logs.values())
    for old, new in zip(before, weights_of(model), strict=True):
        assert new.dtype == old.dtype
        assert (old != new).any()
    return logs


def test_a_step_in_double_precision_is_that_of_the_reference(float64):
    model = compiled(
        {"density": 1.0},
        perturbation=keras_uegr.FastGradient(0.3),
        dropout=keras_uegr.AdaptiveDropout(0.0, 0.0),
        include_clean=True,
        consistency_weight=2.0,
        inner=pooled_model(parameters=PARAMETERS),
    )
    model.train_on_batch(TOKEN_IDS, LABELS)
    expected = reference.uegr_step(
        PARAMETERS,
        TOKEN_IDS,
        LABELS,
        functools.partial(
            reference.fast_gradient, epsilon=0.3, norm="l2", relative=True
        ),
        sub_models=2,
        adversarial_weight=1.0,
        consistency_weight=2.0,
        learning_rate=0.1,
    )
    for value, weight in zip(expected.values(), weights_of(model), strict=True):
        assert weight.dtype == np.float64
        # The perturbation and the divergence are computed in float32.
        np.testing.assert_allclose(weight, value, rtol=0, atol=1e-8)


def projected(**arguments):
    return {"perturbation": keras_uegr.ProjectedGradient(**arguments)}


# Settings of the model, and of its optimizer.
SETTINGS = {
    "warm-up, fisher": ({"warmup_steps": 2}, {"saliency": "fisher"}),
    "symmetric KL, random": (
        {"divergence": "symmetric_kl"},
        {"saliency": "random"},
    ),
    "sharpness, global": ({"sharpness_radius": 0.05}, {"scope": "global"}),
    "skipping, gradient": ({"skip_nonfinite": True}, {"saliency": "gradient"}),
    "random start, accumulation": (
        projected(random_start=True),
        {"gradient_accumulation_steps": 2},
    ),
    "divergence as objective": (
        projected(random_start=True, objective="divergence", norm="linf"),
        {"exact": True},
    ),
    "training on steps": (projected(train_on_steps=True), {}),
    "masks that last, rank noise": (
        {},
        {"refresh_steps": 2, "rank_noise": 0.1},
    ),
    "normal noise": (
        {
            "perturbation": keras_uegr.GaussianNoise(),
            "dropout": keras_uegr.AdaptiveDropout(policy="divergence"),
        },
        {},
    ),
    "uniform noise": (
        {
            "perturbation": keras_uegr.UniformNoise(),
            "dropout": keras_uegr.AdaptiveDropout(policy="uniform"),
        },
        {},
    ),
}


@pytest.mark.parametrize("name", SETTINGS)
def test_all_settings_train_in_double_precision(float64, name):
    settings, optimizer = SETTINGS[name]
    model = compiled({"density": 0.4, **optimizer}, **settings)
    logs = assert_trains(model)
    assert 0 < logs["updated_fraction"] < 1
    assert weights_of(model)[0].dtype == np.float64


def test_evaluation_in_double_precision(float64):
    model = compiled(perturbation=keras_uegr.FastGradient(0.3))
    curve = evaluation.attacked_curve(
        model, TOKEN_IDS, LABELS, keras_uegr.FastGradient(1.0), [0.0, 2.0]
    )
    assert np.abs(curve[0.0] - curve[2.0]).max() > 0.1
    landscape = evaluation.LossLandscape(model, TOKEN_IDS, LABELS)
    assert landscape.loss_rise(radius=0.1) > 0
    assert landscape.input_gradient_norm() > 0
    assert landscape.top_hessian_eigenvalue(tolerance=0.1) != 0


@pytest.mark.parametrize(
    "policies",
    [
        {"embedding": "float16", "hidden": "mixed_bfloat16"},
        {"embedding": "float32", "hidden": "float16"},
        {"hidden": "mixed_float16", "logits": "bfloat16"},
    ],
    ids=lambda policies: ", ".join(map(" ".join, policies.items())),
)
def test_layers_of_different_precision(policies):
    token_ids = keras.Input((None,), dtype="int32")
    x = keras.layers.Embedding(
        20, 5, name="embedding", dtype=policies.get("embedding")
    )(token_ids)
    x = keras.layers.GlobalAveragePooling1D()(x)
    x = keras.layers.Dense(
        4, "tanh", name="hidden", dtype=policies.get("hidden")
    )(x)
    x = keras.layers.Dropout(0.1)(x)
    outputs = keras.layers.Dense(3, dtype=policies.get("logits"))(x)
    model = compiled(
        {"density": 0.5},
        inner=keras.Model(token_ids, outputs),
        perturbation=keras_uegr.FastGradient(0.3),
    )
    logs = assert_trains(model)
    assert logs["perturbation_norm"] > 0
    assert logs["js_divergence"] > 0
