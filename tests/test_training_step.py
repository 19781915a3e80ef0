import functools

import keras
import numpy as np
import pytest
from keras import ops

import keras_uegr
from keras_uegr import objective
from tests import reference
from tests.backbones import tiny_bert, tiny_inputs
from tests.pooled_model import pooled_model


def logits_loss():
    return keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def token_batch(examples=6, length=7, vocabulary=20, classes=3, seed=0):
    rng = np.random.default_rng(seed)
    token_ids = rng.integers(1, vocabulary, (examples, length))
    return token_ids.astype("int32"), rng.integers(0, classes, examples)


@pytest.mark.parametrize("relative", [True, False])
@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_step_equals_hand_derived_update(norm, relative):
    parameters = reference.random_parameters(20, 5, 4, 3)
    token_ids, labels = token_batch()
    expected = reference.uegr_step(
        parameters,
        token_ids,
        labels,
        functools.partial(
            reference.fast_gradient, epsilon=0.3, norm=norm, relative=relative
        ),
        sub_models=2,
        adversarial_weight=0.7,
        consistency_weight=5.0,
        learning_rate=0.5,
    )
    inner = pooled_model(parameters=parameters)
    model = keras_uegr.UEGRModel(
        inner,
        perturbation=keras_uegr.FastGradient(0.3, norm, relative=relative),
        dropout=keras_uegr.AdaptiveDropout(0.0, 0.0),
        sub_models=2,
        token_share=1,
        adversarial_weight=0.7,
        consistency_weight=5.0,
        include_clean=True,
    )
    model.compile(keras.optimizers.SGD(0.5), logits_loss())
    model.train_on_batch(token_ids, labels)
    for weight, name in zip(inner.weights, expected, strict=True):
        np.testing.assert_allclose(
            ops.convert_to_numpy(weight), expected[name], rtol=0, atol=2e-5
        )


@pytest.mark.slow
def test_gradient_agrees_with_finite_differences():
    x, labels = tiny_inputs(4)
    model = keras_uegr.UEGRModel(
        tiny_bert(preprocessor=False),
        perturbation=keras_uegr.FastGradient(0.1),
        dropout=keras_uegr.AdaptiveDropout(0.1, 0.5, "uniform"),
        consistency_weight=5.0,
    )
    model.compile("sgd", logits_loss())
    batch = objective.Batch(
        {name: ops.convert_to_tensor(value) for name, value in x.items()},
        ops.convert_to_tensor(labels),
    )
    variables = model.trainable_variables
    seeds = [
        (variable, ops.convert_to_numpy(variable))
        for variable in model.non_trainable_variables
        if variable.name == "seed_generator_state"
    ]

    def fix_randomness():
        keras.utils.set_random_seed(3)
        for variable, value in seeds:
            variable.assign(value)

    fix_randomness()
    clean_pass = functools.partial(objective.clean_pass, model, batch)
    _, clean, clean_gradients, embedding_gradient = model.differentiate(
        clean_pass, variables, watch_embedding=True
    )
    at = (clean.embedded.embedding, clean.embedded.movable)
    delta = model.perturbation.start(*at, 1.0, model.seed_generator)
    delta = model.perturbation.ascend(delta, embedding_gradient, *at, 1.0)
    rates = ops.convert_to_tensor(np.linspace(0.1, 0.5, 8).astype("float32"))

    def sub_model_pass(transform):
        del transform
        return objective.sub_model_pass(
            model, batch, clean, delta, rates, (1.0, 5.0)
        )

    fix_randomness()
    _, _, extra_gradients, _ = model.differentiate(
        sub_model_pass, variables, watch_embedding=False
    )

    losses = [
        model.compile_inference(lambda _, run=run: run(None)[0])
        for run in (clean_pass, sub_model_pass)
    ]

    def total_loss():
        total = 0.0
        for loss in losses:
            fix_randomness()
            total += float(ops.convert_to_numpy(loss(())))
        return total

    gradients = [
        np.array(ops.convert_to_numpy(first), "float64")
        + ops.convert_to_numpy(second)
        for first, second in zip(clean_gradients, extra_gradients, strict=True)
    ]
    values = [ops.convert_to_numpy(variable) for variable in variables]

    def directional_derivative(direction, step=2e-3):
        losses = []
        for sign in (1, -1):
            for variable, value, part in zip(
                variables, values, direction, strict=True
            ):
                variable.assign(value + sign * step * part)
            losses.append(total_loss())
        return (losses[0] - losses[1]) / (2 * step)

    # Along the gradient of all variables, and of the largest three alone.
    norms = [np.linalg.norm(gradient) for gradient in gradients]
    largest = np.argsort(norms)[-3:]
    for chosen in (range(len(norms)), *[[index] for index in largest]):
        length = np.sqrt(sum(norms[index] ** 2 for index in chosen))
        direction = [
            gradient / length if index in chosen else 0 * gradient
            for index, gradient in enumerate(gradients)
        ]
        assert directional_derivative(direction) == pytest.approx(
            length, rel=1e-3
        )


