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


def select(*scores, density, **options):
    tensors = [
        selection.Scores(ops.abs, [ops.convert_to_tensor(x)]) for x in scores
    ]
    masks, count = selection.select(tensors, density, **options)
    masks = [ops.convert_to_numpy(mask) for mask in masks]
    return masks, float(ops.convert_to_numpy(count))


@pytest.mark.parametrize("density", [0.05, 0.3, 0.7, 1.0])
def test_exact_threshold_selects_the_top(density):
    scores = random_scores((40, 30), live_rows=25)
    (mask,), count = select(scores, density=density, exact=True)
    np.testing.assert_array_equal(mask, reference.top_mask(scores, density))
    assert count == mask.sum()


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
        ((1, 9000), None),
        ((9000, 1), 2000),
    ],
)
def test_sampled_density_is_near_the_one_asked_for(shape, live_rows, density):
    scores = random_scores(shape, live_rows)
    (mask,), count = select(scores, density=density)
    positive = (scores > 0).sum()
    assert not mask[scores == 0].any()
    tolerance = 0.02 + 1 / positive
    assert mask.sum() / positive == pytest.approx(density, abs=tolerance)
    assert count / positive == pytest.approx(density, abs=tolerance)


def test_scores_that_depend_on_the_column_do_not_bias_the_sample():
    columns = np.linspace(1e-6, 1.0, 384, dtype="float32")
    (mask,), _ = select(np.tile(columns, (600, 1)), density=0.3)
    assert mask.mean() == pytest.approx(0.3, abs=0.02)


@pytest.mark.parametrize("exact", [False, True])
def test_global_scope_pools_all_variables(exact):
    small, large = random_scores((300, 100)), 10 * random_scores((50, 40))
    masks, count = select(
        small, large, density=0.1, scope="global", exact=exact
    )
    pooled = np.concatenate([small.ravel(), large.ravel()])
    expected = reference.top_mask(pooled, 0.1)
    expected = [expected[: small.size].mean(), expected[small.size :].mean()]
    assert masks[0].mean() == pytest.approx(expected[0], abs=0.02)
    assert masks[1].mean() == pytest.approx(expected[1], abs=0.02)
    assert expected[1] > 2 * expected[0]
    assert count / pooled.size == pytest.approx(0.1, abs=0.02)


def test_ties_are_all_selected():
    (mask,), _ = select(np.ones((150, 150), "float32"), density=0.3)
    assert mask.all()


def test_all_zero_and_non_finite_scores_are_never_selected():
    (mask,), count = select(np.zeros((200, 100), "float32"), density=0.5)
    assert not mask.any()
    assert count == 0
    scores = random_scores((200, 100))
    scores[0, 0], scores[1, 1] = np.nan, np.inf
    (mask,), _ = select(scores, density=0.5)
    assert not mask[0, 0]
    assert not mask[1, 1]
    assert 0.45 < mask.mean() < 0.55
