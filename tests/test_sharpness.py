import warnings

import keras
import numpy as np
import pytest
from keras import ops

import keras_uegr
from keras_uegr.sharpness import moved_along
from tests.late_model import LateModel
from tests.pooled_model import pooled_model

RADIUS = 0.5
VALUES = [np.array([[1.0, -2.0], [0.5, 4.0]]), np.array([3.0, 1.0])]
GRADIENTS = [np.array([[3.0, 0.0], [-1.0, 2.0]]), np.array([1.0, -1.0])]


def moves(gradients):
    """How far variables move along their gradients, and that they go back."""
    variables = [keras.Variable(value, dtype="float32") for value in VALUES]
    gradients = [
        None if gradient is None else ops.convert_to_tensor(gradient, "float32")
        for gradient in gradients
    ]
    with moved_along(variables, gradients, RADIUS):
        moved = [np.array(ops.convert_to_numpy(x)) for x in variables]
    for variable, value in zip(variables, VALUES, strict=True):
        np.testing.assert_array_equal(ops.convert_to_numpy(variable), value)
    return [x - value for x, value in zip(moved, VALUES, strict=True)]


@pytest.mark.parametrize("size", [1e-35, 1e-23, 1.0, 1e19, 1e37])
def test_all_sizes_of_gradients_move_by_the_radius(size):
    length = np.sqrt(sum(np.square(x).sum() for x in GRADIENTS))
    found = moves([size * gradient for gradient in GRADIENTS])
    for move, gradient in zip(found, GRADIENTS, strict=True):
        np.testing.assert_allclose(move, RADIUS * gradient / length, atol=1e-6)


@pytest.mark.parametrize("gradient", [np.zeros(2), None])
def test_no_gradient_moves_nothing(gradient):
    others = None if gradient is None else np.zeros((2, 2))
    for move in moves([others, gradient]):
        np.testing.assert_array_equal(move, 0.0)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_moves_nothing_else(value):
    spoilt = GRADIENTS[0].copy()
    spoilt[0, 1] = value
    first, second = moves([spoilt, GRADIENTS[1]])
    first[0, 1] = 0.0
    for move in (first, second):
        np.testing.assert_array_equal(move, 0.0)


def test_what_a_gradient_overwrites_stays_and_is_not_counted():
    scale = keras.Variable(2.0, dtype="float32")
    scale.overwrite_with_gradient = True
    weight = keras.Variable([3.0, 1.0], dtype="float32")
    gradients = [ops.convert_to_tensor(x) for x in (7.0, [1.0, 0.0])]
    with moved_along([scale, weight], gradients, RADIUS):
        assert float(ops.convert_to_numpy(scale.value)) == 2.0
        np.testing.assert_allclose(
            ops.convert_to_numpy(weight.value), [3.0 + RADIUS, 1.0]
        )


def half_frozen():
    """A model of half precision of which only a float32 head is trained."""
    inner = pooled_model(
        rate=0.1, outputs=keras.layers.Dense(3, dtype="float32")
    )
    for layer in inner.layers[:-1]:
        layer.trainable = False
    return inner


def compile_with(inner, radius=0.05):
    model = keras_uegr.UEGRModel(inner, sharpness_radius=radius)
    model.compile("sgd", "sparse_categorical_crossentropy")


@pytest.mark.parametrize("policy", ["float16", "bfloat16"])
@pytest.mark.parametrize("make_inner", [pooled_model, LateModel])
def test_weights_that_round_the_move_are_told(policy, make_inner):
    keras.config.set_dtype_policy(policy)
    message = (
        rf"Weights of {policy} round.*`sharpness_radius`.*Received: .*0.05"
    )
    with pytest.warns(UserWarning, match=message) as told:
        compile_with(make_inner())
    assert [warning.filename for warning in told] == [__file__]


@pytest.mark.parametrize(
    ("policy", "make_inner", "radius"),
    [
        ("float32", pooled_model, 0.05),
        ("mixed_bfloat16", pooled_model, 0.05),
        ("mixed_bfloat16", LateModel, 0.05),
        ("bfloat16", pooled_model, 0.0),
        ("bfloat16", half_frozen, 0.05),
    ],
)
def test_others_are_not_warned_of(policy, make_inner, radius):
    keras.config.set_dtype_policy(policy)
    with warnings.catch_warnings(action="error"):
        compile_with(make_inner(), radius)
