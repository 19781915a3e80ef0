import re
import warnings

import keras
import numpy as np
import pytest
from keras import ops

import keras_uegr
from keras_uegr.evaluation import LossLandscape
from tests import reference
from tests.backbones import tiny_gpt2
from tests.pooled_model import pooled_model

pytestmark = [
    pytest.mark.slow,
    # Most tests are about something else, and save the time.
    pytest.mark.filterwarnings("ignore:The power iteration has not"),
]

CLASSES = 3


def examples(count=7, length=5):
    generator = np.random.default_rng(0)
    x = generator.integers(1, 20, (count, length)).astype("int32")
    return x, generator.integers(0, CLASSES, count)


def compiled(optimizer="sgd", reduction="sum_over_batch_size", inner=None):
    keras.utils.set_random_seed(0)
    model = keras_uegr.UEGRModel(inner or pooled_model(length=5))
    loss = keras.losses.SparseCategoricalCrossentropy(
        from_logits=True, reduction=reduction
    )
    model.compile(optimizer, loss)
    model(examples()[0])
    return model


def head_alone():
    """A softmax regression on fixed features, whose Hessian is known."""
    model = compiled()
    model.model.get_layer("embedding").trainable = False
    model.model.get_layer("hidden").trainable = False
    model.compile("sgd", model.loss)
    x, y = examples()
    hidden = model.model.get_layer("hidden").output
    features = keras.Model(model.model.inputs, hidden).predict(x, verbose=0)
    features = np.concatenate([features, np.ones((len(x), 1))], axis=1)
    logits = model.predict(x, verbose=0)
    shares = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    return model, x, y, features.astype("float64"), shares.astype("float64")


def mean_loss(model, x, y):
    return float(model.loss(y, model.predict_on_batch(x)))


@pytest.mark.parametrize("batch_size", [2, 7])
def test_input_gradient_norm_agrees_with_finite_differences(batch_size):
    model = compiled()
    x, y = examples()
    norms = []
    for tokens, label in zip(x, y, strict=True):
        # The model averages the embeddings: all positions have one gradient.
        table = model.model.get_layer("embedding").embeddings
        own = ops.convert_to_numpy(table).copy()
        slope = np.zeros(own.shape[1])
        for axis in range(own.shape[1]):
            losses = []
            for shift in (1e-2, -1e-2):
                moved = own.copy()
                moved[:, axis] += shift
                table.assign(moved)
                losses.append(mean_loss(model, tokens[None], label[None]))
            slope[axis] = (losses[0] - losses[1]) / 2e-2
        table.assign(own)
        norms.append(np.linalg.norm(slope) / np.sqrt(len(tokens)))
    found = LossLandscape(model, x, y, batch_size).input_gradient_norm()
    np.testing.assert_allclose(found, np.mean(norms), rtol=1e-3)


@pytest.mark.parametrize("batch_size", [2, 7])
def test_loss_rise_is_that_of_a_step_along_the_gradient(batch_size):
    model, x, y, features, shares = head_alone()
    before = [ops.convert_to_numpy(w) for w in model.weights]
    gradient = features.T @ (shares - np.eye(CLASSES)[y]) / len(y)
    radius = 0.5
    found = LossLandscape(model, x, y, batch_size).loss_rise(radius)
    for old, new in zip(before, model.weights, strict=True):
        np.testing.assert_array_equal(old, ops.convert_to_numpy(new))
    start = mean_loss(model, x, y)
    step = radius * gradient / np.linalg.norm(gradient)
    kernel, bias = model.trainable_variables
    kernel.assign_add(step[:-1].astype("float32"))
    bias.assign_add(step[-1].astype("float32"))
    np.testing.assert_allclose(found, mean_loss(model, x, y) - start, rtol=1e-4)


@pytest.mark.parametrize("batch_size", [2, 7])
def test_top_eigenvalue_is_that_of_the_softmax_regression(batch_size):
    model, x, y, features, shares = head_alone()
    hessian = np.mean(
        [
            np.kron(np.outer(f, f), np.diag(p) - np.outer(p, p))
            for f, p in zip(features, shares, strict=True)
        ],
        axis=0,
    )
    landscape = LossLandscape(model, x, y, batch_size)
    found = landscape.top_hessian_eigenvalue(iterations=60, tolerance=1e-4)
    expected = np.linalg.eigvalsh(hessian)[-1]
    np.testing.assert_allclose(found, expected, rtol=5e-3)


