import warnings

import keras
import numpy as np
import pytest
from keras import ops

import keras_uegr
from keras_uegr import argument_checks, data_checks, objective, training_step
from tests import reference
from tests.backbones import tiny_bert, tiny_inputs, tiny_texts
from tests.pooled_model import pooled_model

TRAINING_METRICS = {
    "clean_loss",
    "adversarial_loss",
    "js_divergence",
    "perturbation_norm",
    "dropout_rate",
    "updated_fraction",
}


def compiled(inner=None, optimizer="sgd", metrics=None, **arguments):
    if inner is None:
        parameters = reference.random_parameters(20, 5, 4, 3)
        inner = pooled_model(parameters=parameters, mask_zero=True)
    model = keras_uegr.UEGRModel(inner, **arguments)
    model.compile(
        optimizer,
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=metrics,
    )
    return model


def token_batch(examples=6, length=7, seed=0):
    rng = np.random.default_rng(seed)
    token_ids = rng.integers(1, 20, (examples, length)).astype("int32")
    return token_ids, rng.integers(0, 3, examples)


def weights_after_a_step(x, y, sample_weight=None, **arguments):
    """The weights after one step at dropout rate 0: nothing is random."""
    model = compiled(
        optimizer=keras.optimizers.SGD(0.5),
        dropout=keras_uegr.AdaptiveDropout(0.0, 0.0),
        token_share=1,
        include_clean=True,
        consistency_weight=4.0,
        **arguments,
    )
    model.train_on_batch(x, y, sample_weight=sample_weight)
    return [ops.convert_to_numpy(weight) for weight in model.model.weights]


def assert_same(first, second):
    for one, other in zip(first, second, strict=True):
        np.testing.assert_allclose(one, other, atol=2e-6)


def test_an_example_of_weight_zero_influences_nothing():
    x, y = token_batch()
    weight = np.array([1.0, 0.0, 1.0, 1.0, 0.0, 1.0])
    other_x, other_y = x.copy(), y.copy()
    other_x[weight == 0] = 3
    other_y[weight == 0] = 2 - other_y[weight == 0]
    first = weights_after_a_step(x, y, weight)
    assert_same(first, weights_after_a_step(other_x, other_y, weight))
    unweighted = weights_after_a_step(x, y)
    assert np.abs(first[0] - unweighted[0]).max() > 1e-3


def test_an_example_of_weight_zero_has_no_part_in_what_is_remembered():
    x, y = token_batch()
    weight = np.array([1.0, 0.0, 1.0, 1.0, 0.0, 1.0])
    other_y = np.where(weight == 0, 2 - y, y)
    remembered = []
    for labels in (y, other_y):
        model = compiled()
        model.train_on_batch(x, labels, sample_weight=weight)
        remembered.append(float(ops.convert_to_numpy(model.state.fraction)))
    assert remembered[0] == pytest.approx(remembered[1], rel=1e-5)
    assert 0 < remembered[0] < 1


@pytest.mark.slow
@pytest.mark.parametrize("norm", ["l2", "linf"])
@pytest.mark.parametrize("per_token", [False, True])
def test_padding_length_influences_nothing(norm, per_token):
    x, y = token_batch()
    perturbation = keras_uegr.FastGradient(0.3, norm, per_token)
    short = weights_after_a_step(x, y, perturbation=perturbation)
    padded = np.pad(x, ((0, 0), (0, 9)))
    long = weights_after_a_step(padded, y, perturbation=perturbation)
    assert_same(short, long)


def test_batch_order_influences_nothing():
    x, y = token_batch()
    order = np.random.default_rng(1).permutation(len(x))
    assert_same(
        weights_after_a_step(x, y), weights_after_a_step(x[order], y[order])
    )


@pytest.mark.slow
@pytest.mark.parametrize("unperturbed", [(), "special"])
def test_padding_and_special_tokens_are_not_perturbed_in_bert(unperturbed):
    x, y = tiny_inputs(4)
    model = compiled(
        tiny_bert(),
        perturbation=keras_uegr.UniformNoise(0.1),
        unperturbed_token_ids=unperturbed,
    )

    def perturb(data):
        batch = objective.Batch(*data)
        _, clean = objective.clean_pass(model, batch, None)
        delta, _ = training_step._perturb(model, batch, clean, None, 1.0)
        return clean.embedded.movable, delta

    data = keras.tree.map_structure(ops.convert_to_tensor, (x, y))
    movable, delta = model.compile_inference(perturb)(data)
    expected = x["padding_mask"].astype(bool)
    if unperturbed:
        expected = expected & (x["token_ids"] != 2) & (x["token_ids"] != 3)
    moved = (ops.convert_to_numpy(delta) != 0).any(axis=-1)
    np.testing.assert_array_equal(moved, expected)
    np.testing.assert_array_equal(
        ops.convert_to_numpy(movable)[..., 0], expected
    )


def test_metrics_of_training_and_of_evaluation():
    x, y = token_batch(16)
    model = compiled(metrics=["accuracy"])
    history = model.fit(
        x, y, batch_size=8, verbose=0, validation_data=(x, y)
    ).history
    assert set(history) == TRAINING_METRICS | {
        "loss",
        "accuracy",
        "val_loss",
        "val_accuracy",
    }
    assert history["updated_fraction"] == [1.0]
    low, high = model.dropout.low, model.dropout.high
    assert low <= history["dropout_rate"][0] <= high
    results = model.evaluate(x, y, verbose=0, return_dict=True)
    assert set(results) == {"loss", "accuracy"}
    assert results["loss"] == pytest.approx(history["val_loss"][0], rel=1e-5)
    predicted = model.predict(x, verbose=0)
    assert results["accuracy"] == pytest.approx(
        (predicted.argmax(axis=1) == y).mean()
    )


def test_perturbation_norm_is_the_radius():
    x, y = token_batch()
    model = compiled(perturbation=keras_uegr.FastGradient(0.25, relative=False))
    logs = model.train_on_batch(x, y, return_dict=True)
    assert logs["perturbation_norm"] == pytest.approx(0.25, rel=1e-5)


