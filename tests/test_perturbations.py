import itertools
import json

import keras
import numpy as np
import pytest
from keras import ops

import keras_uegr

# Two unpadded positions, five, and one; the second has a hole in the middle,
# as a special token leaves it.
MASK = np.array(
    [[1, 1, 0, 0, 0, 0], [1, 1, 0, 1, 1, 1], [1, 0, 0, 0, 0, 0]], "float32"
)[..., None]
WIDTH = 4

each_ball = pytest.mark.parametrize(
    "ball",
    [
        {"norm": norm, "relative": relative, "per_token": per_token}
        for norm in ("l2", "linf")
        for relative in (True, False)
        for per_token in (False, True)
    ],
    ids=lambda ball: "-".join(map(str, ball.values())),
)
each_norm = pytest.mark.parametrize("norm", ["l2", "linf"])
each_perturbation = pytest.mark.parametrize(
    "perturbation",
    [
        keras_uegr.FastGradient(0.3),
        keras_uegr.FastGradient(0.3, "linf", per_token=True, relative=False),
        keras_uegr.ProjectedGradient(0.3, steps=4, random_start=True),
        keras_uegr.ProjectedGradient(0.3, norm="linf", random_start=True),
        keras_uegr.GaussianNoise(0.3),
        keras_uegr.UniformNoise(0.3, relative=False),
    ],
    ids=lambda perturbation: type(perturbation).__name__,
)


def random_tensor(shape=(*MASK.shape[:2], WIDTH), seed=0, size=1.0):
    return np.random.default_rng(seed).normal(0, size, shape).astype("float32")


def run(
    perturbation, gradient, embedding=None, mask=MASK, strength=1.0, seed=0
):
    """The perturbation after each of its steps, the start first.

    Args:
        perturbation: What is tested.
        gradient: Array, or list of arrays, one for each step in turn.
        embedding, mask: Arrays.
        strength: Float.
        seed: Integer.
    """
    if embedding is None:
        embedding = random_tensor(seed=1, size=2.0)
    gradients = gradient if isinstance(gradient, list) else [gradient]
    at = (ops.convert_to_tensor(embedding), ops.convert_to_tensor(mask))
    delta = perturbation.start(*at, strength, keras.random.SeedGenerator(seed))
    deltas = [delta]
    for step in range(perturbation.gradient_steps):
        ascent = ops.convert_to_tensor(gradients[step % len(gradients)])
        deltas.append(perturbation.ascend(deltas[-1], ascent, *at, strength))
    return [ops.convert_to_numpy(delta) for delta in deltas]


def size_of(x, norm, per_token):
    axes = -1 if per_token else (1, 2)
    if norm == "linf":
        return np.abs(x).max(axis=axes, keepdims=True)
    return np.sqrt(np.square(x).sum(axis=axes, keepdims=True))


def radius_of(epsilon, embedding, mask, norm, relative, per_token):
    """The radius of each ball, in NumPy; 0 at tokens that may not move."""
    axes = -1 if per_token else (1, 2)
    entries = np.broadcast_to(mask, embedding.shape).sum(axes, keepdims=True)
    if not relative:
        return epsilon * (entries > 0)
    square = (np.square(embedding.astype("float64")) * mask).sum(
        axes, keepdims=True
    )
    if norm == "linf":
        square = square / np.maximum(entries, 1)
    return epsilon * np.sqrt(square)


@each_ball
def test_norm_is_the_radius_asked_for(ball):
    embedding = random_tensor(seed=1, size=2.0)
    perturbation = keras_uegr.FastGradient(0.3, **ball)
    delta = run(perturbation, random_tensor(), embedding)[-1]
    radius = radius_of(0.3, embedding, MASK, **ball)
    sizes = size_of(delta, ball["norm"], ball["per_token"])
    assert radius.max() > 0.1
    np.testing.assert_allclose(sizes, radius, rtol=1e-5)


@each_ball
def test_direction_is_that_of_the_gradient_where_tokens_may_move(ball):
    embedding, gradient = random_tensor(seed=1), random_tensor()
    delta = run(keras_uegr.FastGradient(0.3, **ball), gradient, embedding)[-1]
    direction = gradient * MASK
    if ball["norm"] == "linf":
        direction = np.sign(direction)
    else:
        length = size_of(direction, "l2", ball["per_token"])
        direction = direction / np.where(length > 0, length, 1)
    radius = radius_of(0.3, embedding, MASK, **ball)
    np.testing.assert_allclose(delta, radius * direction, atol=1e-6)