def test_eigenvalue_and_rise_leave_the_model_as_it_was():
    model = compiled()
    before = [ops.convert_to_numpy(w) for w in model.weights]
    landscape = LossLandscape(model, *examples())
    rise = landscape.loss_rise()
    sharpness = landscape.top_hessian_eigenvalue(iterations=2)
    assert rise > 0
    assert np.isfinite(sharpness)
    for old, new in zip(before, model.weights, strict=True):
        np.testing.assert_array_equal(old, ops.convert_to_numpy(new))


def test_one_seed_is_one_start_and_another_is_another():
    landscape = LossLandscape(compiled(), *examples())

    def measure(seed):
        return landscape.top_hessian_eigenvalue(iterations=1, seed=seed)

    assert measure(0) == measure(0)
    assert measure(0) != measure(1)


def test_what_has_not_converged_is_told():
    landscape = LossLandscape(compiled(), *examples())
    with pytest.warns(UserWarning, match="not converged.*of 1 iter") as told:
        landscape.top_hessian_eigenvalue(iterations=1)
    assert told[0].filename == __file__
    # The first of the two leaves nothing to compare with.
    with pytest.warns(UserWarning, match="not converged.*of 2 iter") as told:
        rough = landscape.top_hessian_eigenvalue(2, tolerance=1e-6)
    shown = re.search(r"was (\S+), after it (\S+)\. ", str(told[0].message))
    change = abs(float(shown[2]) - float(shown[1])) / float(shown[2])
    assert rough == pytest.approx(float(shown[2]), rel=1e-3)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        loose, close = (
            landscape.top_hessian_eigenvalue(100, tolerance=tolerance)
            for tolerance in (1.01 * change, 1e-4)
        )
    assert loose == rough
    assert close != rough


def test_the_step_of_the_eigenvalue_matters():
    landscape = LossLandscape(compiled(), *examples())
    near, far = (
        landscape.top_hessian_eigenvalue(iterations=5, step=step)
        for step in (0.01, 3.0)
    )
    assert far != pytest.approx(near, rel=0.05)