class ByPosition(keras_uegr.DropoutPolicy):
    """Fractions that sub-model and place in the batch decide, from 0 to 1."""

    def fractions(self, signals):
        places = ops.arange(6, dtype="float32") / 6
        return ops.stack([0.5 * places, places])


def test_metrics_of_perturbation_and_dropout_weigh_the_examples():
    x, y = token_batch()
    weight = np.array([1.0, 2.0, 0.0, 0.5, 1.0, 0.0])
    model = compiled(
        perturbation=keras_uegr.FastGradient(0.25),
        dropout=keras_uegr.AdaptiveDropout(0.0, 0.8, ByPosition()),
    )
    table = ops.convert_to_numpy(model.model.weights[0])
    logs = model.train_on_batch(x, y, sample_weight=weight, return_dict=True)
    norms = np.linalg.norm(table[x], axis=(1, 2))
    assert logs["perturbation_norm"] == pytest.approx(
        0.25 * np.average(norms, weights=weight), rel=1e-4
    )
    place = np.average(np.arange(6) / 6, weights=weight)
    assert logs["dropout_rate"] == pytest.approx(0.8 * 0.75 * place, rel=1e-4)


class SecondHalf(keras_uegr.DropoutPolicy):
    """Drops in the second half of the batch alone."""

    def fractions(self, signals):
        half = ops.cast(ops.arange(6) >= 3, "float32")
        return ops.stack([half] * signals.sub_models)


@pytest.mark.parametrize("dropped", [False, True])
def test_each_example_drops_at_its_own_rate(dropped):
    x, y = token_batch()
    model = compiled(
        pooled_model(hidden=32),
        perturbation=None,
        dropout=keras_uegr.AdaptiveDropout(0.0, 0.9, SecondHalf()),
    )
    weight = ((np.arange(6) >= 3) == dropped).astype("float32")
    logs = model.train_on_batch(x, y, sample_weight=weight, return_dict=True)
    assert (logs["js_divergence"] > 1e-5) == dropped


def test_the_scheduled_rate_rises_from_step_to_step():
    policy = keras_uegr.ScheduledPolicy(steps=4)
    model = compiled(dropout=keras_uegr.AdaptiveDropout(0.1, 0.5, policy))
    for rate in (0.1, 0.2, 0.3, 0.4, 0.5, 0.5):
        model.reset_metrics()
        logs = model.train_on_batch(*token_batch(), return_dict=True)
        assert logs["dropout_rate"] == pytest.approx(rate, rel=1e-5)


class CountsPasses(keras.layers.Layer):
    """Gives its input on, and counts its calls in a variable."""

    def __init__(self):
        super().__init__()
        self.passes = self.add_weight(
            shape=(), initializer="zeros", dtype="int32", trainable=False
        )

    def call(self, inputs):
        self.passes.assign(self.passes + 1)
        return inputs


@pytest.mark.parametrize(
    "method", ["predict", "predict_on_batch", "evaluate", "test_on_batch"]
)
def test_inference_takes_one_pass_for_each_batch(method):
    counter = CountsPasses()
    model = compiled(
        pooled_model(outputs=lambda x: keras.layers.Dense(3)(counter(x)))
    )
    x, y = token_batch()
    arguments = (x,) if method.startswith("predict") else (x, y)

    def passes():
        before = int(ops.convert_to_numpy(counter.passes))
        getattr(model, method)(*arguments)
        return int(ops.convert_to_numpy(counter.passes)) - before

    passes()  # Keras builds metrics in a pass of its own.
    assert passes() == 1
    # A training step counts once too, as what its other passes count is put
    # back.
    before = int(ops.convert_to_numpy(counter.passes))
    model.train_on_batch(x, y)
    assert int(ops.convert_to_numpy(counter.passes)) - before == 1


def test_inference_is_the_bare_model():
    x, y = token_batch()
    model = compiled()
    before = model.model.predict(x, verbose=0)
    np.testing.assert_array_equal(model.predict(x, verbose=0), before)
    model.fit(x, y, verbose=0)
    np.testing.assert_array_equal(
        model.predict(x, verbose=0), model.model.predict(x, verbose=0)
    )


def test_array_input_is_shuffled_each_epoch():
    x, y = token_batch(32)

    def train(shuffle):
        keras.utils.set_random_seed(0)
        model = compiled(
            optimizer=keras.optimizers.SGD(0.5),
            adversarial_weight=0,
            consistency_weight=0,
        )
        model.fit(x, y, batch_size=4, verbose=0, shuffle=shuffle)
        return ops.convert_to_numpy(model.model.weights[0])

    assert np.abs(train(True) - train(False)).max() > 1e-3


def test_sample_weight_class_weight_and_validation_split():
    x, y = token_batch(20)
    by_sample, by_class = (
        compiled(
            optimizer=keras.optimizers.SGD(0.5),
            dropout=keras_uegr.AdaptiveDropout(0.0, 0.0),
            token_share=1,
        )
        for _ in range(2)
    )
    class_weight = {0: 0.5, 1: 2.0, 2: 1.0}
    options = {"batch_size": 4, "shuffle": False, "verbose": 0}
    by_class.fit(x, y, class_weight=class_weight, **options)
    sample_weight = np.array([class_weight[label] for label in y])
    history = by_sample.fit(
        x, y, sample_weight=sample_weight, validation_split=0.0, **options
    )
    for one, other in zip(by_class.weights, by_sample.weights, strict=True):
        np.testing.assert_allclose(
            ops.convert_to_numpy(one), ops.convert_to_numpy(other), atol=1e-6
        )
    assert "val_loss" not in history.history
    history = by_sample.fit(x, y, validation_split=0.25, **options)
    assert "val_loss" in history.history


@pytest.mark.slow
def test_raw_strings_go_through_fit_evaluate_and_predict():
    texts, labels = tiny_texts(12)
    model = compiled(tiny_bert(), metrics=["accuracy"])
    model.fit(
        texts,
        labels,
        batch_size=6,
        verbose=0,
        validation_data=(texts[:4], labels[:4]),
    )
    assert model.predict([*texts[:3], ""], verbose=0).shape == (4, 2)
    assert set(model.evaluate(texts, labels, verbose=0, return_dict=True)) == {
        "loss",
        "accuracy",
    }


