"""What holds whatever the shapes, types, sizes and settings are.

575 cases for each backend, the same in every run; 100 of them train.
"""

import contextlib
import math

import hypothesis
import keras
import numpy as np
import pytest
from hypothesis import strategies
from keras import ops

import keras_uegr
from keras_uegr import consistency
from tests.optimizers.test_selection import select
from tests.pooled_model import pooled_model
from tests.test_dtypes import double_precision
from tests.test_perturbations import radius_of, run, size_of

pytestmark = pytest.mark.slow

DTYPES = ["float16", "bfloat16", "float32", "float64"]
POLICIES = ["mixed_float16", "mixed_bfloat16", "float32", "float64"]
seeds = strategies.integers(0, 2**32 - 1)
# JAX compiles every operation anew for every further shape, so there are few:
# but for the sub-models every dimension is 1 in some and larger in others.
EMBEDDING_SHAPES = [(1, 3, 3), (3, 1, 3), (3, 3, 1)]
OUTPUT_SHAPES = [(2, 1, 3, 3), (3, 3, 1, 3), (4, 3, 3, 1)]
TOKEN_SHAPES_AND_CLASSES = [((1, 6), 2), ((5, 1), 5), ((5, 6), 2)]
LISTS_OF_SHAPES = [[(1, 1)], [(3, 1), (1, 3)], [(3, 3), (1, 1), (3, 1)]]


def cases(number):
    """Run a test on so many cases, drawn from a seed that its name gives."""
    return hypothesis.settings(
        max_examples=number,
        derandomize=True,
        deadline=None,
        database=None,
        # A smaller failing case isn't worth the minutes.
        phases=[hypothesis.Phase.generate],
        # The fixture of all tests clears what other tests left.
        suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture],
    )


def precision(name):
    """The context in which a backend has the type or policy."""
    if name == "float64":
        return double_precision()
    return contextlib.nullcontext()


@strategies.composite
def perturbations(draw):
    """A perturbation, the arguments of its ball, and its epsilon."""
    epsilon = draw(strategies.floats(1e-3, 1.0))
    ball = {
        "norm": draw(strategies.sampled_from(["l2", "linf"])),
        "per_token": draw(strategies.booleans()),
        "relative": draw(strategies.booleans()),
    }
    direction = draw(strategies.sampled_from(["steepest", "gradient"]))
    arguments = {"direction": direction, **ball}
    if draw(strategies.booleans()):
        return keras_uegr.FastGradient(epsilon, **arguments), ball, epsilon
    perturbation = keras_uegr.ProjectedGradient(
        epsilon,
        steps=draw(strategies.integers(1, 3)),
        step_size=draw(strategies.floats(1e-3, 2.0)),
        random_start=draw(strategies.booleans()),
        **arguments,
    )
    return perturbation, ball, epsilon


@cases(225)
@hypothesis.given(
    perturbations(),
    strategies.sampled_from(EMBEDDING_SHAPES),
    strategies.sampled_from(DTYPES),
    strategies.integers(-30, 30),
    seeds,
)
def test_perturbations_stay_in_their_ball(drawn, shape, dtype, exponent, seed):
    perturbation, ball, epsilon = drawn
    rng = np.random.default_rng(seed)
    mask = rng.integers(0, 2, (*shape[:2], 1)).astype("float32")
    embedding = rng.normal(size=shape).astype("float32")
    gradient = rng.normal(size=shape) * rng.integers(0, 2, shape)
    with np.errstate(over="ignore"):  # the largest are none of float16
        gradient = ops.clip(gradient * 10.0**exponent, -6e4, 6e4)
    with precision(dtype):
        gradient = ops.cast(gradient, dtype)
        assert keras.backend.standardize_dtype(gradient.dtype) == dtype
        deltas = run(perturbation, gradient, embedding, mask)
    for delta in deltas:
        assert delta.dtype == np.float32
        assert np.isfinite(delta).all()
        assert not (delta * (1 - mask)).any()
        radius = radius_of(epsilon, embedding, mask, **ball)
        size = size_of(delta, ball["norm"], ball["per_token"])
        assert (size <= radius * (1 + 1e-4)).all()


@cases(150)
@hypothesis.given(
    strategies.sampled_from(OUTPUT_SHAPES),
    strategies.sampled_from(list(consistency.DIVERGENCES)),
    strategies.sampled_from(list(consistency.MEASURES)),
    strategies.sampled_from(DTYPES),
    strategies.integers(-4, 4),
    seeds,
)
def test_divergence_is_bounded_and_symmetric(
    shape, kind, measure, dtype, exponent, seed
):
    rng = np.random.default_rng(seed)
    outputs = rng.normal(size=shape) * 10.0**exponent
    weight = ops.convert_to_tensor(rng.integers(0, 2, shape[1:3]), "float32")

    def divergence(outputs):
        with precision(dtype):
            outputs = ops.cast(np.clip(outputs, -6e4, 6e4), dtype)
            assert keras.backend.standardize_dtype(outputs.dtype) == dtype
            values = consistency.divergence_per_example(
                outputs,
                kind,
                from_logits=True,
                token_weight=weight,
                measure=measure,
            )
            return ops.convert_to_numpy(values)

    values = divergence(outputs)
    assert values.shape == shape[1:2]
    assert np.isfinite(values).all()
    assert (values >= 0).all()
    if measure == "jensen_shannon" and kind != "regression":
        assert (values <= math.log(shape[0]) + 1e-5).all()
    # Symmetric KL subtracts sums of large numbers.
    tolerance = 1e-5 * max(1.0, np.abs(outputs).max() ** 2)
    np.testing.assert_allclose(
        divergence(rng.permutation(outputs)), values, rtol=1e-4, atol=tolerance
    )
    same = divergence(np.stack([outputs[0]] * shape[0]))
    np.testing.assert_allclose(same, 0.0, atol=tolerance)