def test_measures_within_fit():
    model, (x, y) = compiled(), examples()
    landscape = LossLandscape(model, x, y)
    measures = (
        landscape.top_hessian_eigenvalue,
        landscape.loss_rise,
        landscape.input_gradient_norm,
    )
    found = []

    class Measure(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            found.append(measures[batch]())

    model.fit(x, y, batch_size=3, callbacks=[Measure()], verbose=0)
    assert len(found) == 3
    # The last one was taken after the last step.
    np.testing.assert_allclose(
        found[-1], landscape.input_gradient_norm(), rtol=1e-5
    )
    assert np.isfinite(found).all()
    assert model.optimizer.iterations == 3


def test_scaling_of_the_loss_changes_nothing():
    scaled = keras.optimizers.LossScaleOptimizer(
        keras.optimizers.SGD(), initial_scale=1024.0
    )
    found, expected = (
        LossLandscape(compiled(optimizer), *examples())
        for optimizer in (scaled, "sgd")
    )
    for name in ("input_gradient_norm", "loss_rise"):
        np.testing.assert_allclose(
            getattr(found, name)(), getattr(expected, name)(), rtol=1e-5
        )


def test_dropout_and_regularization_are_left_out():
    found = []
    for rate, regularizer in ((0.0, None), (0.5, keras.regularizers.L2(1.0))):
        inner = pooled_model(
            parameters=reference.random_parameters(20, 5, 4, CLASSES),
            rate=rate,
            outputs=keras.layers.Dense(CLASSES, kernel_regularizer=regularizer),
            length=5,
        )
        landscape = LossLandscape(compiled(inner=inner), *examples())
        found.append([landscape.input_gradient_norm(), landscape.loss_rise()])
    np.testing.assert_allclose(found[1], found[0], rtol=1e-4)


def test_one_object_follows_the_training():
    model, (x, y) = compiled(), examples()
    landscape = LossLandscape(model, x, y)

    def measure(landscape):
        return (
            landscape.input_gradient_norm(),
            landscape.loss_rise(),
            landscape.top_hessian_eigenvalue(iterations=3),
        )

    before = measure(landscape)
    model.fit(x, y, epochs=3, verbose=0)
    after = measure(landscape)
    assert all(a != b for a, b in zip(before, after, strict=True))
    expected = measure(LossLandscape(model, x, y))
    np.testing.assert_allclose(after, expected, rtol=1e-4)


@pytest.mark.parametrize("reduction", ["mean", "mean_with_sample_weight"])
def test_every_mean_over_the_batch_gives_the_same(reduction):
    found, expected = (
        LossLandscape(compiled(reduction=name), *examples(), batch_size=2)
        for name in (reduction, "sum_over_batch_size")
    )
    for name in ("input_gradient_norm", "loss_rise"):
        np.testing.assert_allclose(
            getattr(found, name)(), getattr(expected, name)(), rtol=1e-5
        )


@pytest.mark.parametrize("reduction", ["sum", "none", None])
def test_loss_that_is_no_mean_over_the_batch_is_told(reduction):
    model = compiled(reduction=reduction)
    message = f"mean over the batch.*Received: reduction={reduction}$"
    with pytest.raises(ValueError, match=message):
        LossLandscape(model, *examples())


def test_each_loss_of_several_outputs_must_be_a_mean():
    def outputs(x):
        return {
            name: keras.layers.Dense(CLASSES, name=name)(x)
            for name in ("topic", "tone")
        }

    x, y = examples()
    model = keras_uegr.UEGRModel(pooled_model(outputs=outputs))
    model(x)
    total = keras.losses.MeanSquaredError(reduction="sum")
    model.compile("sgd", {"topic": "mse", "tone": total})
    with pytest.raises(ValueError, match="Received: reduction=sum$"):
        LossLandscape(model, x, y)


@pytest.fixture
def policy(request):
    """What Keras makes layers of, for one test."""
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(request.param)
    yield request.param
    keras.config.set_dtype_policy(before)


@pytest.mark.parametrize("policy", ["bfloat16", "float16"], indirect=True)
def test_weights_that_round_small_moves_are_told_once(policy):
    landscape = LossLandscape(compiled(), *examples(), batch_size=4)
    for measure in (
        landscape.loss_rise,
        lambda: landscape.top_hessian_eigenvalue(tolerance=1e9),
    ):
        with pytest.warns(UserWarning, match="in float32") as told:
            assert np.isfinite(measure())
        assert len(told) == 1
        assert f"of {policy} " in str(told[0].message)
        assert told[0].filename == __file__
    # Nothing moves for this one: a warning would be an error.
    assert landscape.input_gradient_norm() > 0


@pytest.mark.parametrize(
    "policy", ["mixed_bfloat16", "mixed_float16"], indirect=True
)
def test_mixed_precision_keeps_weights_that_can_move(policy):
    landscape = LossLandscape(compiled(), *examples())
    assert landscape.loss_rise() > 0
    assert np.isfinite(landscape.top_hessian_eigenvalue(iterations=2))


@pytest.mark.parametrize("policy", ["mixed_float16"], indirect=True)
def test_a_scale_that_overflows_changes_nothing(policy):
    found = []
    for initial_scale in (1.0, 2.0**24):
        scaled = keras.optimizers.LossScaleOptimizer(
            keras.optimizers.SGD(), initial_scale=initial_scale
        )
        landscape = LossLandscape(compiled(scaled), *examples(), batch_size=1)
        sharpness = landscape.top_hessian_eigenvalue(iterations=2)
        norm = landscape.input_gradient_norm()
        found.append([norm, landscape.loss_rise(), sharpness])
    assert np.isfinite(found).all()
    np.testing.assert_allclose(*found, rtol=1e-3)


@pytest.mark.parametrize("method", ["loss_rise", "top_hessian_eigenvalue"])
def test_model_without_trainable_weights_is_told(method):
    model = compiled()
    model.model.trainable = False
    model.compile("sgd", model.loss)
    landscape = LossLandscape(model, *examples())
    assert landscape.input_gradient_norm() > 0
    message = f"a trainable weight.*Received: model={model.name}$"
    with pytest.raises(ValueError, match=message):
        getattr(landscape, method)()


def test_integers_of_numpy_are_integers():
    found, expected = (
        LossLandscape(
            compiled(), *examples(), batch_size=integer(3)
        ).top_hessian_eigenvalue(iterations=integer(2), seed=integer(1))
        for integer in (np.int64, int)
    )
    assert found == expected


@pytest.mark.parametrize("batch_size", [0, -1, 1.5, True])
def test_batch_size_is_checked(batch_size):
    message = f"`batch_size` must be.*Received: batch_size={batch_size}$"
    with pytest.raises(ValueError, match=message):
        LossLandscape(compiled(), *examples(), batch_size=batch_size)


@pytest.mark.parametrize("iterations", [0, 1.5, True])
def test_iterations_are_checked(iterations):
    landscape = LossLandscape(compiled(), *examples())
    message = f"`iterations` must be.*Received: iterations={iterations}$"
    with pytest.raises(ValueError, match=message):
        landscape.top_hessian_eigenvalue(iterations=iterations)


@pytest.mark.parametrize(
    ("method", "argument", "value"),
    [
        ("loss_rise", "radius", 0),
        ("loss_rise", "radius", np.inf),
        ("loss_rise", "radius", "0.05"),
        ("top_hessian_eigenvalue", "step", np.inf),
        ("top_hessian_eigenvalue", "step", -1.0),
        ("top_hessian_eigenvalue", "tolerance", 0),
        ("top_hessian_eigenvalue", "tolerance", np.inf),
    ],
)
def test_argument_that_does_not_fit_is_told(method, argument, value):
    landscape = LossLandscape(compiled(), *examples())
    message = f"`{argument}` must be .* above 0. Received: {argument}={value}"
    with pytest.raises(ValueError, match=message):
        getattr(landscape, method)(**{argument: value})


def test_no_examples_are_told():
    x, y = examples()
    with pytest.raises(ValueError, match="at least one example"):
        LossLandscape(compiled(), x[:0], y[:0])


def test_model_that_is_not_compiled_is_told():
    model = keras_uegr.UEGRModel(pooled_model())
    with pytest.raises(ValueError, match="compile"):
        LossLandscape(model, *examples())


def test_model_without_a_loss_is_told():
    model = keras_uegr.UEGRModel(
        pooled_model(), adversarial_weight=0, consistency_weight=0
    )
    model.compile("sgd")
    with pytest.raises(ValueError, match="compiled with a loss to measure"):
        LossLandscape(model, *examples())


def measures(model, x, y, batch_size):
    landscape = LossLandscape(model, x, y, batch_size)
    return [
        landscape.input_gradient_norm(),
        landscape.loss_rise(0.5),
        landscape.top_hessian_eigenvalue(iterations=3),
    ]


def tagger(names=(), mask_zero=False):
    """A class for each token; padding leaves out none of its own accord."""
    keras.utils.set_random_seed(0)
    token_ids = keras.Input((6,), dtype="int32")
    x = keras.layers.Embedding(20, 5, "normal", mask_zero=mask_zero)(token_ids)
    x = keras.layers.Dense(4, activation="tanh")(x)
    outputs = {
        name: keras.layers.Dense(CLASSES, name=name)(x) for name in names
    }
    outputs = outputs or keras.layers.Dense(CLASSES)(x)
    return keras_uegr.UEGRModel(
        keras.Model(token_ids, outputs),
        adversarial_weight=0,
        consistency_weight=0,
    )


def tagged():
    x, _ = examples(length=6)
    y = np.random.default_rng(1).integers(0, CLASSES, x.shape)
    counted = np.arange(6) < np.array([1, 6, 2, 5, 3, 4, 1])[:, None]
    return x, y, counted


@pytest.mark.parametrize("left_out", ["ignored class", "mask"])
def test_entries_that_are_left_out_count_in_no_batch(left_out):
    x, y, counted = tagged()
    model = tagger(mask_zero=left_out == "mask")
    if left_out == "mask":
        x, ignored = np.where(counted, x, 0), None
    else:
        y, ignored = np.where(counted, y, -1), -1
    loss = keras.losses.SparseCategoricalCrossentropy(
        from_logits=True, ignore_class=ignored
    )
    model.compile("sgd", loss)
    expected = measures(model, x, y, 7)
    for batch_size in (1, 3):
        found = measures(model, x, y, batch_size)
        np.testing.assert_allclose(found, expected, rtol=1e-3)


def test_an_example_of_which_nothing_counts_has_no_gradient():
    x, y, counted = tagged()
    model = tagger()
    model.compile(
        "sgd",
        keras.losses.SparseCategoricalCrossentropy(
            from_logits=True, ignore_class=-1
        ),
    )
    counted[0] = False
    y = np.where(counted, y, -1)
    found = LossLandscape(model, x, y).input_gradient_norm()
    others = LossLandscape(model, x[1:], y[1:]).input_gradient_norm()
    np.testing.assert_allclose(found, others * 6 / 7, rtol=1e-5)


def test_outputs_that_leave_out_different_entries_need_one_batch():
    x, y, counted = tagged()
    model = tagger(("first", "second"))
    loss = keras.losses.SparseCategoricalCrossentropy(
        from_logits=True, ignore_class=-1
    )
    model.compile("sgd", {"first": loss, "second": loss})
    labels = {"first": np.where(counted, y, -1), "second": y}
    with pytest.raises(ValueError, match="Set `batch_size=7`"):
        LossLandscape(model, x, labels, 3).loss_rise()
    assert LossLandscape(model, x, labels, 7).loss_rise() > 0
    with pytest.raises(ValueError, match="Set `batch_size=1`"):
        LossLandscape(model, x, labels, 7).input_gradient_norm()
    assert LossLandscape(model, x, labels, 1).input_gradient_norm() > 0
    alike = {"first": y, "second": y}
    np.testing.assert_allclose(
        measures(model, x, alike, 3), measures(model, x, alike, 7), rtol=1e-3
    )


def test_a_loss_that_is_one_number_counts_by_examples():
    x, y = examples()
    model = compiled()
    model.compile(
        "sgd",
        lambda y, outputs: ops.mean(ops.square(outputs)),
    )
    np.testing.assert_allclose(
        measures(model, x, y, 2), measures(model, x, y, 7), rtol=1e-3
    )


def test_a_batch_that_is_differentiated_again_keeps_its_weights():
    """As in float16. Keras multiplies them by the mask, on PyTorch in place."""
    inputs = keras.Input((5,), dtype="int32")
    hidden = keras.layers.Embedding(20, 4, mask_zero=True)(inputs)
    hidden = keras.layers.Dropout(0.1)(hidden)
    model = compiled(
        inner=keras.Model(inputs, keras.layers.Dense(CLASSES)(hidden))
    )
    x, _ = examples()
    x[:, 3:] = 0
    y, weight = x % CLASSES, np.linspace(1, 2, x.size).reshape(x.shape)
    landscape = LossLandscape(model, x, y)
    batch = tuple(map(ops.convert_to_tensor, (x, y, weight.astype("float32"))))
    first, second = (
        float(landscape._loss_and_gradients(batch)[0]) for _ in range(2)
    )
    assert first == second
    expected = model.evaluate(x, y, sample_weight=weight, verbose=0)
    assert first == pytest.approx(expected, rel=1e-5)


def test_labels_and_weights_of_the_preprocessor_are_measured():
    texts = ["a", "good film", "a longer film"]
    model = keras_uegr.UEGRModel(
        tiny_gpt2(), adversarial_weight=0, consistency_weight=0
    )
    x, y, weights = keras.tree.map_structure(
        ops.convert_to_numpy, model.preprocessor(texts)
    )

    def measure(x, y, batch_size, **arguments):
        loss = keras.losses.SparseCategoricalCrossentropy(
            from_logits=True, **arguments
        )
        model.compile("sgd", loss)
        landscape = LossLandscape(model, x, y, batch_size)
        return landscape.input_gradient_norm(), landscape.loss_rise(0.5)

    expected = measure(x, np.where(weights > 0, y, -1), 3, ignore_class=-1)
    for batch_size in (2, 3):
        found = measure(
            texts, None, batch_size, reduction="mean_with_sample_weight"
        )
        np.testing.assert_allclose(found, expected, rtol=1e-3)


def test_a_model_without_an_embedding_has_no_gradient_at_it():
    inputs = keras.Input((4,))
    model = keras_uegr.UEGRModel(
        keras.Model(inputs, keras.layers.Dense(CLASSES)(inputs)),
        perturbation=None,
        adversarial_weight=0,
        consistency_weight=0,
    )
    model.compile("sgd", compiled().loss)
    x = np.random.default_rng(0).normal(size=(6, 4)).astype("float32")
    landscape = LossLandscape(model, x, np.arange(6) % CLASSES)
    assert landscape.loss_rise() > 0
    with pytest.raises(ValueError, match="`embedding` to the layer"):
        landscape.input_gradient_norm()


def test_an_embedding_without_a_way_to_the_loss_is_told():
    token_ids = keras.Input((5,), dtype="int32")
    used = keras.layers.Embedding(20, 5, name="used")(token_ids)
    idle = keras.layers.Embedding(20, 5, name="idle")(token_ids)
    outputs = used + keras.layers.Lambda(ops.stop_gradient)(idle)
    outputs = keras.layers.GlobalAveragePooling1D()(outputs)
    model = keras_uegr.UEGRModel(
        keras.Model(token_ids, keras.layers.Dense(CLASSES)(outputs)),
        embedding="idle",
        adversarial_weight=0,
        consistency_weight=0,
    )
    model.compile("sgd", compiled().loss)
    with pytest.raises(ValueError, match="Received: embedding=idle"):
        LossLandscape(model, *examples()).input_gradient_norm()


def test_model_that_is_not_built_is_told():
    model = keras_uegr.UEGRModel(keras.Sequential([keras.layers.Dense(2)]))
    model.compile("sgd", "mse")
    with pytest.raises(ValueError, match="must be built first"):
        LossLandscape(model, np.ones((2, 3)), np.ones((2, 2)))