@pytest.mark.slow
@pytest.mark.optimized
@pytest.mark.parametrize("mode", ["compiled", "xla", "eager"])
def test_both_weights_zero_and_density_one_is_plain_fit(mode):
    if mode != "compiled" and keras.backend.backend() != "tensorflow":
        pytest.skip("only TensorFlow has three ways to run a step")
    x, labels = tiny_inputs(40)

    def train(wrap):
        keras.utils.set_random_seed(5)
        bert = tiny_bert(preprocessor=False)
        model, optimizer = bert, keras.optimizers.AdamW(1e-3)
        if wrap:
            optimizer = keras_uegr.SaliencyMaskedOptimizer(optimizer, density=1)
            model = keras_uegr.UEGRModel(
                bert, adversarial_weight=0, consistency_weight=0
            )
        model.compile(
            optimizer=optimizer,
            loss=logits_loss(),
            metrics=[],
            jit_compile=True if mode == "xla" else "auto",
            run_eagerly=mode == "eager",
        )
        keras.utils.set_random_seed(6)
        keras.Model.fit(
            model, x, labels, batch_size=4, shuffle=False, verbose=0
        )
        return [ops.convert_to_numpy(weight) for weight in bert.weights]

    tolerance = 1e-6 if keras.backend.backend() == "torch" else 0
    for plain, ours in zip(train(False), train(True), strict=True):
        np.testing.assert_allclose(ours, plain, rtol=0, atol=tolerance)


class RecordingPolicy(keras_uegr.DropoutPolicy):
    """Counts how often it is traced."""

    def __init__(self):
        self.inner = keras_uegr.UniformPolicy()
        self.traces = 0

    def fractions(self, signals):
        self.traces += 1
        return self.inner.fractions(signals)


class Rates(keras.callbacks.Callback):
    """The metric `dropout_rate` of each single step."""

    def on_train_begin(self, logs=None):
        self.values = []

    def on_train_batch_begin(self, batch, logs=None):
        self.model.reset_metrics()

    def on_train_batch_end(self, batch, logs=None):
        self.values.append(float(logs["dropout_rate"]))


@pytest.mark.parametrize(("examples", "traces"), [(80, 1), (78, 2)])
def test_rates_change_while_the_step_is_traced_once(examples, traces):
    token_ids, labels = token_batch(examples)
    policy, rates = RecordingPolicy(), Rates()
    model = keras_uegr.UEGRModel(
        pooled_model(length=7),
        dropout=keras_uegr.AdaptiveDropout(0.1, 0.6, policy),
    )
    # Slots and metrics: creating them in a step would trace it again.
    model.compile("adam", logits_loss(), metrics=["accuracy"])
    model.fit(token_ids, labels, batch_size=4, verbose=0, callbacks=[rates])
    assert len(rates.values) == 20
    assert len(set(rates.values)) == 20
    assert all(0.1 <= rate <= 0.6 for rate in rates.values)
    if keras.backend.backend() == "torch":
        traces = 20
    assert policy.traces <= traces


def test_train_on_batch_traces_the_step_once():
    token_ids, labels = token_batch(4)
    policy = RecordingPolicy()
    model = keras_uegr.UEGRModel(
        pooled_model(length=7),
        dropout=keras_uegr.AdaptiveDropout(0.1, 0.6, policy),
    )
    model.compile("adam", logits_loss(), metrics=["accuracy"])
    for _ in range(2):
        model.train_on_batch(token_ids, labels)
    eager = keras.backend.backend() == "torch"
    assert policy.traces == (2 if eager else 1)