def test_a_preprocessor_that_is_given_goes_before_the_models_own():
    inner, other = tiny_bert(), tiny_bert(sequence_length=5).preprocessor
    model = keras_uegr.UEGRModel(inner, preprocessor=other)
    assert inner.preprocessor is not other
    assert model.preprocessor is other


def test_a_batch_of_one_and_one_of_nothing_but_padding_stay_finite():
    x, y = tiny_inputs(1)
    model = compiled(tiny_bert(preprocessor=False))
    logs = model.train_on_batch(x, y, return_dict=True)
    assert logs["perturbation_norm"] > 0
    assert all(np.isfinite(value) for value in logs.values())
    padding = {name: np.zeros_like(value) for name, value in x.items()}
    model.reset_metrics()
    logs = model.train_on_batch(padding, y, return_dict=True)
    assert logs["perturbation_norm"] == 0
    assert all(np.isfinite(value) for value in logs.values())
    for weight in model.weights:
        assert np.isfinite(ops.convert_to_numpy(weight)).all()


@pytest.mark.parametrize("has_preprocessor", [True, False])
def test_padding_is_what_the_tokenizer_pads_with_if_nothing_else_tells(
    has_preprocessor,
):
    inner = pooled_model(parameters=reference.random_parameters(20, 5, 4, 3))
    preprocessor = tiny_bert().preprocessor if has_preprocessor else None
    model = compiled(
        inner, keras.optimizers.SGD(0.0), preprocessor=preprocessor
    )
    x, y = token_batch()
    norms = []
    for token_ids in (x, np.pad(x, ((0, 0), (0, 3)))):  # it pads with 0
        model.reset_metrics()
        logs = model.train_on_batch(token_ids, y, return_dict=True)
        norms.append(logs["perturbation_norm"])
    assert (norms[0] == pytest.approx(norms[1], rel=1e-5)) == has_preprocessor


@pytest.mark.parametrize(
    "kind", ["sigmoid", "multi_label", "regression", "probabilities"]
)
def test_other_kinds_of_output(kind):
    x, _ = token_batch()
    rng = np.random.default_rng(0)
    layer, loss, y = {
        "sigmoid": (
            keras.layers.Dense(1),
            keras.losses.BinaryCrossentropy(from_logits=True),
            rng.integers(0, 2, (6, 1)),
        ),
        "multi_label": (
            keras.layers.Dense(4, activation="sigmoid"),
            "binary_crossentropy",
            rng.integers(0, 2, (6, 4)),
        ),
        "regression": (keras.layers.Dense(1), "mse", rng.normal(size=(6, 1))),
        "probabilities": (
            keras.layers.Dense(3, activation="softmax"),
            "sparse_categorical_crossentropy",
            rng.integers(0, 3, 6),
        ),
    }[kind]
    model = keras_uegr.UEGRModel(
        pooled_model(outputs=layer),
        dropout=keras_uegr.AdaptiveDropout(0.3, 0.6),
    )
    model.compile("sgd", loss)
    logs = model.train_on_batch(x, y, return_dict=True)
    assert logs["js_divergence"] > 0
    assert logs["loss"] == pytest.approx(
        logs["clean_loss"]
        + logs["adversarial_loss"]
        + model.consistency_weight * logs["js_divergence"],
        rel=1e-4,
    )


def test_token_level_outputs():
    token_ids = keras.Input((None,), dtype="int32")
    x = keras.layers.Embedding(20, 5, mask_zero=True)(token_ids)
    x = keras.layers.Dropout(0.0)(x)
    inner = keras.Model(token_ids, keras.layers.Dense(3)(x))
    model = compiled(inner, dropout=keras_uegr.AdaptiveDropout(0.4, 0.6))
    token_ids, _ = token_batch()
    token_ids[:, 5:] = 0
    labels = np.random.default_rng(0).integers(0, 3, token_ids.shape)
    logs = model.train_on_batch(token_ids, labels, return_dict=True)
    assert logs["js_divergence"] > 0
    assert all(np.isfinite(value) for value in logs.values())


def test_the_wrapped_models_precision_is_carried():
    keras.config.set_dtype_policy("mixed_float16")
    model = compiled(pooled_model())
    assert model.dtype_policy.name == "mixed_float16"
    assert isinstance(model.optimizer, keras.optimizers.LossScaleOptimizer)


@pytest.mark.slow
@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16"])
def test_a_step_in_mixed_precision(policy):
    keras.config.set_dtype_policy(policy)
    model = compiled(
        pooled_model(),
        keras_uegr.SaliencyMaskedOptimizer("adam", density=0.4),
    )
    before = [ops.convert_to_numpy(x).copy() for x in model.model.weights]
    logs = model.train_on_batch(*token_batch(), return_dict=True)
    assert all(np.isfinite(value) for value in logs.values())
    assert 0 < logs["updated_fraction"] < 1
    after = [ops.convert_to_numpy(x) for x in model.model.weights]
    assert all((a != b).any() for a, b in zip(after, before, strict=True))


def test_dropout_layers_that_are_never_called_are_told():
    inner = pooled_model()
    inner.unused = keras.layers.Dropout(0.1, name="unused")
    model = compiled(inner)
    with pytest.warns(UserWarning, match="does not call.*unused"):
        model.train_on_batch(*token_batch())


@pytest.mark.slow
def test_the_head_is_updated_in_full_and_the_backbone_masked():
    x, y = tiny_inputs(4)
    bert = tiny_bert(preprocessor=False)
    model = compiled(
        bert,
        keras_uegr.SaliencyMaskedOptimizer("adam", density=0.3, exact=True),
    )
    head = bert.get_layer("logits").kernel
    query = bert.backbone.transformer_layers[
        0
    ]._self_attention_layer._query_dense.kernel
    before = [ops.convert_to_numpy(weight) for weight in (head, query)]
    logs = model.train_on_batch(x, y, return_dict=True)
    changed = [
        (ops.convert_to_numpy(weight) != value).mean()
        for weight, value in zip((head, query), before, strict=True)
    ]
    assert changed[0] == 1
    assert changed[1] == pytest.approx(0.3, abs=0.02)
    assert 0.1 < logs["updated_fraction"] < 0.6


