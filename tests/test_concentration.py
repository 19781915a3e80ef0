import keras
import numpy as np
import pytest
from keras import ops

import keras_uegr
from keras_uegr import concentration
from tests.pooled_model import pooled_model

EXAMPLES, TOKENS, WIDTH = 40, 50, 3


def random_delta(size=1.0):
    rng = np.random.default_rng(0)
    delta = rng.normal(0, size, (EXAMPLES, TOKENS, WIDTH)).astype("float32")
    delta[:, -10:] = 0
    return delta


def concentrated(delta, share, seed=0):
    moved = concentration.on_tokens(
        ops.convert_to_tensor(delta), share, keras.random.SeedGenerator(seed)
    )
    return ops.convert_to_numpy(moved)


def norm(delta):
    return np.sqrt(np.sum(np.square(delta.astype("float64")), axis=(1, 2)))


@pytest.mark.parametrize("size", [1.0, 1e-6, 1e6])
def test_norm_stays_and_so_do_directions(size):
    delta = random_delta(size)
    moved = concentrated(delta, 0.3)
    np.testing.assert_allclose(norm(moved), norm(delta), rtol=1e-5)
    for before, after in zip(delta, moved, strict=True):
        kept = np.any(after != 0, axis=-1)
        assert 0 < kept.sum() < TOKENS - 10
        factors = after[kept] / before[kept]
        np.testing.assert_allclose(factors, factors[0, 0], rtol=1e-4)


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_share_of_the_tokens_moves(share):
    moved = np.any(concentrated(random_delta(), share) != 0, axis=-1)
    assert moved[:, :-10].mean() == pytest.approx(share, abs=0.03)
    assert not moved[:, -10:].any()


def test_other_tokens_are_drawn_in_each_step():
    seed = keras.random.SeedGenerator(0)
    delta = ops.convert_to_tensor(random_delta())
    first, second = (
        ops.convert_to_numpy(concentration.on_tokens(delta, 0.5, seed)) != 0
        for _ in range(2)
    )
    assert (first != second).any(axis=(1, 2)).all()


def test_all_tokens_draw_nothing():
    seed = keras.random.SeedGenerator(0)
    state = ops.convert_to_numpy(seed.state)
    delta = random_delta()
    moved = concentration.on_tokens(ops.convert_to_tensor(delta), 1, seed)
    np.testing.assert_array_equal(ops.convert_to_numpy(moved), delta)
    np.testing.assert_array_equal(ops.convert_to_numpy(seed.state), state)


def test_example_without_a_drawn_token_stays():
    moved = concentrated(random_delta(), 1e-6)
    np.testing.assert_array_equal(moved, 0.0)


@pytest.mark.parametrize("token_share", [1, 0.5])
def test_sub_models_see_different_tokens_moved(token_share):
    """Nothing else tells them apart here, so the divergence does."""
    keras.utils.set_random_seed(0)
    model = keras_uegr.UEGRModel(
        pooled_model(),
        keras_uegr.FastGradient(0.5),
        dropout=keras_uegr.AdaptiveDropout(0.0, 0.0),
        token_share=token_share,
        warmup_steps=0,
    )
    model.compile(
        keras.optimizers.SGD(0.1),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    )
    x = np.random.default_rng(0).integers(1, 20, (8, 7)).astype("int32")
    logs = model.train_on_batch(x, np.arange(8) % 2, return_dict=True)
    assert logs["perturbation_norm"] > 0
    assert (logs["js_divergence"] > 1e-6) == (token_share < 1)
