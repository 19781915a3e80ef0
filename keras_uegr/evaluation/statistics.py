"""Intervals and paired tests for what was measured of models.

Two kinds of chance are at work, and each has its own tools:

- *Examples*: another test set would have given another accuracy. One model's
  interval: `bootstrap_interval`. Two models on the same examples:
  `mcnemar_test` for right and wrong answers, `paired_permutation_test` for any
  value per example.
- *Seeds*: another seed would have trained another model. One method's
  interval: `t_interval`. Two methods with the same seeds: `paired_t_test`.

SciPy does the work. It is no dependency of this package:
`pip install "keras-uegr[evaluation]"`.
"""

import dataclasses
import math
import numbers

import numpy as np

from keras_uegr import value_checks
from keras_uegr.evaluation.optional_import import import_optional
from keras_uegr.string_data import to_array

# Two differences of decimals are rarely equal in binary.
_ROUNDING = 1e-12


@dataclasses.dataclass(frozen=True)
class Interval:
    """A mean and its confidence interval.

    Args:
        mean: Float.
        low: Float, the lower end.
        high: Float, the upper end.

    Example:

    >>> Interval(mean=0.8, low=0.75, high=0.85).margin
    0.05
    """

    mean: float
    low: float
    high: float

    @property
    def margin(self):
        """Half the width of the interval."""
        return round((self.high - self.low) / 2, 12)


@dataclasses.dataclass(frozen=True)
class PairedTest:
    """What a paired test found.

    Args:
        difference: Float, the mean of the first minus that of the second.
        p_value: Float between 0 and 1: how often chance alone makes a
            difference at least as large, in either direction.
    """

    difference: float
    p_value: float


def bootstrap_interval(values, confidence=0.95, resamples=9999, seed=0):
    """The interval of a mean over examples, by resampling them.

    Args:
        values: Array of `N` numbers, one per example, such as 1 for a right
            answer and 0 for a wrong one.
        confidence: Float between 0 and 1, both excluded. Defaults to `0.95`.
        resamples: Positive integer. Defaults to `9999`.
        seed: Integer. Defaults to `0`.

    Returns:
        `Interval`, between percentiles of the resampled means. Where all
        values are 0, or all are 1, resampling finds no other, and it is
        Wilson's score interval.

    Raises:
        ValueError: If there is no value, a single one that is neither 0 nor
            1, or one that isn't finite, or if `confidence` or `resamples` is
            not as above.

    Example:

    >>> hits = [1, 1, 1, 0, 1, 0, 1, 1, 1, 0]
    >>> bootstrap_interval(hits).mean
    0.7

    Reference:
        - [Efron, 1979](https://doi.org/10.1214/aos/1176344552)
        - [Wilson, 1927](https://doi.org/10.1080/01621459.1927.10502953)
    """
    _check_confidence(confidence)
    value_checks.check_positive_integers(resamples=resamples)
    values = _numbers("values", values)
    if values[0] in (0, 1) and np.ptp(values) == 0:
        hits = int(values.sum())
        outcome = _import_stats().binomtest(hits, len(values))
        ends = outcome.proportion_ci(confidence, method="wilson")
        return Interval(float(values[0]), float(ends.low), float(ends.high))
    values = _numbers("values", values, least=2)
    outcome = (
        _import_stats()
        .bootstrap(
            (values,),
            np.mean,
            confidence_level=confidence,
            n_resamples=resamples,
            # All resamples at once would be as many copies of the test set.
            batch=256,
            method="percentile",
            rng=np.random.default_rng(seed),
        )
        .confidence_interval
    )
    return Interval(
        float(values.mean()), float(outcome.low), float(outcome.high)
    )


def t_interval(values, confidence=0.95):
    """The interval of a mean over seeds, by Student's t distribution.

    Args:
        values: Array of `N` numbers, one per seed, at least two.
        confidence: Float between 0 and 1, both excluded. Defaults to `0.95`.

    Returns:
        `Interval`.

    Raises:
        ValueError: If there are fewer than two values, or one that isn't
            finite, or if `confidence` is not as above.

    Example:

    >>> round(t_interval([0.80, 0.82, 0.84]).margin, 4)
    0.0497

    Reference:
        - [Student, 1908](https://doi.org/10.2307/2331554)
    """
    _check_confidence(confidence)
    values = _numbers("values", values, least=2)
    quantile = _import_stats().t.ppf((1 + confidence) / 2, len(values) - 1)
    margin = quantile * values.std(ddof=1) / np.sqrt(len(values))
    mean = values.mean()
    return Interval(float(mean), float(mean - margin), float(mean + margin))