def test_dropout_none_and_perturbation_none_leave_those_parts_out():
    x, y = token_batch()
    logs = compiled(perturbation=None).train_on_batch(x, y, return_dict=True)
    assert logs["perturbation_norm"] == 0
    assert logs["dropout_rate"] > 0
    logs = compiled(dropout=None).train_on_batch(x, y, return_dict=True)
    assert logs["perturbation_norm"] > 0
    assert logs["dropout_rate"] == 0


def test_parts_that_are_switched_on_later_are_found_then():
    x, y = token_batch()
    model = compiled(dropout=None)
    model.train_on_batch(x, y)
    assert model.dropout_layers == []
    model.dropout = keras_uegr.AdaptiveDropout(0.9, 0.9)
    model.compile("sgd", model.loss)
    logs = model.train_on_batch(x, y, return_dict=True)
    assert [layer.name for layer in model.dropout_layers] == ["dropout"]
    assert logs["js_divergence"] > 1e-3


def test_an_embedding_that_is_needed_later_is_asked_for_then():
    inputs = keras.Input((7,))
    outputs = keras.layers.Dense(3)(keras.layers.Dropout(0.1)(inputs))
    model = compiled(keras.Model(inputs, outputs), perturbation=None)
    x, y = token_batch()
    model.train_on_batch(x.astype("float32"), y)
    model.perturbation = keras_uegr.FastGradient()
    model.compile("sgd", model.loss)
    with pytest.raises(ValueError, match="argument `embedding`"):
        model.train_on_batch(x.astype("float32"), y)


def test_a_model_without_embedding_trains_without_perturbation():
    inputs = keras.Input((7,))
    outputs = keras.layers.Dense(3)(keras.layers.Dropout(0.1)(inputs))
    inner = keras.Model(inputs, outputs)
    with pytest.raises(ValueError, match="argument `embedding`"):
        keras_uegr.UEGRModel(inner)
    x, y = token_batch()
    logs = compiled(inner, perturbation=None).train_on_batch(
        x.astype("float32"), y, return_dict=True
    )
    assert logs["js_divergence"] > 0


def test_an_embedding_that_the_input_does_not_reach_is_told():
    token_ids = keras.Input((None,), dtype="int32")
    used = keras.layers.Embedding(20, 5, name="used")
    pooled = keras.layers.GlobalAveragePooling1D()(used(token_ids))
    outputs = keras.layers.Dense(3)(keras.layers.Dropout(0.1)(pooled))
    inner = keras.Model(token_ids, outputs)
    inner.unused = keras.layers.Embedding(20, 5, name="unused")
    model = compiled(inner, embedding="unused")
    with pytest.raises(ValueError, match="unused was not called"):
        model.train_on_batch(*token_batch())


@pytest.mark.parametrize("rank", [2, 4])
def test_an_embedding_that_is_not_of_tokens_is_told(rank):
    x, y = token_batch()
    shape = {2: (), 4: (7, 2)}[rank]
    inputs = keras.Input(shape, dtype="int32")
    hidden = keras.layers.Embedding(20, 5, name="codes")(inputs)
    hidden = keras.layers.Reshape((-1,))(hidden)
    outputs = keras.layers.Dense(3)(keras.layers.Dropout(0.1)(hidden))
    model = compiled(keras.Model(inputs, outputs))
    x = {2: x[:, 0], 4: np.stack([x, x], axis=-1)}[rank]
    with pytest.raises(ValueError, match=r"`embedding`.*embedding=codes.*\(6,"):
        model.train_on_batch(x, y)


