import types

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


def stand_in(share, perturbation=None):
    """What `on_tokens` reads of a model."""
    return types.SimpleNamespace(
        token_share=share,
        seed_generator=keras.random.SeedGenerator(0),
        perturbation=perturbation or keras_uegr.FastGradient(),
    )


def concentrated(delta, *settings):
    moved = concentration.on_tokens(
        ops.convert_to_tensor(delta), stand_in(*settings)
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


def test_without_the_norm_each_entry_stays_or_is_zero():
    delta = random_delta()
    moved = concentrated(delta, 0.3, keras_uegr.UniformNoise())
    kept = np.any(moved != 0, axis=-1, keepdims=True)
    assert 0.2 < kept[:, :-10].mean() < 0.4
    np.testing.assert_array_equal(moved, delta * kept)


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_share_of_the_tokens_moves(share):
    moved = np.any(concentrated(random_delta(), share) != 0, axis=-1)
    assert moved[:, :-10].mean() == pytest.approx(share, abs=0.03)
    assert not moved[:, -10:].any()


def test_other_tokens_are_drawn_in_each_step():
    model = stand_in(0.5)
    delta = ops.convert_to_tensor(random_delta())
    first, second = (
        ops.convert_to_numpy(concentration.on_tokens(delta, model)) != 0
        for _ in range(2)
    )
    assert (first != second).any(axis=(1, 2)).all()


def test_all_tokens_draw_nothing():
    model = stand_in(1)
    state = ops.convert_to_numpy(model.seed_generator.state)
    delta = random_delta()
    moved = concentration.on_tokens(ops.convert_to_tensor(delta), model)
    np.testing.assert_array_equal(ops.convert_to_numpy(moved), delta)
    np.testing.assert_array_equal(
        ops.convert_to_numpy(model.seed_generator.state), state
    )


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


@pytest.mark.parametrize(
    ("perturbation", "axes"),
    [
        (keras_uegr.FastGradient(0.25, relative=False), (1, 2)),
        (keras_uegr.FastGradient(0.25, "linf", relative=False), ()),
        (keras_uegr.FastGradient(0.25, "l2", True, relative=False), 2),
        (keras_uegr.UniformNoise(0.25, relative=False), ()),
    ],
    ids=["l2", "linf", "per token", "noise"],
)
def test_radius_stays_in_the_norm_of_the_perturbation(perturbation, axes):
    embedding, gradient = map(ops.convert_to_tensor, [random_delta()] * 2)
    mask = ops.ones((EXAMPLES, TOKENS, 1))
    seed = keras.random.SeedGenerator(0)
    delta = perturbation.start(embedding, mask, 1.0, seed)
    if perturbation.gradient_steps:
        delta = perturbation.ascend(delta, gradient, embedding, mask, 1.0)
    moved = concentrated(delta, 0.3, perturbation)
    size = np.sqrt(np.sum(np.square(moved), axis=axes)).max()
    assert size == pytest.approx(0.25, rel=1e-2)


class Ones(keras_uegr.Perturbation):
    """One at each entry that may move."""

    def start(self, embedding, mask, strength, seed):
        return ops.ones_like(embedding, dtype="float32") * mask


@pytest.mark.parametrize("size_is_l2_norm", [False, True])
def test_sub_models_get_what_the_perturbation_asks_for(size_is_l2_norm):
    perturbation = Ones()
    perturbation.size_is_l2_norm = size_is_l2_norm
    token_ids = keras.Input((None,), dtype="int32")
    x = keras.layers.Embedding(20, 1, embeddings_initializer="zeros")(token_ids)
    model = keras_uegr.UEGRModel(
        keras.Model(token_ids, keras.layers.GlobalMaxPooling1D()(x)),
        perturbation,
        dropout=None,
        token_share=0.5,
        warmup_steps=0,
    )
    model.compile("sgd", "mean_absolute_error")
    logs = model.train_on_batch(
        np.ones((50, 9), "int32"), np.zeros((50, 1)), return_dict=True
    )
    # An example's highest entry, and few have none that was drawn.
    low, high = (1.2, 3.0) if size_is_l2_norm else (0.9, 1.0)
    assert low <= logs["adversarial_loss"] <= high
