import functools
import itertools
import math

import keras
import numpy as np
import pytest
from keras import ops

import keras_uegr
from keras_uegr import consistency, keras_internals
from tests import reference
from tests.pooled_model import pooled_model


def random_logits(*shape, seed=0, size=2.0):
    return np.random.default_rng(seed).normal(0, size, shape).astype("float32")


def jensen_shannon(logits):
    outputs = consistency.jensen_shannon_from_logits(
        ops.convert_to_tensor(logits)
    )
    return ops.convert_to_numpy(outputs)


def divergence(outputs, kind, from_logits=True, token_weight=None):
    if token_weight is not None:
        token_weight = ops.convert_to_tensor(token_weight)
    values = consistency.divergence_per_example(
        ops.convert_to_tensor(outputs), kind, from_logits, token_weight
    )
    return ops.convert_to_numpy(values)


@functools.cache
def any_model():
    """Knows how to take a gradient on the active backend."""
    model = keras_uegr.UEGRModel(pooled_model())
    model.compile("sgd", "mse")
    return model


def gradient_of(function, array):
    """The backend's gradient of `function`, a scalar, with respect to it."""
    variable = keras.Variable(array, dtype=str(array.dtype))

    def loss(watch):
        return function(ops.convert_to_tensor(variable)), None

    def gradients(data):
        return any_model().differentiate(
            loss, [variable], watch_embedding=False
        )[2]

    any_model()
    (gradient,) = any_model().compile_inference(gradients)(())
    return ops.convert_to_numpy(gradient)


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def bernoulli_jensen_shannon(logits):
    """In NumPy: the mean over the labels, which are the last axis."""
    members = sigmoid(logits.astype("float64"))
    both = np.stack([members, 1 - members], axis=-1)
    return reference.jensen_shannon(both).mean(axis=-1)


@pytest.mark.parametrize("members", [2, 3, 5])
def test_equals_the_definition(members):
    logits = random_logits(members, 6, 4)
    expected = reference.jensen_shannon(
        reference.softmax(logits.astype("float64"))
    )
    assert expected.min() > 0.01
    np.testing.assert_allclose(jensen_shannon(logits), expected, atol=1e-6)


@pytest.mark.parametrize("members", [2, 3, 4])
def test_symmetric_kl_is_the_mean_over_all_ordered_pairs(members):
    logits = random_logits(members, 6, 4)
    p = reference.softmax(logits.astype("float64"))
    pairs = list(itertools.permutations(range(members), 2))
    expected = np.mean(
        [(p[i] * np.log(p[i] / p[j])).sum(axis=-1) for i, j in pairs], axis=0
    )
    found = consistency.symmetric_kl_from_logits(ops.convert_to_tensor(logits))
    np.testing.assert_allclose(
        ops.convert_to_numpy(found), expected, rtol=1e-5, atol=1e-6
    )


def test_is_symmetric_in_its_members():
    logits = random_logits(4, 6, 3)
    expected = jensen_shannon(logits)
    for order in ([3, 2, 1, 0], [1, 3, 0, 2]):
        np.testing.assert_allclose(
            jensen_shannon(logits[order]), expected, atol=1e-6
        )


@pytest.mark.parametrize("size", [0.01, 1.0, 10.0, 1e4])
@pytest.mark.parametrize("members", [2, 5])
def test_lies_between_zero_and_log_k(members, size):
    values = jensen_shannon(random_logits(members, 200, 7, size=size))
    assert values.min() >= 0
    assert values.max() <= math.log(members) + 1e-6


@pytest.mark.parametrize("size", [0.0, 1.0, 1e4])
def test_is_zero_for_equal_members_also_when_shifted(size):
    logits = np.repeat(random_logits(1, 50, 5, size=size), 3, axis=0)
    shifts = np.array([0.0, 3.0, -7.0], "float32")[:, None, None]
    np.testing.assert_allclose(jensen_shannon(logits), 0.0, atol=1e-6)
    if size < 1e4:
        np.testing.assert_allclose(
            jensen_shannon(logits + shifts), 0.0, atol=1e-6
        )


@pytest.mark.parametrize("members", [2, 3, 6])
def test_reaches_log_k_for_disjoint_members(members):
    logits = 1e4 * np.eye(members, dtype="float32")[:, None, :]
    np.testing.assert_allclose(
        jensen_shannon(logits), math.log(members), rtol=1e-6
    )


LOWEST = float(np.finfo("float32").min)


