import json

import keras
import numpy as np
import pytest
from keras import ops

import keras_uegr

CONFIDENCE = np.array([0.0, 0.25, 0.5, 1.0], "float32")


def signals(
    sub_models=3,
    confidence=CONFIDENCE,
    step=0.0,
    divergence=0.0,
    fraction=0.0,
    seed=0,
):
    return keras_uegr.DropoutSignals(
        sub_models=sub_models,
        confidence=ops.convert_to_tensor(confidence),
        step=ops.convert_to_tensor(step, "float32"),
        divergence=ops.convert_to_tensor(divergence, "float32"),
        fraction=ops.convert_to_tensor(fraction, "float32"),
        seed=keras.random.SeedGenerator(seed),
    )


def fractions(policy, **what):
    return ops.convert_to_numpy(policy.fractions(signals(**what)))


def rates_of(dropout, **what):
    """The rates, one row per sub-model, and the mean fraction."""
    given = signals(**what)
    rates, fraction = dropout.rates(given)
    rates = ops.convert_to_numpy(rates)
    return rates.reshape(given.sub_models, -1), float(fraction)


@pytest.mark.parametrize("sub_models", [1, 2, 5])
@pytest.mark.parametrize(
    "name", ["confidence", "uniform", "scheduled", "divergence"]
)
def test_rates_are_one_per_row_and_inside_the_range(name, sub_models):
    dropout = keras_uegr.AdaptiveDropout(0.2, 0.6, name)
    for step, fraction in ((0.0, 0.0), (500.0, 0.5), (1e6, 1.0)):
        given = signals(
            sub_models, step=step, divergence=0.3, fraction=fraction
        )
        values = dropout.policy.fractions(given)
        assert tuple(values.shape) == (sub_models, 4)
        rates, mean = dropout.rates(given)
        assert tuple(rates.shape) == (sub_models * 4,)
        rates = ops.convert_to_numpy(rates)
        assert rates.dtype == "float32"
        assert rates.min() >= 0.2 - 1e-6
        assert rates.max() <= 0.6 + 1e-6
        assert float(mean) == pytest.approx(
            (rates.mean() - 0.2) / (0.6 - 0.2), abs=1e-5
        )


def test_confidence_follows_its_formula():
    values = fractions(keras_uegr.ConfidencePolicy(), sub_models=4)
    spread = np.array([1, 2, 3, 4])[:, None] / 4
    np.testing.assert_allclose(values, spread * CONFIDENCE, rtol=1e-6)


def test_confidence_drops_more_of_what_is_learnt_and_spreads_sub_models():
    rates, _ = rates_of(keras_uegr.AdaptiveDropout(0.1, 0.5, "confidence"))
    np.testing.assert_allclose(rates[:, 0], 0.1)
    assert (np.diff(rates, axis=1) > 0).all()
    assert (np.diff(rates[:, 1:], axis=0) > 0).all()
    assert rates[-1, -1] == pytest.approx(0.5)


def test_rates_stand_sub_model_by_sub_model():
    rates, _ = keras_uegr.AdaptiveDropout(0.0, 0.9).rates(
        signals(sub_models=2, confidence=np.array([1.0, 0.0], "float32"))
    )
    np.testing.assert_allclose(
        ops.convert_to_numpy(rates), [0.45, 0.0, 0.9, 0.0], atol=1e-6
    )


def test_uniform_draws_one_stratum_for_each_sub_model():
    confidence = np.ones(2000, "float32")
    values = fractions(
        keras_uegr.UniformPolicy(), sub_models=4, confidence=confidence
    )
    for k, row in enumerate(values):
        assert row.min() >= k / 4
        assert row.max() <= (k + 1) / 4
        assert row.mean() == pytest.approx((k + 0.5) / 4, abs=0.01)
        assert row.std() == pytest.approx(0.25 / np.sqrt(12), rel=0.1)


def test_uniform_is_reproducible_by_seed_and_fresh_each_step():
    policy = keras_uegr.UniformPolicy()
    np.testing.assert_array_equal(
        fractions(policy, seed=3), fractions(policy, seed=3)
    )
    assert np.abs(fractions(policy, seed=3) - fractions(policy, seed=4)).max()
    given = signals(seed=3)
    first = ops.convert_to_numpy(policy.fractions(given))
    second = ops.convert_to_numpy(policy.fractions(given))
    assert np.abs(first - second).max() > 1e-3


def test_scheduled_rises_linearly_and_reaches_the_high_end_at_its_steps():
    policy = keras_uegr.ScheduledPolicy(steps=40)
    dropout = keras_uegr.AdaptiveDropout(0.1, 0.5, policy)
    for step, rate in ((0, 0.1), (10, 0.2), (20, 0.3), (40, 0.5), (99, 0.5)):
        rates, _ = rates_of(dropout, step=float(step))
        np.testing.assert_allclose(rates, rate, rtol=1e-6)


def test_divergence_rises_below_its_target_and_falls_above_it():
    policy = keras_uegr.DivergencePolicy(target=0.04, gain=0.1)
    for divergence, change in (
        (0.0, 0.1),
        (0.02, 0.05),
        (0.04, 0.0),
        (0.05, -0.025),
        (0.08, -0.1),
        # The change is bounded however far off the divergence is.
        (5.0, -0.1),
    ):
        values = fractions(policy, divergence=divergence, fraction=0.5)
        np.testing.assert_allclose(values, 0.5 + change, rtol=1e-5)


def test_divergence_controller_stays_in_its_range():
    policy = keras_uegr.DivergencePolicy(target=0.04, gain=0.3)
    for divergence, end in ((0.0, 1.0), (1.0, 0.0)):
        fraction, path = 0.5, []
        for _ in range(6):
            values = fractions(policy, divergence=divergence, fraction=fraction)
            fraction = values.mean()
            path.append(fraction)
        assert 0 <= min(path) <= max(path) <= 1
        assert path[-1] == end