@pytest.mark.skipif(
    keras.backend.backend() != "tensorflow", reason="ragged: TensorFlow only"
)
def test_ragged_batches_are_told():
    import tensorflow as tf

    inputs = keras.Input((None,), dtype="int32", ragged=True)
    hidden = keras.layers.Embedding(20, 5)(inputs)
    hidden = keras.layers.GlobalAveragePooling1D()(hidden)
    model = keras_uegr.UEGRModel(
        keras.Model(inputs, keras.layers.Dense(3)(hidden)), dropout=None
    )
    model.compile(
        "sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    )
    texts = tf.ragged.constant([[1, 2, 3], [4]], dtype="int32")
    with pytest.raises(ValueError, match=r"`to_tensor\(\)`.*RaggedTensor"):
        model.train_on_batch(texts, tf.constant([0, 1]))


def without_way_to_the_loss(kind):
    """A model whose embedding `idle` is called, and has no gradient."""
    token_ids = keras.Input((None,), dtype="int32")
    used = keras.layers.Embedding(20, 5, name="used")(token_ids)
    idle = keras.layers.Embedding(20, 5, name="idle")(token_ids)
    if kind == "stopped":
        used = used + keras.layers.Lambda(ops.stop_gradient)(idle)
    pooled = keras.layers.GlobalAveragePooling1D()(used)
    outputs = [keras.layers.Dense(3)(keras.layers.Dropout(0.1)(pooled))]
    return keras.Model(token_ids, [*outputs, idle][: 1 + (kind == "output")])


@pytest.mark.parametrize("kind", ["output", "stopped"])
@pytest.mark.parametrize(
    "perturbation",
    [
        keras_uegr.FastGradient(),
        keras_uegr.ProjectedGradient(steps=2, random_start=True),
    ],
    ids=["fast", "projected"],
)
def test_an_embedding_without_a_way_to_the_loss_is_told(kind, perturbation):
    x, y = token_batch()
    model = keras_uegr.UEGRModel(
        without_way_to_the_loss(kind), perturbation, embedding="idle"
    )
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile("sgd", [loss, None] if kind == "output" else loss)
    labels = [y] if kind == "output" else y
    message = "does not depend on.* idle.*`embedding`.*embedding=idle"
    with pytest.raises(ValueError, match=message):
        model.train_on_batch(x, labels)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"sub_models": 0}, "`sub_models` must be a positive.*sub_models=0"),
        ({"sub_models": 1.5}, "`sub_models` must be.*1.5"),
        ({"sub_models": 1}, "`sub_models=1`.*always 0"),
        ({"token_share": 0}, "`token_share` must be.*token_share=0"),
        ({"token_share": 1.5}, "`token_share` must be.*1.5"),
        ({"token_share": "half"}, "`token_share` must be.*half"),
        ({"adversarial_weight": -1}, "`adversarial_weight` must be.*-1"),
        ({"consistency_weight": float("nan")}, "`consistency_weight`.*nan"),
        ({"warmup_steps": -1}, "`warmup_steps` must be.*-1"),
        ({"clean_weight": -1}, "`clean_weight` must be.*-1"),
        ({"sharpness_radius": -0.1}, "`sharpness_radius` must be.*-0.1"),
        ({"divergence": "kl"}, "`divergence` must be one of.*divergence=kl"),
        (
            {
                "clean_weight": 0,
                "adversarial_weight": 0,
                "consistency_weight": 0,
            },
            "At least one of `clean_weight`.*must be positive",
        ),
        ({"output_kind": "tokens"}, "`output_kind` must be one of.*tokens"),
        ({"perturbation": "pgd"}, "`perturbation` must be.*pgd"),
        ({"dropout": 0.1}, "`dropout` must be.*0.1"),
        ({"embedding": "nowhere"}, "`embedding` must name.*nowhere"),
        ({"dropout_layers": ["nowhere"]}, "`dropout_layers` must.*nowhere"),
        ({"unperturbed_token_ids": "special"}, "needs a preprocessor"),
        ({"unperturbed_token_ids": "specials"}, "list of integers.*specials"),
        ({"unperturbed_token_ids": 3}, "list of integers.*=3"),
        ({"unperturbed_token_ids": np.array([0.5])}, "list of integers.*0.5"),
        ({"unperturbed_token_ids": np.array(3)}, "list of integers.*=3"),
        ({"include_clean": "no"}, "`include_clean` must be `True` or.*='no'"),
        ({"sub_models_select": 1}, "`sub_models_select` must be.*=1"),
        ({"skip_nonfinite": "False"}, "`skip_nonfinite` must.*='False'"),
        ({"preprocessor": 3}, "`preprocessor` must be.*callable.*=3"),
        ({"dropout_layers": []}, "at least one layer"),
        ({"dropout_layers": [3]}, "given as `keras.layers.Layer`.*3"),
        ({"dropout_layers": "nowhere"}, "`dropout_layers` must.*nowhere"),
        (
            {
                "perturbation": keras_uegr.ProjectedGradient(
                    train_on_steps=True
                ),
                "dropout": None,
                "consistency_weight": 0,
            },
            "a single model is trained.*sub_models=2",
        ),
        (
            {
                "perturbation": keras_uegr.ProjectedGradient(
                    train_on_steps=True
                ),
                "sub_models": 1,
                "consistency_weight": 0,
            },
            "a single model is trained.*dropout=<",
        ),
        (
            {
                "perturbation": keras_uegr.ProjectedGradient(
                    train_on_steps=True
                ),
                "dropout": None,
                "sub_models": 1,
                "token_share": 0.5,
                "consistency_weight": 0,
            },
            "a single model is trained.*token_share=0.5",
        ),
        (
            {
                "dropout": keras_uegr.AdaptiveDropout(policy="divergence"),
                "sub_models": 1,
                "consistency_weight": 0,
            },
            'policy "divergence".*always 0.*sub_models=1',
        ),
        (
            {"dropout": None, "dropout_layers": ["absent"]},
            "`dropout_layers` must name layers.*absent, the name of 0 layers",
        ),
        (
            {"dropout": None, "dropout_layers": []},
            "`dropout_layers` must name at least one layer",
        ),
        (
            {
                "adversarial_weight": 0,
                "consistency_weight": 0,
                "embedding": "absent",
            },
            "`embedding` must name layers.*absent, the name of 0 layers",
        ),
    ],
)
def test_wrong_arguments_are_refused_at_construction(arguments, message):
    with pytest.raises(ValueError, match=message):
        keras_uegr.UEGRModel(pooled_model(), **arguments)


def test_numpy_arguments_are_those_of_python():
    model = keras_uegr.UEGRModel(
        pooled_model(),
        include_clean=np.True_,
        skip_nonfinite=np.False_,
        unperturbed_token_ids=np.array([3, 9]),
    )
    assert model.unperturbed_token_ids == (3, 9)
    json = keras.saving.serialize_keras_object(model)
    loaded = keras.saving.deserialize_keras_object(json)
    assert loaded.include_clean
    assert loaded.unperturbed_token_ids == (3, 9)


@pytest.mark.parametrize(
    ("settings", "arguments", "message"),
    [
        ({"clean_weight": 0}, {}, "`clean_weight` must be positive.*=0"),
        (
            {"adversarial_weight": 0, "consistency_weight": 0},
            {},
            "must be positive.*adversarial_weight=0, consistency_weight=0",
        ),
        (
            {"perturbation": keras_uegr.ProjectedGradient(train_on_steps=True)},
            {},
            "`train_on_steps` must be `False`",
        ),
        (
            {},
            {"refresh_steps": 1},
            "of `refresh_steps=None`.*optimizer=saliency",
        ),
        (
            {},
            {"gradient_accumulation_steps": 2},
            "`gradient_accumulation_steps` must be `None`.*steps=2",
        ),
    ],
)
def test_what_sub_models_need_to_select_is_told(settings, arguments, message):
    optimizer = keras_uegr.SaliencyMaskedOptimizer(
        "sgd", **{"refresh_steps": None, **arguments}
    )
    with pytest.raises(ValueError, match=message):
        compiled(optimizer=optimizer, sub_models_select=True, **settings)
    with pytest.raises(ValueError, match="Received: optimizer=sgd"):
        compiled(optimizer="sgd", sub_models_select=True)


@pytest.mark.parametrize("refresh_steps", [2, None])
def test_selections_that_last_are_refused_with_replicas(refresh_steps):
    optimizer = keras_uegr.SaliencyMaskedOptimizer(
        "sgd", refresh_steps=refresh_steps
    )
    message = f"`refresh_steps` must be 1.*steps={refresh_steps}, 2 replicas"
    with pytest.raises(ValueError, match=message):
        argument_checks.check_replicas(2, optimizer, skip_nonfinite=False)
    argument_checks.check_replicas(1, optimizer, skip_nonfinite=False)