EXTREMES = {
    "opposite": [[1e4, -1e4, 0.0], [-1e4, 1e4, 0.0]],
    "equal": [[1e4, -1e4, 0.0], [1e4, -1e4, 0.0]],
    "lowest": [[0.0, LOWEST, 1.0], [LOWEST, 0.0, 1.0]],
    "very low": [[0.0, -1e30, 1.0], [0.0, -1e30, 2.0]],
    "minus infinity": [[0.0, -np.inf, 1.0], [2.0, -np.inf, -np.inf]],
}


def test_value_and_gradient_stay_finite_for_extreme_logits():
    logits = np.array(list(EXTREMES.values()), "float32").swapaxes(0, 1)
    values = jensen_shannon(logits)
    gradient = gradient_of(
        lambda x: ops.sum(consistency.jensen_shannon_from_logits(x)), logits
    )
    for example, name in enumerate(EXTREMES):
        assert 0 <= values[example] <= math.log(2) + 1e-6, name
        assert np.isfinite(gradient[:, example]).all(), name


def test_half_precision_logits_are_computed_in_float32():
    logits = random_logits(3, 6, 4).astype("float16")
    logits[0, 0] = [6e4, -6e4, 0, 0]
    value = jensen_shannon(logits)
    assert value.dtype == "float32"
    np.testing.assert_allclose(
        value, jensen_shannon(logits.astype("float32")), atol=1e-6
    )
    gradient = gradient_of(
        lambda x: ops.sum(consistency.jensen_shannon_from_logits(x)), logits
    )
    assert np.isfinite(gradient).all()
    assert np.abs(gradient[:, 1:]).max() > 1e-3


def test_value_of_an_example_is_independent_of_its_batch():
    logits = random_logits(2, 8, 3)
    together = divergence(logits, "softmax")
    alone = [divergence(logits[:, i : i + 1], "softmax")[0] for i in range(8)]
    np.testing.assert_allclose(together, alone, atol=1e-6)


@pytest.mark.parametrize("members", [2, 3])
@pytest.mark.parametrize("measure", ["jensen_shannon", "symmetric_kl"])
def test_nearly_equal_members_keep_value_and_gradient(measure, members):
    """To second order both are a form of the Fisher information."""
    logits = np.repeat(random_logits(1, 500, 3), members, axis=0)
    logits += random_logits(members, 500, 3, seed=1, size=1e-4)
    apart = logits.astype("float64") - logits.mean(axis=0, dtype="float64")
    p = reference.softmax(logits.mean(axis=0, dtype="float64"))
    expected = p * (apart - (p * apart).sum(axis=-1, keepdims=True))
    expected *= {
        "jensen_shannon": 1 / members,
        "symmetric_kl": 2 / (members - 1),
    }[measure]
    function = consistency.MEASURES[measure]
    values = ops.convert_to_numpy(function(ops.convert_to_tensor(logits)))
    gradient = gradient_of(lambda x: ops.sum(function(x)), logits)
    for found, exact in (
        (values, (expected * apart).sum(axis=(0, -1)) / 2),
        (gradient, expected),
    ):
        error = np.linalg.norm(found - exact) / np.linalg.norm(exact)
        assert error < 0.01
    assert values.min() >= 0


@pytest.mark.parametrize("kind", ["softmax", "sigmoid", "regression"])
def test_gradient_agrees_with_finite_differences(kind):
    outputs = random_logits(3, 4, 5)
    gradient = gradient_of(
        lambda x: ops.sum(consistency.divergence_per_example(x, kind, True)),
        outputs,
    )
    twin = {
        "softmax": lambda x: reference.jensen_shannon(reference.softmax(x)),
        "sigmoid": bernoulli_jensen_shannon,
        "regression": lambda x: x.var(axis=0).mean(axis=-1),
    }[kind]
    expected = np.zeros(outputs.shape)
    step = 1e-5
    for index in np.ndindex(outputs.shape):
        moved = outputs.astype("float64")
        moved[index] += step
        above = twin(moved).sum()
        moved[index] -= 2 * step
        expected[index] = (above - twin(moved).sum()) / (2 * step)
    assert np.abs(expected).max() > 0.01
    np.testing.assert_allclose(gradient, expected, atol=1e-5)


def test_from_probabilities_equals_from_logits():
    logits = random_logits(3, 6, 4)
    for kind, to_probabilities in (
        ("softmax", reference.softmax),
        ("sigmoid", sigmoid),
    ):
        expected = divergence(logits, kind)
        probabilities = to_probabilities(logits)
        assert expected.min() > 0.01
        np.testing.assert_allclose(
            divergence(probabilities, kind, from_logits=False),
            expected,
            atol=1e-5,
        )