def test_divergence_controller_settles_where_the_target_is():
    """Against a divergence that grows with the fraction, as it does."""
    dropout = keras_uegr.AdaptiveDropout(
        policy=keras_uegr.DivergencePolicy(target=0.02, gain=0.1)
    )
    fraction = 0.0
    for _ in range(100):
        _, fraction = rates_of(
            dropout, divergence=0.05 * fraction, fraction=fraction
        )
    assert fraction == pytest.approx(0.4, abs=1e-3)


@keras.saving.register_keras_serializable("keras_uegr_tests")
class OwnPolicy:
    """Not a subclass: one method is all that is asked for."""

    def __init__(self, value=0.5):
        self.value = value

    def fractions(self, signals):
        shape = (signals.sub_models, signals.confidence.shape[0])
        return ops.full(shape, self.value)

    def get_config(self):
        return {"value": self.value}

    @classmethod
    def from_config(cls, config):
        return cls(**config)


@pytest.mark.parametrize(
    ("value", "rate", "mean"),
    [(0.25, 0.2, 0.25), (-3.0, 0.1, 0.0), (7.0, 0.5, 1.0)],
)
def test_a_users_policy_is_used_and_clipped_to_the_range(value, rate, mean):
    dropout = keras_uegr.AdaptiveDropout(0.1, 0.5, OwnPolicy(value))
    rates, fraction = rates_of(dropout)
    np.testing.assert_allclose(rates, rate, rtol=1e-6)
    assert fraction == pytest.approx(mean)


@pytest.mark.parametrize(
    ("weight", "mean"),
    [(None, 0.4375), ([0.0, 2.0, 0.0, 6.0], 0.8125), ([0.0] * 4, 0.0)],
)
def test_the_mean_fraction_counts_examples_by_their_weight(weight, mean):
    class Confident(keras_uegr.DropoutPolicy):
        def fractions(self, signals):
            return ops.stack([signals.confidence] * signals.sub_models)

    if weight is not None:
        weight = ops.convert_to_tensor(weight)
    dropout = keras_uegr.AdaptiveDropout(policy=Confident())
    _, fraction = dropout.rates(signals(), weight)
    assert float(fraction) == pytest.approx(mean)


def test_equal_ends_give_one_rate_whatever_the_policy_says():
    rates, _ = rates_of(keras_uegr.AdaptiveDropout(0.0, 0.0))
    np.testing.assert_array_equal(rates, 0.0)


@pytest.mark.parametrize(
    "policy",
    [
        "confidence",
        "uniform",
        keras_uegr.ScheduledPolicy(steps=7),
        keras_uegr.DivergencePolicy(target=0.2, gain=0.3),
        OwnPolicy(0.75),
    ],
    ids=lambda policy: policy if isinstance(policy, str) else type(policy),
)
def test_configuration_makes_the_round_trip(policy):
    dropout = keras_uegr.AdaptiveDropout(0.1, 0.4, policy)
    config = json.loads(
        json.dumps(keras.saving.serialize_keras_object(dropout))
    )
    restored = keras.saving.deserialize_keras_object(config)
    assert isinstance(restored, keras_uegr.AdaptiveDropout)
    assert (restored.low, restored.high) == (0.1, 0.4)
    assert type(restored.policy) is type(dropout.policy)
    assert vars(restored.policy) == vars(dropout.policy)


RATE = "`{0}` must be a dropout rate in \\[0, 1\\). Received: {0}="


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"low": 0.4, "high": 0.2}, "`low` must not be larger than `high`."),
        ({"high": 1.0}, RATE.format("high") + "1.0"),
        ({"high": 1.5}, RATE.format("high") + "1.5"),
        ({"low": 1.0, "high": 1.0}, RATE.format("low") + "1.0"),
        ({"low": -0.1}, RATE.format("low") + "-0.1"),
        ({"low": float("nan")}, RATE.format("low") + "nan"),
        ({"high": float("nan")}, RATE.format("high") + "nan"),
        ({"high": float("inf")}, RATE.format("high") + "inf"),
        ({"low": "0.1"}, RATE.format("low") + "0.1"),
        ({"low": None}, RATE.format("low") + "None"),
        ({"policy": "random"}, "`policy` must be one of .*policy=random"),
        ({"policy": None}, "`policy` must be one of .*policy=None"),
        ({"policy": 0.3}, "an object with a method `fractions"),
        ({"policy": object()}, "an object with a method `fractions"),
    ],
)
def test_wrong_arguments_are_told(arguments, message):
    with pytest.raises(ValueError, match=message):
        keras_uegr.AdaptiveDropout(**arguments)


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("ScheduledPolicy", {"steps": 0}, "`steps` must be a positive integer"),
        ("ScheduledPolicy", {"steps": 1.5}, "Received: steps=1.5"),
        ("DivergencePolicy", {"target": 0}, "`target` must be a positive"),
        ("DivergencePolicy", {"target": -1.0}, "Received: target=-1.0"),
        ("DivergencePolicy", {"target": float("nan")}, "target=nan"),
        ("DivergencePolicy", {"gain": 0.0}, "`gain` must be in \\(0, 1\\]"),
        ("DivergencePolicy", {"gain": 1.5}, "Received: gain=1.5"),
        ("DivergencePolicy", {"gain": "fast"}, "Received: gain=fast"),
    ],
)
def test_wrong_arguments_of_policies_are_told(name, arguments, message):
    with pytest.raises(ValueError, match=message):
        getattr(keras_uegr, name)(**arguments)