def mcnemar_test(first, second):
    """Whether two models are right equally often on the same examples.

    Only examples that one model gets right and the other wrong count; by
    chance, each model would win half of them (exact binomial test).

    Args:
        first: Array of `N` booleans, or of 1 and 0, whether the first model
            was right.
        second: Array of `N` of them, of the second model.

    Returns:
        `PairedTest`. Its p-value is 1 where the models never disagree.

    Raises:
        ValueError: If there is no value, one is none of the above, or there
            are not as many of one model as of the other.

    Example:

    >>> first = [True, True, True, True, True, False]
    >>> second = [False, False, False, False, True, False]
    >>> mcnemar_test(first, second).p_value
    0.125

    Reference:
        - [McNemar, 1947](https://doi.org/10.1007/BF02295996)
    """
    first, second = _paired(first, second)
    _check_right_or_wrong(first=first, second=second)
    wins, losses = int(np.sum(first > second)), int(np.sum(first < second))
    difference = float(np.mean(first - second))
    if wins + losses == 0:
        return PairedTest(difference, 1.0)
    outcome = _import_stats().binomtest(wins, wins + losses)
    return PairedTest(difference, float(outcome.pvalue))


def paired_permutation_test(first, second, resamples=9999, seed=0):
    """Whether two models differ in the mean of a value per example.

    The two values of an example change places at random; the p-value is how
    often the means then differ at least as much. With few examples, every
    exchange is tried.

    Args:
        first: Array of `N` numbers, at least two, such as the loss of each
            example.
        second: Array of `N` numbers, of the same examples.
        resamples: Positive integer. Defaults to `9999`.
        seed: Integer. Defaults to `0`.

    Returns:
        `PairedTest`.

    Raises:
        ValueError: If there are fewer than two values, one isn't finite, or
            there are not as many of one model as of the other, or if
            `resamples` is not as above.

    Example:

    >>> paired_permutation_test([1.0, 2.0, 3.0], [0.5, 1.0, 2.5]).p_value
    0.25

    Reference:
        - [Ernst, 2004](https://doi.org/10.1214/088342304000000396)
    """
    value_checks.check_positive_integers(resamples=resamples)
    first, second = _paired(first, second, least=2)
    outcome = _import_stats().permutation_test(
        (first, second),
        lambda x, y, axis: np.mean(x - y, axis=axis),
        permutation_type="samples",
        vectorized=True,
        n_resamples=resamples,
        batch=256,
        rng=np.random.default_rng(seed),
    )
    return PairedTest(float(outcome.statistic), float(outcome.pvalue))


def paired_t_test(first, second):
    """Whether two methods, trained with the same seeds, differ in the mean.

    Args:
        first: Array of `N` numbers, one per seed, at least two.
        second: Array of `N` numbers, of the same seeds.

    Returns:
        `PairedTest`. Where all differences are equal but for rounding, there
        is no spread to compare with: the p-value is 1 if they are 0, and else
        NaN.

    Raises:
        ValueError: If there are fewer than two values, one isn't finite, or
            there are not as many of one method as of the other.

    Example:

    >>> test = paired_t_test([0.82, 0.84, 0.83], [0.80, 0.81, 0.82])
    >>> round(test.difference, 3), round(test.p_value, 3)
    (0.02, 0.074)

    Reference:
        - [Student, 1908](https://doi.org/10.2307/2331554)
    """
    first, second = _paired(first, second, least=2)
    differences = first - second
    difference = float(differences.mean())
    nothing = _ROUNDING * max(np.abs(first).max(), np.abs(second).max())
    if np.ptp(differences) <= nothing:
        p_value = 1.0 if abs(difference) <= nothing else math.nan
        return PairedTest(difference, p_value)
    outcome = _import_stats().ttest_rel(first, second)
    return PairedTest(difference, float(outcome.pvalue))


def _numbers(name, values, least=1):
    values = to_array(values).astype(float)
    if values.ndim != 1 or len(values) < least:
        raise ValueError(
            f"`{name}` must be a list of at least {least} numbers. "
            f"Received: {name} of shape {values.shape}"
        )
    _refuse(~np.isfinite(values), name, values, "finite numbers")
    return values


def _paired(first, second, least=1):
    first = _numbers("first", first, least)
    second = _numbers("second", second, least)
    if len(first) != len(second):
        raise ValueError(
            "`first` and `second` must be of the same examples or seeds, in "
            f"the same order. Received: lengths {len(first)} and {len(second)}"
        )
    return first, second


def _check_right_or_wrong(**answers):
    for name, values in answers.items():
        wrong = ~np.isin(values, (0, 1))
        allowed = "booleans, or 1 and 0, whether each answer was right"
        _refuse(wrong, name, values, allowed)


def _refuse(wrong, name, values, allowed):
    if wrong.any():
        index = int(wrong.argmax())
        raise ValueError(
            f"`{name}` must be {allowed}. "
            f"Received: {name}[{index}]={values[index]}"
        )


def _check_confidence(confidence):
    if not isinstance(confidence, numbers.Real) or not 0 < confidence < 1:
        raise ValueError(
            "`confidence` must be a number between 0 and 1, both excluded. "
            f"Received: confidence={confidence}"
        )


def _import_stats():
    return import_optional("scipy.stats", "Intervals and tests")