@cases(100)
@hypothesis.given(
    strategies.sampled_from(LISTS_OF_SHAPES),
    strategies.floats(0.01, 1.0),
    strategies.sampled_from(["variable", "global"]),
    strategies.booleans(),
    seeds,
)
def test_selection_is_of_the_highest(shapes, density, scope, exact, seed):
    rng = np.random.default_rng(seed)
    values = np.array([0.0, np.inf, np.nan, *rng.exponential(size=5)])
    # Few values, so that some are tied.
    scores = [rng.choice(values, shape).astype("float32") for shape in shapes]
    masks, count = select(*scores, density=density, scope=scope, exact=exact)
    live = [np.where(np.isfinite(x), x, 0.0) for x in scores]
    if scope == "global":
        groups = [np.concatenate([x.ravel() for x in live])]
        chosen = [np.concatenate([mask.ravel() for mask in masks])]
    else:
        groups, chosen = live, masks
    assert count == sum(mask.sum() for mask in masks)
    for score, mask in zip(groups, chosen, strict=True):
        # Half to the next; what is alive at all is updated.
        number = max(1, math.floor(density * (score > 0).sum() + 0.5))
        lowest = np.sort(score[score > 0])[::-1][:number][-1:]
        expected = (score > 0) & (score >= lowest.min(initial=np.inf))
        if exact:
            np.testing.assert_array_equal(mask, expected)
        assert not mask[score == 0].any()
        assert mask.sum() >= (score > 0).any()


@strategies.composite
def objectives(draw):
    """The arguments of a `UEGRModel`."""
    low = draw(strategies.floats(0.0, 0.9))
    return {
        "sub_models": draw(strategies.sampled_from([1, 3])),
        "adversarial_weight": draw(strategies.floats(0.0, 3.0)),
        "consistency_weight": draw(strategies.floats(0.0, 10.0)),
        "clean_weight": draw(strategies.floats(0.1, 2.0)),
        "include_clean": True,
        "dropout": keras_uegr.AdaptiveDropout(
            low,
            draw(strategies.floats(low, 0.9)),
            draw(strategies.sampled_from(["confidence", "divergence"])),
        ),
        "warmup_steps": draw(strategies.integers(0, 2)),
    }


def scale_of(optimizer):
    """What the loss is multiplied with, 1 without loss scaling."""
    if not isinstance(optimizer, keras.optimizers.LossScaleOptimizer):
        return 1.0
    if not optimizer.built:
        return optimizer.initial_scale
    return float(optimizer.dynamic_scale)


@cases(100)
@hypothesis.given(
    objectives(),
    strategies.floats(0.0, 1.0),
    strategies.sampled_from(TOKEN_SHAPES_AND_CLASSES),
    strategies.sampled_from(POLICIES),
    seeds,
)
def test_training_keeps_all_numbers_finite(
    settings, density, shape_and_classes, policy, seed
):
    with precision(policy):
        keras.config.set_dtype_policy(policy)
        train(settings, density, *shape_and_classes, seed)


def train(settings, density, shape, classes, seed):
    """Two steps under the policy that is set."""
    rng = np.random.default_rng(seed)
    model = keras_uegr.UEGRModel(
        pooled_model(classes=classes, mask_zero=True), **settings
    )
    model.compile(
        keras_uegr.SaliencyMaskedOptimizer("adam", density),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        run_eagerly=True,  # to compile each case would take an hour
    )
    # Padding at any place but the first, and examples that don't count.
    x = rng.integers(1, 20, shape)
    x[:, 1:] *= rng.integers(0, 2, (shape[0], shape[1] - 1))
    y = rng.integers(0, classes, shape[0])
    weight = rng.integers(0, 2, shape[0]) * rng.uniform(0, 3)
    weights = model.model.weights
    before = [np.array(ops.convert_to_numpy(w)) for w in weights]
    steps = 0
    while steps < 2:
        scale = scale_of(model.optimizer)
        model.reset_metrics()
        logs = model.train_on_batch(x, y, weight, return_dict=True)
        if scale_of(model.optimizer) < scale:
            # An overflow in half precision: the step was left out.
            assert scale > 1
            continue
        assert np.isfinite(list(logs.values())).all(), logs
        steps += 1
    assert 0 <= logs["js_divergence"] <= math.log(settings["sub_models"] + 1)
    assert 0 <= logs["updated_fraction"] <= 1
    assert 0 <= logs["dropout_rate"] <= 0.9 + 1e-6
    for variable, old in zip(weights, before, strict=True):
        new = ops.convert_to_numpy(variable)
        assert new.dtype == keras.config.dtype_policy().variable_dtype
        assert np.isfinite(new).all(), variable.path
        is_masked = len(variable.shape) > 1  # biases never are
        if not weight.any() or (density == 0 and is_masked):
            np.testing.assert_array_equal(new, old)
