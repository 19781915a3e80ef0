import sys

import keras
import numpy as np
import pytest

from keras_uegr import evaluation

ALTERNATING = np.tile([1, 0], 100)


def test_bootstrap_interval_of_a_share():
    interval = evaluation.bootstrap_interval(ALTERNATING)
    assert interval.mean == 0.5
    # The normal interval of 100 of 200: 1.96 * sqrt(0.25 / 200).
    assert interval.margin == pytest.approx(0.0693, abs=0.004)
    narrower = evaluation.bootstrap_interval(ALTERNATING, confidence=0.5)
    # 0.6745 standard errors of 0.0354.
    assert narrower.margin == pytest.approx(0.0238, abs=0.004)


def test_values_may_be_tensors():
    """Also such as NumPy can't read, here because of their gradient."""
    values = keras.Variable([0.80, 0.82, 0.84])
    interval = evaluation.t_interval(keras.ops.multiply(values, 1.0))
    expected = evaluation.t_interval([0.80, 0.82, 0.84])
    assert interval.mean == pytest.approx(expected.mean)
    assert interval.margin == pytest.approx(expected.margin)


def test_bootstrap_is_decided_by_its_seed():
    values = np.random.default_rng(0).normal(size=50)
    first, same, other = (
        evaluation.bootstrap_interval(values, resamples=99, seed=seed)
        for seed in (0, 0, 1)
    )
    assert first == same
    assert first != other


def test_bootstrap_of_equal_values_has_no_width():
    interval = evaluation.bootstrap_interval([0.5, 0.5, 0.5])
    assert (interval.mean, interval.low, interval.high) == (0.5, 0.5, 0.5)


def test_bootstrap_interval_is_between_percentiles():
    interval = evaluation.bootstrap_interval([1] * 19 + [0])
    # 19 of 20: means of resamples are whole twentieths, and at most 1.
    assert interval.low == pytest.approx(0.85)
    assert interval.high == 1


@pytest.mark.parametrize("value", [0, 1])
def test_an_interval_of_nothing_but_wrong_or_right_answers_has_a_width(value):
    interval = evaluation.bootstrap_interval([value] * 320)
    assert interval.mean == value
    # Wilson's: z^2 / (n + z^2), z = 1.96.
    far = interval.high if value == 0 else 1 - interval.low
    assert far == pytest.approx(1.96**2 / (320 + 1.96**2), rel=1e-3)
    assert interval.margin > 0.005


def test_wilsons_interval_has_the_confidence_asked_for():
    interval = evaluation.bootstrap_interval([1] * 320, confidence=0.5)
    # z = 0.6745.
    assert 1 - interval.low == pytest.approx(
        0.6745**2 / (320 + 0.6745**2), 1e-3
    )


def test_one_value_has_no_bootstrap():
    with pytest.raises(ValueError, match="`values` must be.*at least 2"):
        evaluation.bootstrap_interval([0.5])


def test_t_interval_by_hand():
    # Mean 3, standard deviation sqrt(2.5), t(0.975; 4) = 2.7764.
    interval = evaluation.t_interval([1, 2, 3, 4, 5])
    assert interval.mean == 3
    expected = 2.776445 * np.sqrt(2.5 / 5)
    assert interval.margin == pytest.approx(expected, abs=1e-5)
    assert interval.high == pytest.approx(3 + expected, abs=1e-5)
    # t(0.95; 1) = 6.3138.
    wide = evaluation.t_interval([0, 2], confidence=0.9)
    assert wide.low == pytest.approx(1 - 6.313752, abs=1e-5)


def test_mcnemar_by_hand():
    # Eight wins and one loss: 2 * (1 + 9) / 2^9.
    first = [True] * 8 + [False] + [True] * 5 + [False] * 4
    second = [False] * 8 + [True] + [True] * 5 + [False] * 4
    found = evaluation.mcnemar_test(first, second)
    assert found.difference == pytest.approx(7 / 18)
    assert found.p_value == pytest.approx(2 * 10 / 512)
    reverse = evaluation.mcnemar_test(second, first)
    assert reverse.difference == -found.difference
    assert reverse.p_value == pytest.approx(found.p_value)


def test_mcnemar_without_disagreement():
    assert evaluation.mcnemar_test([1, 0], [1, 0]).p_value == 1


def test_permutations_by_hand():
    # Of the 2^4 signs of 1, 2, 3, 4, those whose sum is 10, 8 or 6 in size:
    # no minus, -1, -2, and the same mirrored. The sum here is 1 - 2 + 3 + 4.
    found = evaluation.paired_permutation_test([1, 0, 3, 4], [0, 2, 0, 0])
    assert found.difference == 1.5
    assert found.p_value == pytest.approx(6 / 16)


def test_permutations_of_many_examples_are_drawn():
    generator = np.random.default_rng(0)
    first, noise = generator.normal(size=(2, 300))
    same = evaluation.paired_permutation_test(first, first + noise)
    higher = evaluation.paired_permutation_test(first + 0.5, first + noise)
    assert same.p_value > 0.05
    assert higher.p_value < 0.001
    assert higher == evaluation.paired_permutation_test(
        first + 0.5, first + noise
    )


