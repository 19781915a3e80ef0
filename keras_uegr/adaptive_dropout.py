"""Adaptive dropout rates: how strongly each sub-model is thinned.

Algorithm. A policy gives a fraction `f[k, i]` in `[0, 1]` for sub-model `k` of
example `i`; the rate is

    r[k, i] = low + (high - low) * f[k, i]

    confidence:  f[k, i] = c_i * (k + 1) / K,
                 c_i = the clean probability of the true label, exp(-l_i)
    uniform:     f[k, i] ~ U((k) / K, (k + 1) / K)           drawn every step
    scheduled:   f[k, i] = min(1, step / steps)
    divergence:  f <- clip(f + gain * clip((target - JS) / target, -1, 1), 0, 1)

The paper (arXiv:2503.16550) names the adaptive rate and the dropout range; its
abstract gives no formula. The policies are this project's own: `confidence`
follows curriculum dropout (arXiv:1703.06229) in regularizing what is learnt
harder than what is not, `uniform` is R-Drop's idea (arXiv:2106.14448) with a
stratified random rate, `divergence` is a controller on the divergence.
"""

import math
import numbers
from typing import Any, NamedTuple

import keras
from keras import ops


class DropoutSignals(NamedTuple):
    """What a policy may look at.

    Args:
        sub_models: Integer, the number `K` of sub-models.
        confidence: Float tensor of shape `(B,)`: `exp(-loss)` of each example
            in the clean pass, for cross-entropy the probability of the label.
        step: Scalar float tensor, training steps taken before this one.
        divergence: Scalar float tensor, the divergence in the step before.
        fraction: Scalar float tensor, the mean of what the policy returned in
            the step before, weighted by `sample_weight`; 0 at first.
        seed: `keras.random.SeedGenerator` for policies that draw.
    """

    sub_models: int
    confidence: Any
    step: Any
    divergence: Any
    fraction: Any
    seed: Any


class DropoutPolicy:
    """Base class of the policies; subclasses implement `fractions`."""

    def fractions(self, signals):
        """How far into the dropout range each sub-model goes.

        Args:
            signals: A `DropoutSignals`.

        Returns:
            A float tensor of shape `(K, B)` with values in `[0, 1]`.
        """
        raise NotImplementedError

    def get_config(self):
        return {}

    @classmethod
    def from_config(cls, config):
        return cls(**config)


@keras.saving.register_keras_serializable("keras_uegr")
class ConfidencePolicy(DropoutPolicy):
    """Rates grow with the clean probability of the true label.

    What is learnt already is regularized hard, what is not is left alone. The
    sub-models are spread evenly up to that rate, so that they differ.
    """

    def fractions(self, signals):
        spread = ops.arange(1, signals.sub_models + 1, dtype="float32")
        spread = ops.expand_dims(spread / signals.sub_models, axis=1)
        return spread * ops.expand_dims(signals.confidence, axis=0)


@keras.saving.register_keras_serializable("keras_uegr")
class UniformPolicy(DropoutPolicy):
    """Rates drawn afresh each step, one stratum of the range per sub-model."""

    def fractions(self, signals):
        examples = ops.shape(signals.confidence)[0]
        draw = keras.random.uniform(
            (signals.sub_models, examples),
            dtype="float32",
            seed=signals.seed,
        )
        stratum = ops.arange(signals.sub_models, dtype="float32")
        return (ops.expand_dims(stratum, axis=1) + draw) / signals.sub_models


@keras.saving.register_keras_serializable("keras_uegr")
class ScheduledPolicy(DropoutPolicy):
    """Rates rise linearly from the low to the high end of the range.

    Args:
        steps: Positive integer, the training steps until the high end is
            reached. Defaults to `1000`.

    Raises:
        ValueError: If `steps` is not a positive integer.
    """

    def __init__(self, steps=1000):
        if not isinstance(steps, numbers.Integral) or steps < 1:
            raise ValueError(
                f"`steps` must be a positive integer. Received: steps={steps}"
            )
        self.steps = steps

    def fractions(self, signals):
        progress = ops.minimum(signals.step / self.steps, 1.0)
        return _same_for_all(progress, signals)

    def get_config(self):
        return {"steps": self.steps}


@keras.saving.register_keras_serializable("keras_uegr")
class DivergencePolicy(DropoutPolicy):
    """Rates rise while the divergence is below a target and fall above it.

    Args:
        target: Positive float, the mean divergence of an example to hold, in
            nats for classification. Defaults to `0.01`.
        gain: Float in `(0, 1]`, the largest change of the fraction in one
            step. Defaults to `0.02`.

    Raises:
        ValueError: If `target` or `gain` is out of its range.
    """

    def __init__(self, target=0.01, gain=0.02):
        if not isinstance(target, numbers.Real) or not 0 < target < math.inf:
            raise ValueError(
                "`target` must be a positive, finite number. "
                f"Received: target={target}"
            )
        if not isinstance(gain, numbers.Real) or not 0 < gain <= 1:
            raise ValueError(f"`gain` must be in (0, 1]. Received: gain={gain}")
        self.target = target
        self.gain = gain

    def fractions(self, signals):
        error = (self.target - signals.divergence) / self.target
        change = self.gain * ops.clip(error, -1.0, 1.0)
        return _same_for_all(
            ops.clip(signals.fraction + change, 0.0, 1.0), signals
        )

    def get_config(self):
        return {"target": self.target, "gain": self.gain}