def test_what_is_not_a_model_is_refused():
    with pytest.raises(TypeError, match=r"must be a `keras.Model`.*Dense"):
        keras_uegr.UEGRModel(keras.layers.Dense(3))


@pytest.mark.parametrize("name", ["compute_loss", "train_step"])
def test_steps_of_the_wrapped_models_own_are_told(name):
    inner = pooled_model()
    own = type("Own", (keras.Model,), {name: lambda self, *args: 0.0})
    with pytest.warns(UserWarning, match=rf"of the wrapped model: \['{name}'"):
        keras_uegr.UEGRModel(own(inner.input, inner.output))


def test_an_uncompiled_model_is_refused():
    with pytest.raises(ValueError, match="compile"):
        keras_uegr.UEGRModel(pooled_model()).fit(*token_batch(), verbose=0)


@pytest.mark.parametrize("label", [-1, 3])
@pytest.mark.parametrize(
    "loss",
    [
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        keras.losses.SparseCategoricalCrossentropy(name="ce"),
        keras.losses.sparse_categorical_crossentropy,
        "sparse_categorical_crossentropy",
        "SparseCategoricalCrossentropy",
        keras.losses.CategoricalGeneralizedCrossEntropy(),
    ],
    ids=[
        *("object", "renamed", "function", "name", "name_of_class"),
        "generalized",
    ],
)
def test_labels_out_of_range_are_refused(loss, label):
    x, y = token_batch()
    y[2] = label
    model = keras_uegr.UEGRModel(pooled_model())
    model.compile("sgd", loss)
    for labels in (y, list(y), ops.convert_to_tensor(y)):
        with pytest.raises(ValueError, match=f"from 0 to 2.*{label}"):
            model.fit(x, labels, verbose=0)


def test_labels_are_in_the_range_of_the_axis_of_the_loss():
    x = keras.Input((None,), dtype="int32")
    hidden = keras.layers.Embedding(20, 3)(x)
    model = keras.Model(x, ops.transpose(hidden[:, :2], (0, 2, 1)))
    loss = keras.losses.SparseCategoricalCrossentropy(axis=1)
    data_checks.check_labels(loss, [[0, 2]], model)
    with pytest.raises(ValueError, match=r"from 0 to 2.*from 0 to 3"):
        data_checks.check_labels(loss, [[0, 3]], model)


def test_labels_of_another_loss_may_be_any_numbers():
    x, y = token_batch()
    y = 5.0 + 3 * y[:, None]
    model = keras_uegr.UEGRModel(
        pooled_model(classes=1), output_kind="regression"
    )
    loss = keras.losses.MeanSquaredError(name="sparse_categorical_crossentropy")
    model.compile("sgd", loss)
    model.fit(x, y, verbose=0)


class Batches(keras.utils.PyDataset):
    """Batches of two, each of which counts how often it was asked for."""

    def __init__(self, x, y):
        super().__init__()
        self.x, self.y, self.asked = x, y, []

    def __len__(self):
        return len(self.x) // 2

    def __getitem__(self, index):
        self.asked.append(index)
        rows = slice(2 * index, 2 * index + 2)
        return self.x[rows], self.y[rows]


@pytest.mark.skipif(
    keras.backend.backend() != "jax",
    reason="the other backends' cross-entropy raises an error itself",
)
@pytest.mark.parametrize("kind", ["tf_data", "py_dataset", "generator"])
def test_labels_out_of_range_of_the_first_batch_are_refused(kind):
    import tensorflow as tf

    x, y = token_batch()

    def data(labels):
        if kind == "tf_data":
            return tf.data.Dataset.from_tensor_slices((x, labels)).batch(2)
        batches = Batches(x, labels)
        if kind == "py_dataset":
            return batches
        return (batches[at] for at in range(3))

    model = compiled(warmup_steps=0)
    before = model.get_weights()
    for _ in range(2):
        with pytest.raises(ValueError, match="from 0 to 2.*labels from"):
            model.fit(data(y + 3), verbose=0)
    # Keras had emptied the variables.
    for old, new in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)
    model.fit(data(y), steps_per_epoch=3, verbose=0)
    # The first batch was trained on like the others.
    assert int(model.optimizer.iterations) == 3
    with pytest.raises(ValueError, match="from 0 to 2.*labels from"):
        model.fit(data(y + 3), verbose=0)


@pytest.mark.skipif(
    keras.backend.backend() != "jax",
    reason="the other backends' cross-entropy raises an error itself",
)
@pytest.mark.parametrize(("steps_per_execution", "trained"), [(1, 3), (2, 2)])
def test_labels_out_of_range_of_a_later_batch_are_refused(
    steps_per_execution, trained
):
    x, y = token_batch(10)
    y[7] = 3
    model = keras_uegr.UEGRModel(pooled_model(), warmup_steps=0)
    model.compile(
        "sgd",
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        steps_per_execution=steps_per_execution,
    )
    with pytest.raises(ValueError, match="from 0 to 2.*labels from . to 3"):
        model.fit(Batches(x, y), shuffle=False, verbose=0)
    # Up to there it was trained, and holds its variables.
    assert int(model.optimizer.iterations) == trained
    assert np.isfinite(np.concatenate(model.get_weights(), axis=None)).all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda x, y: (x, y + 1), "from 0 to 2.*labels from"),
        (lambda x, y: [x, list(y + 1)], "from 0 to 2.*labels from"),
        (lambda x, y: (x[:0], y[:0]), "`x` must hold at least one example"),
        (
            lambda x, y: ({"token_ids": x}, y[:4]),
            r"same number of examples.*'x': \[6\], 'y': \[4\]",
        ),
        (
            lambda x, y: (x, y, np.ones(5)),
            r"same number of examples.*'sample_weight': \[5\]",
        ),
        (
            lambda x, y: (x, np.array(list("abcabc"))),
            r"`y` must be numbers.*Received: y=array\(\['a'",
        ),
        (lambda x, y: x, "`y` must be given.*`validation_data` is a tuple"),
        (lambda x, y: (x,), "`y` must be given.*`validation_data` is a tuple"),
    ],
    ids=[
        *("labels", "list", "nothing", "lengths", "weights", "strings"),
        *("no labels", "no labels in a tuple"),
    ],
)
def test_validation_data_are_checked_before_training(change, message):
    x, y = token_batch()
    model = compiled()
    with pytest.raises(ValueError, match=message):
        model.fit(x, y, validation_data=change(x, y), verbose=0)
    assert int(model.optimizer.iterations) == 0