def test_probabilities_of_zero_and_one_stay_finite():
    probabilities = np.array([[[1.0, 0.0]], [[0.0, 1.0]]], "float32")
    for kind in ("softmax", "sigmoid"):
        np.testing.assert_allclose(
            divergence(probabilities, kind, from_logits=False),
            math.log(2),
            rtol=1e-4,
        )
        gradient = gradient_of(
            lambda x, kind=kind: ops.sum(
                consistency.divergence_per_example(x, kind, False)
            ),
            probabilities,
        )
        assert np.isfinite(gradient).all()


def test_sigmoid_is_the_mean_over_the_labels():
    logits = random_logits(3, 6, 4)
    np.testing.assert_allclose(
        divergence(logits, "sigmoid"),
        bernoulli_jensen_shannon(logits),
        atol=1e-6,
    )


def test_binary_output_may_lack_its_last_axis():
    logits = random_logits(3, 6, 1)
    np.testing.assert_array_equal(
        divergence(logits[..., 0], "sigmoid"), divergence(logits, "sigmoid")
    )


def test_regression_is_the_variance_over_the_sub_models():
    outputs = random_logits(4, 6, 3)
    np.testing.assert_allclose(
        divergence(outputs, "regression"),
        outputs.var(axis=0).mean(axis=-1),
        rtol=1e-5,
    )


def test_token_outputs_are_averaged_over_unmasked_tokens_only():
    logits = random_logits(2, 3, 5, 4)
    weight = np.array(
        [[1, 1, 1, 1, 1], [1, 1, 0, 0, 0], [0, 0, 0, 0, 0]], "float32"
    )
    per_token = reference.jensen_shannon(
        reference.softmax(logits.astype("float64"))
    )
    expected = [per_token[0].mean(), per_token[1, :2].mean(), 0.0]
    value = divergence(logits, "softmax", token_weight=weight)
    np.testing.assert_allclose(value, expected, atol=1e-6)
    # What stands at a masked token has no influence.
    logits[:, weight == 0] = random_logits(2, 8, 4, seed=1, size=50.0)
    changed = divergence(logits, "softmax", token_weight=weight)
    np.testing.assert_array_equal(changed, value)


LABELS = np.array([[0, 2, -1], [-1, -1, 1]])
UNPADDED = np.array([[1, 0, 1], [1, 1, 1]], "float32")


@pytest.mark.parametrize("last_axis", [(), (1,)])
@pytest.mark.parametrize(
    ("unpadded", "expected"),
    [
        (UNPADDED, [[1, 0, 0], [0, 0, 1]]),
        (None, [[1, 1, 0], [0, 0, 1]]),
        # Of the input, where the output has another length.
        (np.ones((2, 5), "float32"), [[1, 1, 0], [0, 0, 1]]),
    ],
)
def test_tokens_of_an_ignored_label_do_not_count(unpadded, expected, last_axis):
    loss = keras.losses.SparseCategoricalCrossentropy(ignore_class=-1)
    if unpadded is not None:
        unpadded = ops.convert_to_tensor(unpadded)
    labels = ops.convert_to_tensor(LABELS.reshape(LABELS.shape + last_axis))
    counted = consistency.counted_tokens(loss, labels, unpadded)
    np.testing.assert_array_equal(ops.convert_to_numpy(counted), expected)


@pytest.mark.parametrize(
    ("loss", "shape"),
    [
        (keras.losses.SparseCategoricalCrossentropy(), (2, 3)),
        (keras.losses.SparseCategoricalCrossentropy(ignore_class=0), (2,)),
        (keras.losses.SparseCategoricalCrossentropy(ignore_class=0), (2, 1)),
        (keras.losses.SparseCategoricalCrossentropy(ignore_class=0), (2, 3, 4)),
    ],
)
def test_tokens_count_where_none_has_a_label_to_ignore(loss, shape):
    counted = consistency.counted_tokens(loss, ops.zeros(shape), UNPADDED)
    assert counted is UNPADDED


def test_tokens_are_weighed_by_fractions_too():
    values = ops.convert_to_tensor(np.array([[1.0, 2.0, 4.0]], "float32"))
    weight = ops.convert_to_tensor(np.array([[0.5, 2.0, 0.0]], "float32"))
    mean = consistency.mean_per_example(values, weight)
    np.testing.assert_allclose(
        ops.convert_to_numpy(mean), [(0.5 * 1.0 + 2.0 * 2.0) / 2]
    )


def test_outputs_of_another_length_than_the_tokens_are_averaged_in_full():
    values = np.array([[1.0, 2.0], [3.0, 5.0]], "float32")
    mean = consistency.mean_per_example(
        ops.convert_to_tensor(values), ops.zeros((2, 7))
    )
    np.testing.assert_allclose(ops.convert_to_numpy(mean), [1.5, 4.0])