@pytest.mark.parametrize(
    ("perturbation", "gradients"),
    [
        (None, 2),
        (keras_uegr.GaussianNoise(), 2),
        (keras_uegr.FastGradient(), 2),
        (keras_uegr.ProjectedGradient(steps=3), 4),
        (keras_uegr.ProjectedGradient(steps=3, random_start=True), 5),
    ],
    ids=["none", "noise", "fast", "projected", "random start"],
)
def test_a_step_takes_so_many_gradients(perturbation, gradients, monkeypatch):
    token_ids, labels = token_batch()
    model = keras_uegr.UEGRModel(pooled_model(rate=0.1), perturbation)
    model.compile("sgd", logits_loss(), run_eagerly=True)
    taken, differentiate = [], type(model).differentiate

    def counted(self, *args, **kwargs):
        taken.append(args)
        return differentiate(self, *args, **kwargs)

    model.train_on_batch(token_ids, labels)
    monkeypatch.setattr(type(model), "differentiate", counted)
    model.train_on_batch(token_ids, labels)
    assert len(taken) == gradients


@pytest.mark.skipif(
    keras.backend.backend() != "tensorflow",
    reason="only TensorFlow has sparse gradients",
)
@pytest.mark.parametrize("masked", [False, True])
def test_rows_are_summed_before_the_optimizer_squares_them(masked):
    _, labels = token_batch()
    inner = pooled_model(parameters=reference.random_parameters(20, 5, 4, 3))
    model = keras_uegr.UEGRModel(inner, dropout=None)
    optimizer = keras.optimizers.Adam(0.01)
    if masked:
        optimizer = keras_uegr.SaliencyMaskedOptimizer(optimizer, density=0.5)
    model.compile(optimizer, logits_loss())
    table = inner.weights[0]
    before = ops.convert_to_numpy(table)
    # Seven times the same token: Adam's first step is the learning rate.
    model.train_on_batch(np.full((6, 7), 3), labels)
    moved = np.abs(ops.convert_to_numpy(table) - before)
    assert moved[3].max() == pytest.approx(0.01, rel=1e-3)


@pytest.mark.skipif(
    keras.backend.backend() == "torch", reason="Keras fails before the loss"
)
@pytest.mark.parametrize("kind", [list, tuple])
def test_numbers_are_no_labels_of_a_batch(kind):
    token_ids, labels = token_batch(4)
    model = keras_uegr.UEGRModel(pooled_model(length=7))
    model.compile("adam", logits_loss())
    with pytest.raises(ValueError, match="different structures"):
        model.train_on_batch(token_ids, kind(labels.tolist()))


class PolicyThatFailsOnce(keras_uegr.DropoutPolicy):
    """Raises an error when it is asked first."""

    def __init__(self):
        self.inner = keras_uegr.UniformPolicy()
        self.failed = False

    def fractions(self, signals):
        if not self.failed:
            self.failed = True
            raise RuntimeError("not this time")
        return self.inner.fractions(signals)


def test_training_goes_on_after_a_first_step_that_failed():
    token_ids, labels = token_batch()
    model = keras_uegr.UEGRModel(
        pooled_model(length=7),
        dropout=keras_uegr.AdaptiveDropout(0.1, 0.6, PolicyThatFailsOnce()),
    )
    model.compile("adam", logits_loss())
    before = [ops.convert_to_numpy(w) for w in model.trainable_variables]
    with pytest.raises(RuntimeError, match="not this time"):
        model.fit(token_ids, labels, verbose=0)
    model.fit(token_ids, labels, verbose=0)
    for old, new in zip(before, model.trainable_variables, strict=True):
        assert not np.array_equal(old, ops.convert_to_numpy(new))


def train_once(seed, texts=24):
    keras.utils.set_random_seed(seed)
    token_ids, labels = token_batch(texts)
    inner = pooled_model(rate=0.2)
    model = keras_uegr.UEGRModel(
        inner,
        perturbation=keras_uegr.ProjectedGradient(random_start=True),
        dropout=keras_uegr.AdaptiveDropout(0.1, 0.5, "uniform"),
    )
    model.compile("sgd", logits_loss())
    model.fit(token_ids, labels, batch_size=8, epochs=2, verbose=0)
    return np.concatenate(
        [ops.convert_to_numpy(weight).ravel() for weight in inner.weights]
    )