@pytest.mark.parametrize(
    "method", ["fit", "evaluate", "train_on_batch", "test_on_batch"]
)
def test_labels_that_are_missing_are_told(method):
    x, _ = token_batch()
    message = r"`y` must be given.*Received: y=None, with loss=<Loss"
    with pytest.raises(ValueError, match=message):
        getattr(compiled(), method)(x)


def test_labels_that_are_strings_are_refused():
    x, _ = token_batch()
    model = keras_uegr.UEGRModel(pooled_model())
    model.compile("sgd", "categorical_crossentropy")
    with pytest.raises(ValueError, match="`y` must be numbers"):
        model.fit(x, np.array(list("abcabc")), verbose=0)


@pytest.mark.parametrize(
    "method",
    ["fit", "evaluate", "predict", "train_on_batch", "predict_on_batch"],
)
@pytest.mark.parametrize("kind", ["array", "tensor", "dictionary", "nothing"])
def test_data_without_examples_are_refused(method, kind):
    x, y = token_batch(1)
    data = {
        "array": x[:0],
        "tensor": ops.convert_to_tensor(x[:0]),
        "dictionary": {"token_ids": x[:0]},
        "nothing": [],
    }[kind]
    arguments = (data,) if method.startswith("predict") else (data, y[:0])
    with pytest.raises(ValueError, match="`x` must hold at least one example"):
        getattr(compiled(), method)(*arguments)


@pytest.mark.filterwarnings("ignore:Gradients do not exist")  # as plain Keras
@pytest.mark.parametrize("method", ["fit", "train_on_batch"])
def test_sub_models_without_a_loss_are_refused(method):
    regularized = keras.layers.Dense(3, kernel_regularizer="l2")
    arguments = token_batch()
    model = keras_uegr.UEGRModel(pooled_model(outputs=regularized))
    model.compile("sgd")
    with pytest.raises(ValueError, match=r"compile\(loss=...\).*loss=None"):
        getattr(model, method)(*arguments)
    # What Keras trains then is the regularization.
    plain = keras_uegr.UEGRModel(
        model.model, adversarial_weight=0, consistency_weight=0
    )
    plain.compile("sgd")
    kernel = ops.convert_to_numpy(regularized.kernel)
    getattr(plain, method)(*arguments)
    np.testing.assert_allclose(
        ops.convert_to_numpy(regularized.kernel),
        (1 - 0.01 * 2 * 0.01) * kernel,
        rtol=1e-5,
    )


def test_arguments_by_position_are_those_of_keras():
    x, y = token_batch(8)
    epochs = keras.callbacks.LambdaCallback(
        on_epoch_begin=lambda epoch, logs: seen.append(epoch)
    )
    weight = np.linspace(0.0, 2.0, 8)
    class_weight = {0: 1.0, 1: 0.5, 2: 2.0}
    results = []
    for is_plain in (False, True):
        seen = []
        inner = pooled_model(
            parameters=reference.random_parameters(20, 5, 4, 3)
        )
        model = inner
        if not is_plain:
            model = keras_uegr.UEGRModel(
                inner, adversarial_weight=0, consistency_weight=0
            )
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        model.compile("sgd", loss, 0.5, ["accuracy"], ["accuracy"], True)
        assert model.run_eagerly
        fitted = model.fit(
            *(x, y, 4, 3, 0, [epochs], 0.25, None, False, class_weight),
            *(None, 1, 1),
        )
        assert seen == [1, 2]
        assert fitted.params["steps"] == 1
        results.append(
            [
                fitted.history["val_loss"],
                model.evaluate(x, y, 4, 0, weight, 1),
                model.train_on_batch(x, y, weight, None, True)["loss"],
                model.test_on_batch(x, y, weight, True)["loss"],
                model.predict(x, 4, 0),
            ]
        )
    keras.tree.map_structure(
        lambda ours, plain: np.testing.assert_allclose(ours, plain, rtol=1e-4),
        *results,
    )


def test_a_custom_loss_needs_the_output_kind():
    def own_loss(y_true, y_pred):
        return ops.mean(ops.square(y_pred), axis=-1)

    x, y = token_batch()
    model = keras_uegr.UEGRModel(pooled_model())
    model.compile("sgd", own_loss)
    with pytest.raises(ValueError, match="`output_kind`"):
        model.train_on_batch(x, y)
    for arguments in ({"output_kind": "softmax"}, {"consistency_weight": 0}):
        model = keras_uegr.UEGRModel(pooled_model(), **arguments)
        model.compile("sgd", own_loss)
        model.train_on_batch(x, y)


def test_a_policy_that_returns_the_wrong_shape_is_told():
    class Transposed:
        def fractions(self, signals):
            examples = ops.shape(signals.confidence)[0]
            return ops.ones((examples, signals.sub_models))

    model = compiled(dropout=keras_uegr.AdaptiveDropout(policy=Transposed()))
    with pytest.raises(ValueError, match=r"\(2, 6\).*shape \(6, 2\)"):
        model.train_on_batch(*token_batch())


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: keras_uegr.AdaptiveDropout(policy=keras_uegr.UniformPolicy),
            "`policy` must be one of",
        ),
        (
            lambda: keras_uegr.DivergencePolicy(target=float("inf")),
            "`target` must be.*inf",
        ),
        (
            lambda: keras_uegr.ProjectedGradient(steps="3"),
            "`steps` must be a positive integer.*3",
        ),
        (
            lambda: keras_uegr.ProjectedGradient(steps=None),
            "`steps` must be a positive integer.*None",
        ),
    ],
)
def test_wrong_arguments_of_the_parts_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_an_attack_without_embedding_or_perturbation_is_refused():
    token_ids = keras.Input((None,), dtype="int32")
    x = keras.layers.Embedding(20, 5)(token_ids)
    x = keras.layers.Add()([x, keras.layers.Embedding(20, 5)(token_ids)])
    x = keras.layers.Dropout(0.1)(keras.layers.GlobalAveragePooling1D()(x))
    inner = keras.Model(token_ids, keras.layers.Dense(3)(x))
    model = compiled(inner, perturbation=None)
    attack = keras_uegr.evaluation.attacked_predictions
    with pytest.raises(ValueError, match="argument `embedding`"):
        attack(model, *token_batch(), keras_uegr.FastGradient())
    with pytest.raises(ValueError, match="`perturbation` must be.*None"):
        attack(compiled(), *token_batch(), None)


