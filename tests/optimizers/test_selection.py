import numpy as np
import pytest
from keras import ops

from keras_uegr.optimizers import selection
from tests.optimizers import reference


def random_scores(shape, live_rows=None, seed=0):
    rng = np.random.default_rng(seed)
    scores = np.abs(rng.standard_t(2, shape) * rng.normal(size=shape))
    if live_rows is not None:
        dead = rng.permutation(shape[0])[live_rows:]
        scores[dead] = 0.0
    return scores.astype("float32")


def sampled_mask(scores, density):
    samples = selection.sample(ops.convert_to_tensor(scores))
    threshold = selection.thresholds(samples[None], density)[0]
    return ops.convert_to_numpy(
        selection.mask(ops.convert_to_tensor(scores), threshold)
    )


@pytest.mark.parametrize("density", [0.0, 0.05, 0.3, 0.7, 1.0])
def test_exact_threshold_selects_the_top(density):
    scores = random_scores((40, 30), live_rows=25)
    samples = ops.convert_to_tensor(scores.reshape(1, -1))
    threshold = selection.thresholds(samples, density)[0]
    mask = selection.mask(ops.convert_to_tensor(scores), threshold)
    np.testing.assert_array_equal(
        ops.convert_to_numpy(mask), reference.top_mask(scores, density)
    )


@pytest.mark.parametrize("density", [0.1, 0.3, 0.8])
@pytest.mark.parametrize(
    ("shape", "live_rows"),
    [
        ((30522, 384), 500),  # an embedding table of BERT in a batch
        ((30522, 384), 3),
        ((384, 1536), None),
        ((384, 12, 32), None),
        ((512, 384), 48),
        ((7, 3), None),
        ((1, 5000), None),
        ((5000, 1), 2000),
    ],
)
def test_sampled_density_is_near_the_one_asked_for(shape, live_rows, density):
    scores = random_scores(shape, live_rows)
    mask = sampled_mask(scores, density)
    positive = (scores > 0).sum()
    assert not mask[scores == 0].any()
    tolerance = 0.02 + 1 / positive
    assert mask.sum() / positive == pytest.approx(density, abs=tolerance)


def test_scores_that_depend_on_the_column_do_not_bias_the_sample():
    columns = np.linspace(1e-6, 1.0, 384, dtype="float32")
    scores = np.tile(columns, (600, 1))
    assert sampled_mask(scores, 0.3).mean() == pytest.approx(0.3, abs=0.02)


def test_ties_are_all_selected_or_none():
    scores = np.ones((50, 50), "float32")
    assert sampled_mask(scores, 0.3).all()
    assert not sampled_mask(scores, 0.0).any()


def test_all_zero_and_non_finite_scores_are_never_selected():
    zeros = np.zeros((20, 10), "float32")
    assert not sampled_mask(zeros, 0.5).any()
    scores = random_scores((20, 10))
    scores[0, 0], scores[1, 1] = np.nan, np.inf
    mask = sampled_mask(scores, 0.5)
    assert not mask[0, 0]
    assert not mask[1, 1]
    assert 0.4 < mask.mean() < 0.6


def test_stride_of_the_pooled_sample_visits_every_column():
    variables = [np.zeros((1000, 384)), np.zeros((384, 1536))]
    stride = selection.stride_for(variables, size=100)
    assert stride >= 1000 * 384 // 200
    assert np.gcd(stride, 384) == np.gcd(stride, 1536) == 1