@each_ball
def test_direction_of_the_gradient_keeps_the_proportions(ball):
    embedding, gradient = random_tensor(seed=1), random_tensor() * MASK
    arguments = {"direction": "gradient", **ball}
    delta = run(keras_uegr.FastGradient(0.3, **arguments), gradient, embedding)
    length = size_of(gradient, ball["norm"], ball["per_token"])
    radius = radius_of(0.3, embedding, MASK, **ball)
    expected = radius * gradient / np.where(length > 0, length, 1)
    np.testing.assert_allclose(delta[-1], expected, atol=1e-6)


@each_perturbation
def test_padding_and_masked_positions_stay_exactly_zero(perturbation):
    gradients = [random_tensor(seed=seed) for seed in range(4)]
    padding = np.broadcast_to(MASK == 0, gradients[0].shape)
    deltas = run(perturbation, gradients)
    assert np.abs(deltas[-1][~padding]).max() > 0.01
    for delta in deltas:
        np.testing.assert_array_equal(delta[padding], 0.0)


@each_ball
def test_result_depends_neither_on_padding_length_nor_on_batch_order(ball):
    perturbation = keras_uegr.ProjectedGradient(0.3, steps=3, **ball)
    embedding = random_tensor(seed=1)
    gradients = [random_tensor(seed=seed) for seed in range(2, 5)]
    short = run(perturbation, gradients, embedding)[-1]

    def longer(array, fill):
        garbage = np.full((3, 4, array.shape[-1]), fill, "float32")
        return np.concatenate([array, garbage], axis=1)[::-1].copy()

    long = run(
        perturbation,
        [longer(gradient, 50.0) for gradient in gradients],
        longer(embedding, 100.0),
        longer(MASK, 0.0),
    )[-1]
    assert np.abs(short).max() > 0.01
    np.testing.assert_allclose(long[::-1, :6], short, atol=1e-6)


@each_ball
def test_zero_gradient_gives_zero_and_leaves_the_other_examples_alone(ball):
    gradient = random_tensor()
    perturbation = keras_uegr.ProjectedGradient(0.3, **ball)
    expected = run(perturbation, gradient)[-1]
    gradient[1] = 0.0
    expected[1] = 0.0
    np.testing.assert_array_equal(run(perturbation, gradient)[-1], expected)


@each_perturbation
def test_all_padding_and_zero_embeddings_stay_finite(perturbation):
    embedding, mask = random_tensor(seed=1), MASK.copy()
    embedding[0], mask[1] = 0.0, 0.0
    for delta in run(perturbation, random_tensor(), embedding, mask):
        assert np.isfinite(delta).all()
        np.testing.assert_array_equal(delta[1], 0.0)


@each_norm
@pytest.mark.parametrize("size", [1e-30, 1e30])
def test_tiny_and_huge_gradients_give_the_full_radius(norm, size):
    gradient = random_tensor()
    perturbation = keras_uegr.FastGradient(0.3, norm, relative=False)
    delta = run(perturbation, gradient * np.float32(size))[-1]
    np.testing.assert_allclose(
        delta, run(perturbation, gradient)[-1], rtol=1e-5
    )
    np.testing.assert_allclose(size_of(delta, norm, False), 0.3, rtol=1e-5)


@each_norm
def test_half_precision_inputs_give_a_float32_perturbation(norm):
    gradient = random_tensor().astype("float16")
    embedding = random_tensor(seed=1).astype("float16")
    perturbation = keras_uegr.FastGradient(0.3, norm)
    delta = run(perturbation, gradient, embedding)[-1]
    assert delta.dtype == "float32"
    expected = run(
        perturbation, gradient.astype("float32"), embedding.astype("float32")
    )[-1]
    np.testing.assert_allclose(delta, expected, rtol=1e-6)


@pytest.mark.parametrize("steps", range(1, 7))
@each_norm
def test_bound_holds_after_every_step(norm, steps):
    # Steps along one gradient pile up, steps along several wander.
    gradients = [random_tensor(seed=seed) for seed in (2, 2, 3, 4)]
    embedding = random_tensor(seed=1)
    for random_start, relative in itertools.product([True, False], repeat=2):
        perturbation = keras_uegr.ProjectedGradient(
            0.3,
            steps,
            step_size=0.25,
            random_start=random_start,
            norm=norm,
            relative=relative,
        )
        deltas = run(perturbation, gradients, embedding)
        assert len(deltas) == steps + 1
        radius = radius_of(0.3, embedding, MASK, norm, relative, False)
        for delta in deltas:
            assert (size_of(delta, norm, False) <= radius * (1 + 1e-5)).all()
        if steps > 1:
            np.testing.assert_allclose(
                size_of(deltas[2], norm, False), radius, rtol=0.2
            )