def sequence_model():
    """Translates `source` to `target`, of lengths that are not known."""
    source = keras.Input((None,), dtype="int32", name="source")
    target = keras.Input((None,), dtype="int32", name="target")
    embed = keras.layers.Embedding(20, 4, mask_zero=True, name="source_tokens")
    read = keras.layers.GRU(4)(embed(source))
    embed = keras.layers.Embedding(20, 4)
    written = keras.layers.GRU(4, return_sequences=True)(
        embed(target), initial_state=read
    )
    outputs = keras.layers.Dense(3)(written)
    return keras.Model({"source": source, "target": target}, outputs)


@pytest.mark.parametrize(
    ("ignore_class", "weighted"), [(None, False), (None, True), (-1, False)]
)
def test_outputs_may_differ_from_the_tokens_in_unknown_length(
    ignore_class, weighted
):
    model = keras_uegr.UEGRModel(
        sequence_model(),
        embedding="source_tokens",
        dropout=None,
        warmup_steps=0,
    )
    loss = keras.losses.SparseCategoricalCrossentropy(
        from_logits=True, ignore_class=ignore_class
    )
    model.compile("sgd", loss)
    rng = np.random.default_rng(0)
    for source, target in ((6, 4), (5, 7), (5, 5)):
        x = {
            "source": rng.integers(1, 20, (2, source)),
            "target": rng.integers(1, 20, (2, target)),
        }
        labels = rng.integers(0, 3, (2, target))
        weight = rng.uniform(size=(2, target)) if weighted else None
        logs = model.train_on_batch(x, labels, weight, return_dict=True)
        assert np.isfinite(logs["loss"])
        assert logs["js_divergence"] > 0


def test_values_are_weighed_where_lengths_are_the_same():
    """Also where, as in a graph on TensorFlow, neither is known before."""
    mean = any_model().compile_inference(
        lambda data: consistency.mean_per_example(*data)
    )
    values = np.array([[1.0, 5.0, 3.0, 7.0]], "float32")
    weight = np.array([[2.0, 0.0, 1.0, 1.0, 1.0]], "float32")
    lengths = {(4, 3): 4.0, (2, 5): 3.0, (3, 3): 2.5, (3, 4): 3.0}
    for (first, second), expected in lengths.items():
        data = values[:, :first], weight[:, :second]
        found = mean(tuple(ops.convert_to_tensor(x) for x in data))
        assert float(ops.convert_to_numpy(found)[0]) == expected


LOSSES = {
    "CategoricalCrossentropy": "softmax",
    "SparseCategoricalCrossentropy": "softmax",
    "CategoricalFocalCrossentropy": "softmax",
    "CategoricalGeneralizedCrossEntropy": "softmax",
    "KLDivergence": "softmax",
    "BinaryCrossentropy": "sigmoid",
    "BinaryFocalCrossentropy": "sigmoid",
    "MeanSquaredError": "regression",
    "MeanAbsoluteError": "regression",
    "MeanAbsolutePercentageError": "regression",
    "MeanSquaredLogarithmicError": "regression",
    "Huber": "regression",
    "LogCosh": "regression",
    "CosineSimilarity": "regression",
}


@pytest.mark.parametrize("name", LOSSES)
def test_output_kind_is_that_of_the_loss_whatever_its_name(name):
    loss_class = getattr(keras.losses, name)
    assert consistency.output_kind(loss_class()) == LOSSES[name]
    renamed = loss_class(name="my_loss")
    assert consistency.output_kind(renamed) == LOSSES[name]


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("sparse_categorical_crossentropy", "softmax"),
        ("kld", "softmax"),
        ("binary_crossentropy", "sigmoid"),
        ("bce", "sigmoid"),
        ("mse", "regression"),
        ("mae", "regression"),
        ("huber", "regression"),
        (keras.losses.mean_squared_error, "regression"),
    ],
)
def test_output_kind_of_a_loss_compiled_by_name_or_as_a_function(name, kind):
    model = pooled_model(classes=1)
    model.compile("sgd", name)
    outputs = model(np.array([[1, 2]]))
    model.compute_loss(y=ops.zeros((1, 1)), y_pred=outputs)
    ((_, loss),) = keras_internals.compiled_output_losses(model)
    assert consistency.output_kind(loss) == kind


class OwnLoss(keras.losses.Loss):
    def call(self, y_true, y_pred):
        return ops.mean(ops.square(y_true - y_pred), axis=-1)


@pytest.mark.parametrize("loss", [OwnLoss(name="own"), keras.losses.Poisson()])
def test_a_loss_of_unknown_kind_is_told(loss):
    message = f"Set its argument `output_kind` to one of .*loss={loss.name}"
    with pytest.raises(ValueError, match=message):
        consistency.output_kind(loss)