def test_a_user_object_is_a_policy():
    class Highest:
        def fractions(self, signals):
            examples = ops.shape(signals.confidence)[0]
            return ops.ones((signals.sub_models, examples))

    model = compiled(dropout=keras_uegr.AdaptiveDropout(0.1, 0.4, Highest()))
    logs = model.train_on_batch(*token_batch(), return_dict=True)
    assert logs["dropout_rate"] == pytest.approx(0.4)


class LateHead(keras.Model):
    """A model whose head has no variables before its first call."""

    def __init__(self):
        super().__init__()
        self.backbone = tiny_bert(preprocessor=False).backbone
        self.head = keras.layers.Dense(3)

    def call(self, inputs):
        return self.head(self.backbone(inputs)["pooled_output"])


@pytest.mark.slow
def test_a_head_that_is_built_late_is_updated_in_full():
    x, y = tiny_inputs(4, 8)
    optimizer = keras_uegr.SaliencyMaskedOptimizer("sgd", density=0.1)
    model = compiled(LateHead(), optimizer, warmup_steps=0)
    model.train_on_batch(x, y)
    kernel = ops.convert_to_numpy(model.model.head.kernel)
    model.train_on_batch(x, y)
    assert (ops.convert_to_numpy(model.model.head.kernel) != kernel).all()


@pytest.mark.slow
def test_batches_of_raw_strings():
    texts, labels = tiny_texts(4)
    labels = np.array(labels)
    model = compiled(tiny_bert(), warmup_steps=0)
    whole = model.evaluate(texts, labels, verbose=0)
    assert model.test_on_batch(texts, labels) == pytest.approx(whole, rel=1e-5)
    np.testing.assert_allclose(
        ops.convert_to_numpy(model.predict_on_batch(texts)),
        model.predict(texts, verbose=0),
        atol=1e-5,
    )
    before = model.model.get_weights()
    model.train_on_batch(texts, labels)
    after = model.model.get_weights()
    assert any((x != y).any() for x, y in zip(before, after, strict=True))


@pytest.mark.slow
def test_losses_and_metrics_of_a_list_of_outputs_go_by_name():
    token_ids = keras.Input((None,), dtype="int32")
    hidden = keras.layers.Embedding(20, 4)(token_ids)
    hidden = keras.layers.GlobalAveragePooling1D()(hidden)
    hidden = keras.layers.Dropout(0.0)(hidden)
    outputs = [
        keras.layers.Dense(1, name="tone")(hidden),
        keras.layers.Dense(3, name="topic")(hidden),
    ]
    inner = keras.Model(token_ids, outputs)
    loss = {
        "tone": "mean_squared_error",
        "topic": keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    }
    metrics = {"tone": ["mean_absolute_error"]}
    x, y = token_batch()
    labels = {"tone": y[:, None].astype("float32"), "topic": y}
    logs = []
    for model in (inner, keras_uegr.UEGRModel(inner, warmup_steps=0)):
        model.compile(keras.optimizers.SGD(0.0), loss, metrics=metrics)
        logs.append(model.fit(x, labels, verbose=0).history)
    plain, unified = logs
    assert set(plain) < set(unified)
    assert unified["tone_mean_absolute_error"] == pytest.approx(
        plain["tone_mean_absolute_error"], rel=1e-5
    )
    assert unified["clean_loss"] == pytest.approx(plain["loss"], rel=1e-5)
    assert unified["js_divergence"][0] > 0


@pytest.mark.parametrize(
    ("rate", "settings", "alike"),
    [
        (0.0, {}, True),
        (0.0, {"sub_models_select": True}, True),
        (0.1, {}, False),
        (0.0, {"dropout": keras_uegr.AdaptiveDropout(0.1, 0.2)}, False),
        (0.0, {"perturbation": keras_uegr.GaussianNoise(0.1)}, False),
        (0.0, {"adversarial_weight": 0, "consistency_weight": 0}, False),
    ],
)
def test_sub_models_that_are_all_alike_are_told(rate, settings, alike):
    arguments = {"perturbation": None, "dropout": None, **settings}
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        keras_uegr.UEGRModel(pooled_model(rate=rate), **arguments)
    told = [x for x in caught if "no layer of the model is" in str(x.message)]
    assert len(told) == alike
    assert all(x.filename == __file__ for x in told)


def test_layers_that_are_not_built_may_draw_yet():
    inner = keras.Sequential([keras.layers.Dense(2)])
    keras_uegr.UEGRModel(inner, perturbation=None, dropout=None)


@pytest.mark.parametrize("bidirectional", [False, True])
def test_states_that_go_from_batch_to_batch_are_told(bidirectional):
    recurrent = keras.layers.GRU(4, stateful=True, name="memory")
    if bidirectional:
        recurrent = keras.layers.Bidirectional(recurrent)
    tokens = keras.Input((6,), batch_size=2, dtype="int32")
    x = recurrent(keras.layers.Embedding(9, 4)(tokens))
    inner = keras.Model(tokens, keras.layers.Dropout(0.1)(x))
    with pytest.raises(ValueError, match=r"`stateful=False`.*_?memory"):
        keras_uegr.UEGRModel(inner)
    # A plain step passes each batch once.
    keras_uegr.UEGRModel(inner, adversarial_weight=0, consistency_weight=0)