@each_norm
def test_projected_gradient_follows_its_equations(norm):
    """One step is `project(delta + step_size * normalize(g))`, in NumPy."""
    gradients = [random_tensor(seed=seed) for seed in range(3)]
    perturbation = keras_uegr.ProjectedGradient(
        0.3, steps=3, step_size=0.2, norm=norm, relative=False
    )
    expected = np.zeros_like(gradients[0])
    for gradient in gradients:
        direction = np.sign(gradient)
        if norm == "l2":
            direction = gradient / size_of(gradient * MASK, "l2", False)
        expected = expected + 0.2 * direction * MASK
        if norm == "linf":
            expected = np.clip(expected, -0.3, 0.3)
        else:
            length = size_of(expected, "l2", False)
            expected = expected * np.minimum(1.0, 0.3 / length)
    np.testing.assert_allclose(
        run(perturbation, gradients)[-1], expected, atol=1e-6
    )


@each_ball
def test_one_step_of_size_epsilon_is_the_fast_gradient(ball):
    fast = keras_uegr.FastGradient(0.3, **ball)
    one_step = keras_uegr.ProjectedGradient(0.3, 1, step_size=0.3, **ball)
    gradient = random_tensor()
    np.testing.assert_allclose(
        run(one_step, gradient)[-1], run(fast, gradient)[-1], rtol=1e-6
    )


def test_default_step_size_reaches_the_whole_ball():
    perturbation = keras_uegr.ProjectedGradient(0.4, steps=5)
    assert perturbation.step_size == pytest.approx(2.5 * 0.4 / 5)


@pytest.mark.parametrize(
    "changed",
    [
        keras_uegr.FastGradient(0.06),
        keras_uegr.ProjectedGradient(0.06, steps=5),
        keras_uegr.ProjectedGradient(0.06, steps=5, step_size=0.02),
    ],
)
def test_a_radius_that_is_changed_later_is_reached(changed):
    config = changed.get_config()
    changed.epsilon = 0.4
    fresh = type(changed)(**{**config, "epsilon": 0.4})
    assert changed.get_config() == fresh.get_config()
    gradient = random_tensor()
    for moved, expected in zip(
        run(changed, gradient), run(fresh, gradient), strict=True
    ):
        np.testing.assert_array_equal(moved, expected)


@pytest.mark.parametrize("per_token", [True, False])
@each_norm
def test_random_start_is_uniform_in_the_ball(norm, per_token):
    examples = 4000
    embedding = np.ones((examples, 3, 2), "float32")
    mask = np.ones((examples, 3, 1), "float32")
    mask[:, 2] = 0.0
    perturbation = keras_uegr.ProjectedGradient(
        0.5, random_start=True, norm=norm, per_token=per_token, relative=False
    )
    start = run(perturbation, np.ones_like(embedding), embedding, mask)[0]
    start = start[:, :2]
    fraction = size_of(start, norm, per_token) / 0.5
    assert fraction.max() <= 1 + 1e-5
    # The share of the ball's volume that is nearer than the point.
    volume = fraction ** (2 if per_token else 4)
    assert volume.mean() == pytest.approx(0.5, abs=0.03)
    assert volume.std() == pytest.approx(np.sqrt(1 / 12), abs=0.02)
    np.testing.assert_allclose(start.mean(axis=0), 0.0, atol=0.03)
    assert (start > 0).mean() == pytest.approx(0.5, abs=0.03)


@pytest.mark.parametrize("relative", [True, False])
@pytest.mark.parametrize("name", ["GaussianNoise", "UniformNoise"])
def test_noise_has_mean_zero_both_signs_and_the_spread_asked_for(
    name, relative
):
    shape = (3, 500, 20)
    embedding = random_tensor(shape, size=1.0) * np.array([1, 3, 9])[
        :, None, None
    ].astype("float32")
    mask = np.ones((3, 500, 1), "float32")
    mask[:, 300:] = 0.0
    embedding[:, 300:] = 1000.0
    perturbation = getattr(keras_uegr, name)(0.2, relative=relative)
    noise = run(perturbation, embedding, embedding, mask)[0]
    np.testing.assert_array_equal(noise[:, 300:], 0.0)
    noise = noise[:, :300]
    unit = 1.0
    if relative:
        unit = np.sqrt(np.square(embedding[:, :300]).mean(axis=(1, 2)))
    spread = 0.2 * unit
    if name == "UniformNoise":
        largest = np.abs(noise).max(axis=(1, 2))
        np.testing.assert_allclose(largest / spread, 1.0, rtol=0.01)
        assert (largest <= spread * (1 + 1e-6)).all()
        spread = spread / np.sqrt(3)
    np.testing.assert_allclose(noise.std(axis=(1, 2)) / spread, 1.0, rtol=0.05)
    mean = noise.mean(axis=(1, 2)) / spread
    # Five standard errors of 6000 draws.
    np.testing.assert_allclose(mean, 0.0, atol=5 / np.sqrt(6000))
    assert (noise > 0).mean() == pytest.approx(0.5, abs=0.02)
    assert (noise < 0).mean() == pytest.approx(0.5, abs=0.02)


