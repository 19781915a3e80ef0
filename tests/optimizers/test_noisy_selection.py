import keras
import numpy as np
import pytest
from keras import ops

from keras_uegr.optimizers import noisy_selection
from keras_uegr.optimizers.scores import Scores
from tests.optimizers import reference


def random_scores(shape, seed=0):
    rng = np.random.default_rng(seed)
    return np.abs(rng.standard_t(2, shape)).astype("float32")


def scores_of(*arrays):
    return [Scores(ops.abs, [ops.convert_to_tensor(x)]) for x in arrays]


def draw(*arrays, density, noise, seed=None, **options):
    masks = noisy_selection.draw_masks(
        scores_of(*arrays),
        density,
        noise,
        seed or keras.random.SeedGenerator(1),
        **options,
    )
    return [ops.convert_to_numpy(mask) for mask in masks]


# The published alpha and beta, and what share they select.
@pytest.mark.parametrize(
    ("alpha", "beta", "share"), [(0.9, 10.0, 0.106), (0.6, 1.0, 0.454)]
)
def test_density_is_the_mean_probability_over_all_ranks(alpha, beta, share):
    ranks = (np.arange(100_000) + 0.5) / 100_000
    mean = (1 / (1 + np.exp(-2 * beta * (ranks - alpha)))).mean()
    density = noisy_selection.density_of(alpha, 1 / (2 * beta))
    assert density == pytest.approx(mean, abs=1e-6)
    assert density == pytest.approx(share, abs=1e-3)


@pytest.mark.parametrize("noise", [1e-4, 0.05, 1.0, 1e4])
@pytest.mark.parametrize("density", [0.01, 0.3, 0.99])
def test_center_gives_the_density(density, noise):
    center = noisy_selection.center(density, noise)
    found = noisy_selection.density_of(center, noise)
    assert found == pytest.approx(density, rel=1e-6)


@pytest.mark.parametrize("exact", [False, True])
def test_mask_is_that_of_the_twin_with_the_same_draws(exact):
    scores = random_scores((13, 7))
    scores[3], scores[5, :3] = 0.0, [np.nan, np.inf, 0.0]
    seed, same = keras.random.SeedGenerator(5), keras.random.SeedGenerator(5)
    for _ in range(3):
        uniform = ops.convert_to_numpy(keras.random.uniform((13, 7), seed=same))
        (mask,) = draw(scores, density=0.4, noise=0.2, seed=seed, exact=exact)
        expected = reference.drawn_mask(
            np.where(np.isfinite(scores), scores, 0.0),
            noisy_selection.center(0.4, 0.2),
            0.2,
            uniform.astype("float64"),
        )
        np.testing.assert_array_equal(mask, expected)


@pytest.mark.slow
def test_entries_are_drawn_with_the_published_probability():
    scores = random_scores((6, 5))
    scores[0, :3] = 0.0
    seed = keras.random.SeedGenerator(0)
    density = noisy_selection.density_of(center=0.6, noise=0.5)
    draws = [
        draw(scores, density=density, noise=0.5, seed=seed)[0]
        for _ in range(600)
    ]
    expected = reference.selection_probability(scores, center=0.6, noise=0.5)
    np.testing.assert_allclose(np.mean(draws, axis=0), expected, atol=0.08)
    assert np.mean(draws) == pytest.approx(expected.mean(), abs=0.01)


@pytest.mark.parametrize("shape", [(200, 300), (3000, 40)])
def test_a_sample_tells_the_ranks_of_large_variables(shape):
    scores = random_scores(shape)
    (mask,) = draw(scores, density=0.3, noise=0.1)
    assert mask.mean() == pytest.approx(0.3, abs=0.02)
    order = np.argsort(scores.ravel())
    ranks = (np.arange(order.size) + 0.5) / order.size
    center = noisy_selection.center(0.3, 0.1)
    expected = 1 / (1 + np.exp(-(ranks - center) / 0.1))
    for found, wanted in zip(
        np.array_split(mask.ravel()[order], 10),
        np.array_split(expected, 10),
        strict=True,
    ):
        assert found.mean() == pytest.approx(wanted.mean(), abs=0.05)


@pytest.mark.parametrize("exact", [False, True])
def test_little_noise_leaves_the_highest(exact):
    scores = random_scores((30, 40))
    (mask,) = draw(scores, density=0.25, noise=1e-5, exact=exact)
    np.testing.assert_array_equal(mask, reference.top_mask(scores, 0.25))


@pytest.mark.parametrize("noise", [1e-4, 1e-3, 0.05])
def test_the_lowest_density_is_drawn_as_asked_for(noise):
    seed, scores = keras.random.SeedGenerator(1), random_scores((300, 400))
    density = 1 / noisy_selection.RANKS
    settings = {"density": density, "noise": noise, "seed": seed}
    drawn = [draw(scores, exact=True, **settings)[0].mean() for _ in range(8)]
    assert np.mean(drawn) == pytest.approx(density, rel=0.1)


@pytest.mark.parametrize("exact", [False, True])
def test_global_scope_ranks_over_all_variables(exact):
    # The rows of the table without a score don't count.
    table, kernel = random_scores((5000, 20)), 30 * random_scores((60, 400))
    table[200:] = 0.0
    masks = draw(
        table, kernel, density=0.3, noise=0.02, scope="global", exact=exact
    )
    live = [table > 0, kernel > 0]
    selected = sum(mask.sum() for mask in masks)
    assert selected / sum(x.sum() for x in live) == pytest.approx(0.3, abs=0.03)
    assert masks[1].mean() > 0.3 > masks[0][live[0]].mean()
    separate = draw(table, kernel, density=0.3, noise=0.02, exact=exact)
    for mask, is_live in zip(separate, live, strict=True):
        assert mask[is_live].mean() == pytest.approx(0.3, abs=0.05)


@pytest.mark.parametrize("noise", [0.1, 1e4])
@pytest.mark.parametrize("exact", [False, True])
def test_scores_of_zero_and_subnormal_ones_are_never_drawn(exact, noise):
    scores = np.zeros((6, 5), "float32")
    scores[0] = 1e-40
    (mask,) = draw(scores, density=0.9, noise=noise, exact=exact)
    assert not mask.any()


def test_each_draw_is_another():
    scores, seed = random_scores((30, 40)), keras.random.SeedGenerator(0)
    first, second = (
        draw(scores, density=0.5, noise=1.0, seed=seed)[0] for _ in range(2)
    )
    assert (first != second).mean() > 0.2