def test_same_seed_same_result_other_seed_another():
    first, second, other = train_once(1), train_once(1), train_once(2)
    np.testing.assert_array_equal(first, second)
    assert np.abs(first - other).max() > 1e-3


def test_warmup_starts_as_plain_training():
    token_ids, labels = token_batch()

    def first_two_steps(**arguments):
        keras.utils.set_random_seed(4)
        inner = pooled_model()
        model = keras_uegr.UEGRModel(inner, dropout=None, **arguments)
        model.compile(keras.optimizers.SGD(0.5), logits_loss())
        kernels = []
        for _ in range(2):
            model.train_on_batch(token_ids, labels)
            kernels.append(ops.convert_to_numpy(inner.weights[1]))
        return kernels

    plain = first_two_steps(adversarial_weight=0, consistency_weight=0)
    warm = first_two_steps(warmup_steps=4)
    cold = first_two_steps()
    np.testing.assert_allclose(warm[0], plain[0], atol=1e-6)
    assert np.abs(cold[0] - plain[0]).max() > 1e-3
    assert np.abs(warm[1] - plain[1]).max() > 1e-4


@pytest.mark.parametrize("name", ["adversarial_weight", "consistency_weight"])
def test_each_weight_changes_the_total_as_documented(name):
    token_ids, labels = token_batch()
    weights = {"adversarial_weight": 2.0, "consistency_weight": 3.0}
    weights = {key: weights[key] * (key == name) for key in weights}
    model = keras_uegr.UEGRModel(
        pooled_model(parameters=reference.random_parameters(20, 5, 4, 3)),
        dropout=keras_uegr.AdaptiveDropout(0.2, 0.6),
        **weights,
    )
    model.compile("sgd", logits_loss())
    logs = model.train_on_batch(token_ids, labels, return_dict=True)
    term = {
        "adversarial_weight": "adversarial_loss",
        "consistency_weight": "js_divergence",
    }[name]
    assert logs[term] > 1e-4
    assert logs["loss"] == pytest.approx(
        logs["clean_loss"] + weights[name] * logs[term], rel=1e-5
    )


def test_warns_about_a_model_without_trainable_weights():
    token_ids, labels = token_batch()
    inner = pooled_model()
    inner.trainable = False
    model = keras_uegr.UEGRModel(inner)
    model.compile("sgd", logits_loss())
    with pytest.warns(UserWarning, match="not have any trainable weights"):
        model.train_on_batch(token_ids, labels)


def select_by_sub_models(
    density, inner="sgd", saliency="gradient", warmup_steps=0, **arguments
):
    """One step of a model whose sub-models only select; its weights, logs."""
    model = keras_uegr.UEGRModel(
        pooled_model(parameters=reference.random_parameters(20, 5, 4, 3)),
        perturbation=keras_uegr.FastGradient(0.3),
        dropout=keras_uegr.AdaptiveDropout(0.2, 0.6),
        sub_models_select=True,
        warmup_steps=warmup_steps,
        **arguments,
    )
    optimizer = keras_uegr.SaliencyMaskedOptimizer(
        inner, density=density, saliency=saliency, refresh_steps=None
    )
    model.compile(optimizer, logits_loss())
    logs = model.train_on_batch(*token_batch(), return_dict=True)
    return [ops.convert_to_numpy(x) for x in model.model.weights], logs