@each_perturbation
def test_the_seed_decides_what_is_drawn(perturbation):
    gradient = random_tensor()
    first = run(perturbation, gradient, seed=3)[0]
    again = run(perturbation, gradient, seed=3)[0]
    other = run(perturbation, gradient, seed=4)[0]
    draws = perturbation.random_start or not perturbation.gradient_steps
    np.testing.assert_array_equal(first, again)
    assert (np.abs(first - other).max() > 1e-3) == draws


@each_perturbation
def test_strength_scales_the_perturbation(perturbation):
    gradients = [random_tensor(seed=seed) for seed in range(4)]
    full = run(perturbation, gradients)
    for strength in (0.0, 0.25):
        weak = run(perturbation, gradients, strength=strength)
        for delta, expected in zip(weak, full, strict=True):
            np.testing.assert_allclose(delta, strength * expected, atol=1e-6)


@pytest.mark.parametrize("strength", [0.0, 1.0])
@each_norm
def test_epsilon_zero_gives_zero(norm, strength):
    for perturbation in (
        keras_uegr.FastGradient(0.0, norm),
        keras_uegr.ProjectedGradient(0.0, norm=norm, random_start=True),
        keras_uegr.ProjectedGradient(0.0, step_size=0.3, norm=norm),
        keras_uegr.GaussianNoise(0.0),
        keras_uegr.UniformNoise(0.0),
    ):
        for delta in run(perturbation, random_tensor(), strength=strength):
            np.testing.assert_array_equal(delta, 0.0)


@pytest.mark.parametrize(
    "perturbation",
    [
        keras_uegr.FastGradient(0.2, "linf", True, False, "gradient"),
        keras_uegr.ProjectedGradient(
            0.2, 5, 0.1, True, "linf", True, False, direction="gradient"
        ),
        keras_uegr.ProjectedGradient(0.2, 5),
        keras_uegr.GaussianNoise(0.3, relative=False),
        keras_uegr.UniformNoise(0.3, relative=False),
    ],
    ids=lambda perturbation: type(perturbation).__name__,
)
def test_configuration_makes_the_round_trip(perturbation):
    config = keras.saving.serialize_keras_object(perturbation)
    restored = keras.saving.deserialize_keras_object(
        json.loads(json.dumps(config))
    )
    assert type(restored) is type(perturbation)
    assert vars(restored) == vars(perturbation)


def case(name, message, **arguments):
    label = "-".join([name, *map(str, arguments.values())])
    return pytest.param(name, arguments, message, id=label)


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        *(
            case(
                name,
                f"`{size}` must be a finite number, 0 or larger. "
                f"Received: {size}={value}",
                **{size: value},
            )
            for name, size in (
                ("FastGradient", "epsilon"),
                ("ProjectedGradient", "epsilon"),
                ("ProjectedGradient", "step_size"),
                ("GaussianNoise", "stddev"),
                ("UniformNoise", "epsilon"),
            )
            for value in (-0.1, float("nan"), float("inf"), "large")
        ),
        *(
            case(
                name,
                f"`{argument}` must be one of .* Received: {argument}={value}",
                **{argument: value},
            )
            for name in ("FastGradient", "ProjectedGradient")
            for argument in ("norm", "direction")
            for value in ("l1", 2, None)
        ),
        case(
            "ProjectedGradient",
            "`objective` must be one of .* Received: objective=kl",
            objective="kl",
        ),
        case(
            "ProjectedGradient",
            "the first gradient is 0 unless `random_start=True`",
            objective="divergence",
        ),
        case(
            "ProjectedGradient",
            "`train_on_steps=True` trains on the loss",
            objective="divergence",
            random_start=True,
            train_on_steps=True,
        ),
        *(
            case(
                "ProjectedGradient",
                f"`steps` must be a positive integer. Received: steps={steps}",
                steps=steps,
            )
            for steps in (0, -1, 1.5)
        ),
    ],
)
def test_wrong_arguments_are_told(name, arguments, message):
    with pytest.raises(ValueError, match=message):
        getattr(keras_uegr, name)(**arguments)