def _same_for_all(fraction, signals):
    examples = ops.shape(signals.confidence)[0]
    return fraction * ops.ones((signals.sub_models, examples), dtype="float32")


_POLICIES = {
    "confidence": ConfidencePolicy,
    "uniform": UniformPolicy,
    "scheduled": ScheduledPolicy,
    "divergence": DivergencePolicy,
}


@keras.saving.register_keras_serializable("keras_uegr")
class AdaptiveDropout:
    """Dropout rates of the sub-models, inside a range, set by a policy.

    Args:
        low: Float in `[0, 1)`, the lowest rate. Defaults to `0.05`.
        high: Float in `[low, 1)`, the highest rate. Defaults to `0.3`.
        policy: `"confidence"` (default), `"uniform"`, `"scheduled"`,
            `"divergence"`, or an object with a method `fractions(signals)`
            that takes a `DropoutSignals` and returns a float tensor of shape
            `(sub_models, examples)` with values in `[0, 1]`. To be saved with
            the model it needs `get_config` and
            `keras.saving.register_keras_serializable`.

    Raises:
        ValueError: If the range or the policy is not one of the above.

    Example:

    >>> dropout = keras_uegr.AdaptiveDropout(low=0.05, high=0.3)
    >>> policy = keras_uegr.ScheduledPolicy(steps=500)
    >>> dropout = keras_uegr.AdaptiveDropout(policy=policy)

    Reference:
        - [Sun et al., 2025](https://arxiv.org/abs/2503.16550)
        - [Morerio et al., 2017](https://arxiv.org/abs/1703.06229)
    """

    def __init__(self, low=0.05, high=0.3, policy="confidence"):
        for name, rate in (("low", low), ("high", high)):
            if not isinstance(rate, numbers.Real) or not 0 <= rate < 1:
                raise ValueError(
                    f"`{name}` must be a dropout rate in [0, 1). "
                    f"Received: {name}={rate}"
                )
        if low > high:
            raise ValueError(
                "`low` must not be larger than `high`. "
                f"Received: low={low}, high={high}"
            )
        self.low = low
        self.high = high
        self.policy = _get_policy(policy)

    def rates(self, signals, weight=None):
        """The rate of each row of the sub-model pass, and the mean fraction.

        Args:
            signals: A `DropoutSignals`.
            weight: Optional float tensor of shape `(B,)`, how much each
                example counts for the mean fraction.

        Returns:
            Tuple `(rates, fraction)`: a float32 tensor of shape `(K * B,)`,
            sub-model by sub-model, and a scalar.
        """
        fractions = ops.cast(self.policy.fractions(signals), "float32")
        shape = tuple(fractions.shape)
        expected = (signals.sub_models, signals.confidence.shape[0])
        # The number of examples may be unknown while a step is traced.
        if (
            len(shape) != 2
            or shape[0] != expected[0]
            or (None not in (shape[1], expected[1]) and shape[1] != expected[1])
        ):
            raise ValueError(
                "The `policy` must return fractions of shape (sub_models, "
                f"examples), here {expected}. "
                f"Received: shape {shape}"
            )
        fractions = ops.clip(ops.stop_gradient(fractions), 0.0, 1.0)
        rates = self.low + (self.high - self.low) * fractions
        return ops.reshape(rates, (-1,)), _weighted_mean(fractions, weight)

    def get_config(self):
        return {
            "low": self.low,
            "high": self.high,
            "policy": keras.saving.serialize_keras_object(self.policy),
        }

    @classmethod
    def from_config(cls, config):
        config = dict(config)
        config["policy"] = keras.saving.deserialize_keras_object(
            config["policy"]
        )
        return cls(**config)


def _weighted_mean(fractions, weight):
    """The mean of `(K, B)`; without any weight of the examples it is 0."""
    if weight is None:
        return ops.mean(fractions)
    weight = ops.cast(weight, fractions.dtype)
    total = ops.sum(weight)
    total = ops.where(total > 0, total, ops.ones_like(total))
    return ops.sum(ops.mean(fractions, axis=0) * weight) / total


def _get_policy(policy):
    if isinstance(policy, str) and policy in _POLICIES:
        return _POLICIES[policy]()
    is_class = isinstance(policy, type)
    if not is_class and callable(getattr(policy, "fractions", None)):
        return policy
    raise ValueError(
        f"`policy` must be one of {sorted(_POLICIES)} or an object with a "
        f"method `fractions(signals)`. Received: policy={policy}"
    )