@pytest.mark.parametrize("radius", [0.0, 0.1])
def test_sub_models_that_only_select_are_not_trained_on(radius):
    found, logs = select_by_sub_models(1.0, sharpness_radius=radius)
    model = keras_uegr.UEGRModel(
        pooled_model(parameters=reference.random_parameters(20, 5, 4, 3)),
        adversarial_weight=0,
        consistency_weight=0,
        sharpness_radius=radius,
    )
    model.compile("sgd", logits_loss())
    model.train_on_batch(*token_batch())
    for weight, plain in zip(found, model.model.weights, strict=True):
        np.testing.assert_allclose(
            weight, ops.convert_to_numpy(plain), rtol=0, atol=1e-6
        )
    assert logs["js_divergence"] > 1e-4
    assert logs["adversarial_loss"] > 1e-4
    assert logs["loss"] == pytest.approx(logs["clean_loss"], rel=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize(
    "arguments", [{}, {"skip_nonfinite": True}, {"sharpness_radius": 0.1}]
)
def test_sub_models_select_the_share_that_is_updated(arguments):
    start = reference.random_parameters(20, 5, 4, 3)
    weights, logs = select_by_sub_models(0.25, inner="adam", **arguments)
    changed = [
        (weight != value.astype("float32"))
        for weight, value in zip(weights, start.values(), strict=True)
    ]
    assert changed[1].mean() == 0.25
    assert changed[3].mean() == 0.25
    fraction = sum(x.sum() for x in changed) / sum(x.size for x in changed)
    assert logs["updated_fraction"] == pytest.approx(fraction, abs=1e-6)


@pytest.mark.parametrize("saliency", ["gradient", "inverse_gradient"])
def test_sub_models_select_from_the_first_step_of_a_warm_up_on(saliency):
    _, logs = select_by_sub_models(0.25, saliency=saliency, warmup_steps=4)
    _, full = select_by_sub_models(0.25, saliency=saliency)
    assert logs["perturbation_norm"] == 0
    # Dropped units have no gradient, and scores of zero are never selected.
    assert logs["updated_fraction"] == pytest.approx(
        full["updated_fraction"], abs=0.02
    )


def test_sub_models_select_under_loss_scaling():
    keras.config.set_dtype_policy("mixed_float16")
    weights, logs = select_by_sub_models(0.25, inner="adam")
    assert all(np.isfinite(weight).all() for weight in weights)
    assert 0.1 < logs["updated_fraction"] < 0.4


@pytest.mark.parametrize("policy", ["float32", "mixed_float16"])
def test_a_step_that_is_left_out_selects_nothing(policy):
    keras.config.set_dtype_policy(policy)
    model = keras_uegr.UEGRModel(
        pooled_model(outputs=keras.layers.Dense(1)),
        perturbation=None,
        # A loss that isn't finite in the clean pass alone.
        adversarial_weight=0,
        sub_models_select=True,
        skip_nonfinite=policy == "float32",
        warmup_steps=0,
    )
    optimizer = keras_uegr.SaliencyMaskedOptimizer(
        "adam", density=0.3, saliency="fisher", refresh_steps=None
    )
    model.compile(optimizer, "mean_squared_error")
    token_ids, labels = token_batch()
    labels = labels[:, None].astype("float32")

    def state():
        return [np.array(ops.convert_to_numpy(x)) for x in optimizer.variables]

    model.train_on_batch(token_ids, labels)
    before = state()
    labels[0] = np.nan
    model.train_on_batch(token_ids, labels)
    for old, new in zip(before, state(), strict=True):
        np.testing.assert_array_equal(new, old)
    labels[0] = 0.0
    model.train_on_batch(token_ids, labels)
    assert any(map(np.any, map(np.not_equal, before, state())))


def test_the_scales_of_float8_are_those_of_the_larger_pass():
    """What Keras keeps of float8 isn't a gradient, and isn't added up."""
    histories = []
    for is_plain in (True, False):
        keras.utils.set_random_seed(0)
        token_ids = keras.Input((None,), dtype="int32")
        hidden = keras.layers.Embedding(20, 4)(token_ids)
        hidden = keras.layers.GlobalAveragePooling1D()(hidden)
        head = keras.layers.Dense(3)
        outputs = head(keras.layers.Dropout(0.0)(hidden))
        model = keras.Model(token_ids, outputs)
        head.quantize("float8")
        if not is_plain:
            model = keras_uegr.UEGRModel(
                model,
                perturbation=None,
                dropout=keras_uegr.AdaptiveDropout(0.0, 0.0),
                warmup_steps=0,
            )
        model.compile(keras.optimizers.SGD(0.0), logits_loss())
        model.train_on_batch(*token_batch())
        histories.append(
            [
                ops.convert_to_numpy(variable)
                for variable in head.variables
                if "history" in variable.name
            ]
        )
    plain, unified = histories
    assert len(plain) == 3
    for expected, found in zip(plain, unified, strict=True):
        assert expected.max() > 0
        np.testing.assert_allclose(found, expected, rtol=1e-5)


def normalized_model():
    """A classifier with a `BatchNormalization` that moves fast."""
    keras.utils.set_random_seed(0)
    token_ids = keras.Input((None,), dtype="int32")
    hidden = keras.layers.Embedding(20, 4)(token_ids)
    hidden = keras.layers.GlobalAveragePooling1D()(hidden)
    hidden = keras.layers.BatchNormalization(momentum=0.5)(hidden)
    return keras.Model(token_ids, keras.layers.Dense(3)(hidden))


def moved_statistics(model, inner):
    """The running mean and variance of `inner` after a step of `model`."""
    model.compile(keras.optimizers.SGD(0.1), logits_loss())
    model.train_on_batch(*token_batch())
    weights = inner.layers[-2].non_trainable_weights
    return [ops.convert_to_numpy(weight) for weight in weights]


def test_running_means_move_once_under_sharpness():
    """And by the batch as the weights see it, not the moved ones."""
    moved = []
    for sharpness_radius in (0.0, 0.5):
        inner = normalized_model()
        model = keras_uegr.UEGRModel(
            inner,
            adversarial_weight=0.0,
            consistency_weight=0.0,
            sharpness_radius=sharpness_radius,
        )
        moved.append(moved_statistics(model, inner))
    assert len(moved[0]) == 2
    for once, found in zip(*moved, strict=True):
        np.testing.assert_allclose(found, once, rtol=1e-6)


TRAINED_ON_STEPS = {
    "perturbation": keras_uegr.ProjectedGradient(steps=2, train_on_steps=True),
    "sub_models": 1,
    "token_share": 1,
    "clean_weight": 0,
    "consistency_weight": 0,
}


@pytest.mark.parametrize(
    "arguments",
    [{}, TRAINED_ON_STEPS, {"sharpness_radius": 0.5, "skip_nonfinite": True}],
    ids=["sub_models", "train_on_steps", "sharpness"],
)
def test_running_means_are_those_of_the_clean_pass(arguments):
    plain, inner = normalized_model(), normalized_model()
    model = keras_uegr.UEGRModel(inner, dropout=None, **arguments)
    expected = moved_statistics(plain, plain)
    found = moved_statistics(model, inner)
    for start, value, other in zip((0, 1), expected, found, strict=True):
        assert np.abs(value - start).max() > 1e-3
        np.testing.assert_allclose(other, value, rtol=1e-6)


class Counting(keras.layers.Dense):
    """Tells in its own metric how often it was called, and by how much."""

    def __init__(self, units):
        super().__init__(units)
        self.calls = keras.metrics.Sum(name="calls")
        self.size = keras.metrics.Mean(name="size")

    def call(self, inputs):
        self.calls.update_state(1.0)
        self.size.update_state(ops.abs(inputs))
        return super().call(inputs)


@pytest.mark.parametrize(
    "arguments",
    [{}, TRAINED_ON_STEPS, {"sharpness_radius": 0.5, "skip_nonfinite": True}],
    ids=["sub_models", "train_on_steps", "sharpness"],
)
def test_metrics_of_layers_are_those_of_the_clean_pass(arguments):
    x, y = token_batch()
    parameters = reference.random_parameters(20, 5, 4, 3)
    inner = pooled_model(parameters=parameters, outputs=Counting(3))
    hidden = keras.Model(inner.input, inner.layers[-1].input)
    size = np.abs(hidden.predict(x, verbose=0)).mean()
    # Not compared with plain Keras, which updates no such metric on JAX.
    model = keras_uegr.UEGRModel(inner, dropout=None, **arguments)
    model.compile(keras.optimizers.SGD(0.0), logits_loss())
    logs = model.fit(x, y, batch_size=3, verbose=0).history
    assert logs["calls"] == [2.0]
    assert logs["size"] == pytest.approx([size], rel=1e-5)


def test_seeds_go_on_from_pass_to_pass():
    """What is drawn is no statistic: it isn't put back."""
    dropout = keras.layers.Dropout(0.5, seed=1)
    inner = pooled_model(outputs=lambda x: keras.layers.Dense(3)(dropout(x)))
    model = keras_uegr.UEGRModel(inner, perturbation=None, dropout=None)
    model.compile("sgd", logits_loss())
    draws = []
    for _ in range(2):
        model.train_on_batch(*token_batch())
        (state,) = dropout.non_trainable_variables
        draws.append(int(ops.convert_to_numpy(state)[1]))
    # The clean pass draws once, that of the sub-models once more.
    assert draws[1] - draws[0] == 2
