import functools

import keras
import numpy as np
import pytest
from keras import ops

import keras_uegr
from tests import reference
from tests.pooled_model import pooled_model


def compiled(**arguments):
    """A model that draws nothing, whose steps are the same each time."""
    parameters = reference.random_parameters(20, 5, 4, 3)
    far = keras_uegr.ProjectedGradient(0.5, steps=1)
    model = keras_uegr.UEGRModel(
        pooled_model(parameters=parameters),
        **{"perturbation": far, **arguments},
        dropout=keras_uegr.AdaptiveDropout(0.0, 0.0),
        token_share=1,
        include_clean=True,
        warmup_steps=0,
    )
    compile_anew(model)
    return model


def compile_anew(model):
    model.compile(
        keras.optimizers.SGD(0.5),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    )


def train(model):
    rng = np.random.default_rng(0)
    token_ids = rng.integers(1, 20, (6, 7)).astype("int32")
    model.fit(token_ids, rng.integers(0, 3, 6), shuffle=False, verbose=0)
    return [ops.convert_to_numpy(weight) for weight in model.model.weights]


@functools.cache
def second_fit(*changes):
    """The weights after two fits, with `changes` of the model in between."""
    keras.utils.set_random_seed(0)
    model = compiled()
    train(model)
    for change in changes:
        change(model)
    return train(model)


def enlarge_radius(model):
    model.perturbation.epsilon = 1.0


def take_steps(model):
    model.perturbation.steps = 4


def step_less(model):
    model.perturbation.step_size = 0.1


def drop_more(model):
    model.dropout.low = model.dropout.high = 0.9


def set_policy(model):
    model.dropout.high = 0.9
    model.dropout.policy = keras_uegr.ScheduledPolicy(1)


@pytest.mark.slow
@pytest.mark.parametrize(
    "change",
    [
        enlarge_radius,
        take_steps,
        step_less,
        drop_more,
        set_policy,
        lambda model: setattr(model, "perturbation", None),
        lambda model: setattr(model, "adversarial_weight", 3.0),
        lambda model: setattr(model, "consistency_weight", 300.0),
        lambda model: setattr(model, "clean_weight", 0.0),
        lambda model: setattr(model, "sharpness_radius", 0.5),
        lambda model: setattr(model, "warmup_steps", 4),
        lambda model: setattr(model, "unperturbed_token_ids", [3, 4, 5]),
    ],
    ids=[
        "radius",
        "steps",
        "step size",
        "dropout",
        "policy",
        "no perturbation",
        "adversarial weight",
        "consistency weight",
        "clean weight",
        "sharpness",
        "warm-up",
        "unperturbed",
    ],
)
def test_what_is_changed_between_two_fits_holds_in_the_second(change):
    changed = second_fit(change)
    expected = second_fit(change, compile_anew)
    unchanged = second_fit()
    for one, other in zip(changed, expected, strict=True):
        np.testing.assert_allclose(one, other, atol=2e-6)
    assert np.abs(changed[0] - unchanged[0]).max() > 1e-4


def test_a_step_is_not_built_anew_as_long_as_nothing_changes():
    model = compiled()
    train(model)
    known = model.train_function
    train(model)
    assert model.train_function is known


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"sub_models": 1, "include_clean": False}, "`sub_models=1`"),
        ({"token_share": 15}, "`token_share` must be a number"),
        ({"consistency_weight": -1.0}, "`consistency_weight` must be"),
        ({"perturbation": "gradient"}, "`perturbation` must be"),
        ({"dropout": 0.1}, "`dropout` must be"),
        ({"skip_nonfinite": "yes"}, "`skip_nonfinite` must be"),
        ({"unperturbed_token_ids": "special"}, "needs a preprocessor"),
        ({"consistency_outputs": "main"}, "`consistency_outputs` must be"),
    ],
)
def test_a_change_is_checked_as_the_next_fit_begins(settings, message):
    model = compiled()
    for name, value in settings.items():
        setattr(model, name, value)
    for _ in range(2):
        with pytest.raises(ValueError, match=message):
            train(model)


def test_a_warm_up_is_checked_as_it_is_set():
    model = compiled()
    with pytest.raises(ValueError, match="Received: warmup_steps=-1"):
        model.warmup_steps = -1
    assert model.warmup_steps == model.get_config()["warmup_steps"] == 0


def test_parts_may_be_set_by_their_names():
    model = compiled(perturbation=None)
    model.perturbation, model.dropout = "fast_gradient", "adaptive"
    train(model)
    assert isinstance(model.perturbation, keras_uegr.FastGradient)
    assert isinstance(model.dropout, keras_uegr.AdaptiveDropout)