@pytest.mark.parametrize(
    ("name", "samples"),
    [("bootstrap_interval", 1), ("paired_permutation_test", 2)],
)
def test_resamples_and_seed_matter(name, samples):
    values = np.random.default_rng(0).normal(size=(2, 50))
    function = getattr(evaluation, name)
    first, more, other = (
        function(*values[:samples], resamples=resamples, seed=seed)
        for resamples, seed in ((4999, 0), (5999, 0), (4999, 1))
    )
    assert first != more
    assert first != other


def test_paired_t_test_by_hand():
    # Differences 1 and 3: t = 2 / (sqrt(2) / sqrt(2)) = 2 with one degree of
    # freedom, where p = 1 - 2 * atan(2) / pi.
    found = evaluation.paired_t_test([2, 5], [1, 2])
    assert found.difference == 2
    assert found.p_value == pytest.approx(1 - 2 * np.arctan(2) / np.pi)


def test_paired_t_test_of_equal_differences():
    found = evaluation.paired_t_test([1, 2], [1, 2])
    assert (found.difference, found.p_value) == (0, 1)
    found = evaluation.paired_t_test([2, 3], [1, 2])
    assert found.difference == 1
    assert np.isnan(found.p_value)


def test_paired_t_test_of_differences_that_are_equal_but_for_rounding():
    found = evaluation.paired_t_test([0.82, 0.84, 0.83], [0.80, 0.82, 0.81])
    assert found.difference == pytest.approx(0.02)
    assert np.isnan(found.p_value)
    found = evaluation.paired_t_test([0.1 + 0.2, 0.7], [0.3, 0.7])
    assert found.p_value == 1
    # Apart by more than rounding: t = 20001 with one degree of freedom.
    found = evaluation.paired_t_test([0.8, 0.8], [0.7, 0.7 - 1e-5])
    assert found.p_value == pytest.approx(2 / (np.pi * 20001), rel=1e-3)


@pytest.mark.parametrize("values", [[0.5], [[0.5, 0.5]]])
def test_one_seed_has_no_interval(values):
    with pytest.raises(ValueError, match="`values` must be.*at least 2"):
        evaluation.t_interval(values)


def test_pairs_must_match():
    with pytest.raises(ValueError, match="Received: lengths 2 and 3"):
        evaluation.paired_t_test([1, 2], [1, 2, 3])


TESTS = (
    evaluation.mcnemar_test,
    evaluation.paired_permutation_test,
    evaluation.paired_t_test,
)


@pytest.mark.parametrize("test", TESTS)
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_pairs_must_be_finite(test, value):
    broken = [1, 0, value]
    message = rf"must be finite numbers\. Received: .*\[2\]={value}$"
    with pytest.raises(ValueError, match="`first` " + message):
        test(broken, [1, 1, 0])
    with pytest.raises(ValueError, match="`second` " + message):
        test([1, 1, 0], broken)


@pytest.mark.parametrize(
    "interval", [evaluation.bootstrap_interval, evaluation.t_interval]
)
def test_values_of_an_interval_must_be_finite(interval):
    message = r"`values` must be finite numbers\. Received: values\[1\]=nan$"
    with pytest.raises(ValueError, match=message):
        interval([0.5, np.nan, np.inf])


@pytest.mark.parametrize(
    "interval", [evaluation.bootstrap_interval, evaluation.t_interval]
)
@pytest.mark.parametrize("values", [[0, 1, 1], [1, 1, 1]])
@pytest.mark.parametrize("confidence", [95, 1, 0, -0.5, np.nan, "0.95"])
def test_confidence_is_checked(interval, values, confidence):
    message = f"`confidence` must be .*Received: confidence={confidence}$"
    with pytest.raises(ValueError, match=message):
        interval(values, confidence=confidence)


@pytest.mark.parametrize("value", [3, -1, 0.5])
def test_mcnemar_takes_right_and_wrong_alone(value):
    message = rf"`second` must be booleans.*second\[1\]={float(value)}$"
    with pytest.raises(ValueError, match=message):
        evaluation.mcnemar_test([1, 1, 0], [0, value, 1])


def test_one_pair_has_no_permutations():
    with pytest.raises(ValueError, match="`first` must be.*at least 2 numbers"):
        evaluation.paired_permutation_test([1.0], [0.5])


@pytest.mark.parametrize("resamples", [0, 1.5, True])
def test_resamples_are_checked(resamples):
    message = f"`resamples` must be.*Received: resamples={resamples}$"
    with pytest.raises(ValueError, match=message):
        evaluation.bootstrap_interval([1, 2, 3], resamples=resamples)
    with pytest.raises(ValueError, match=message):
        evaluation.paired_permutation_test(
            [1, 2, 3], [3, 1, 1], resamples=resamples
        )


def test_integers_of_numpy_are_integers():
    values = np.random.default_rng(0).normal(size=(2, 50))
    settings = {"resamples": 99, "seed": 1}
    numpy_settings = {name: np.int64(x) for name, x in settings.items()}
    for function, arguments in (
        (evaluation.bootstrap_interval, values[:1]),
        (evaluation.paired_permutation_test, values),
    ):
        found = function(*arguments, **numpy_settings)
        assert found == function(*arguments, **settings)


def test_scipy_is_named_where_it_is_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "scipy.stats", None)
    with pytest.raises(ImportError, match=r"keras-uegr\[evaluation\]"):
        evaluation.t_interval([1, 2])
