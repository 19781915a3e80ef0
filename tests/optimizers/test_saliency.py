import keras
import numpy as np
import pytest
from keras import ops

from keras_uegr.optimizers import saliency
from tests.optimizers import reference


def read(scores):
    return ops.convert_to_numpy(scores.read(lambda x: x))


def pair(dtype="float32", shape=(5, 4), scale=1.0):
    rng = np.random.default_rng(0)
    return [
        ops.convert_to_tensor((scale * rng.normal(size=shape)).astype(dtype))
        for _ in range(2)
    ]


@pytest.mark.parametrize("name", ["taylor", "gradient", "inverse_gradient"])
def test_scores_equal_reference(name):
    value, gradient = pair()
    expected = reference.scores(name, *map(ops.convert_to_numpy, pair()))
    found = read(saliency.scores(name, value, gradient))
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_what_has_no_gradient_scores_most_where_the_least_counts():
    gradient = ops.convert_to_tensor([[0.0, 1e-20, -2.0, np.inf]])
    scores = read(
        saliency.scores("inverse_gradient", ops.ones((1, 4)), gradient)
    )
    assert np.isfinite(scores).all()
    assert (np.diff(scores) < 0).all()


def test_part_of_scores_is_score_of_part():
    scores = saliency.scores("taylor", *pair())
    part = ops.convert_to_numpy(scores.read(lambda x: x[1:3]))
    np.testing.assert_array_equal(part, read(scores)[1:3])


def test_half_precision_does_not_underflow():
    value, gradient = (ops.cast(x, "float16") for x in pair(scale=1e-4))
    assert np.count_nonzero(ops.convert_to_numpy(value * gradient)) < 20
    scores = read(saliency.scores("taylor", value, gradient))
    assert scores.dtype == np.float32
    assert np.count_nonzero(scores) == 20


def test_function_sees_whole_variable():
    def centered(value, gradient):
        del value
        return gradient - ops.min(gradient)

    value, gradient = pair()
    scores = saliency.scores(centered, value, gradient)
    found = ops.convert_to_numpy(scores.read(lambda x: x[:2]))
    whole = ops.convert_to_numpy(gradient)
    np.testing.assert_allclose(found, (whole - whole.min())[:2], rtol=1e-6)


def test_function_must_keep_shape():
    with pytest.raises(ValueError, match=r"shape \(5, 4\)\. Received: scores"):
        saliency.scores(lambda value, gradient: ops.sum(value), *pair())


def test_average_over_steps():
    average = keras.Variable(np.zeros((5, 4), "float32"))
    expected = np.zeros((5, 4))
    for step in range(3):
        value, gradient = (x + step for x in pair())
        scores = saliency.averaged_scores(average, value, gradient, 0.8)
        square = np.square(ops.convert_to_numpy(gradient))
        expected = 0.8 * expected + 0.2 * square
        np.testing.assert_allclose(read(scores), expected, rtol=1e-5)
    np.testing.assert_allclose(
        ops.convert_to_numpy(average), expected, rtol=1e-5
    )


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_gradient_that_is_not_finite_leaves_average(bad):
    average = keras.Variable(np.full((2, 2), 3.0, "float32"))
    gradient = np.array([[bad, 1.0], [2.0, 0.0]], "float32")
    scores = read(
        saliency.averaged_scores(
            average, ops.ones((2, 2)), ops.convert_to_tensor(gradient), 0.5
        )
    )
    np.testing.assert_allclose(scores, [[0.0, 2.0], [3.5, 1.5]])
    np.testing.assert_allclose(
        ops.convert_to_numpy(average), [[3.0, 2.0], [3.5, 1.5]]
    )


@pytest.mark.parametrize("unknown", ["magnitude", None, 3])
def test_unknown_saliency(unknown):
    message = (
        r"`saliency` must be one of \['fisher', 'gradient', "
        r"'inverse_gradient', 'random', 'taylor'\], or a "
        rf"function .* Received: saliency={unknown}"
    )
    with pytest.raises(ValueError, match=message):
        saliency.get(unknown)


@pytest.mark.parametrize("name", ["taylor", "gradient", "fisher"])
def test_one_name_has_one_function_that_compiled_code_is_kept_for(name):
    first, second = (saliency.scores(name, *pair()) for _ in range(2))
    assert first.function is second.function
