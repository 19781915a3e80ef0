import functools
import re

import keras
import numpy as np
import pytest
from keras import ops

import keras_uegr
from keras_uegr import keras_internals
from keras_uegr.evaluation import (
    attacked_curve,
    attacked_predictions,
    white_box,
)
from tests.backbones import tiny_bert, tiny_gpt2, tiny_texts
from tests.pooled_model import pooled_model

pytestmark = pytest.mark.slow

EXAMPLES = 90


def opinions(seed=0):
    """Tokens, the class of each text being that of most of its tokens."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 3, EXAMPLES)
    own = 1 + 6 * labels[:, None] + rng.integers(0, 6, (EXAMPLES, 7))
    any_token = rng.integers(1, 19, (EXAMPLES, 7))
    token_ids = np.where(rng.random((EXAMPLES, 7)) < 0.6, own, any_token)
    return token_ids.astype("int32"), labels


def compiled(inner, **arguments):
    model = keras_uegr.UEGRModel(
        inner, adversarial_weight=0, consistency_weight=0, **arguments
    )
    model.compile(
        keras.optimizers.Adam(0.05),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    )
    return model


@functools.cache
def trained_weights():
    model = compiled(pooled_model(rate=0.1, length=7))
    model.fit(*opinions(), batch_size=30, epochs=8, verbose=0)
    return model.model.get_weights()


def trained_model():
    weights = trained_weights()
    inner = pooled_model(rate=0.1, length=7)
    inner.set_weights(weights)
    return compiled(inner)


def attack(epsilon, **arguments):
    return keras_uegr.ProjectedGradient(epsilon, steps=4, **arguments)


def accuracy(logits, labels):
    return (logits.argmax(axis=-1) == labels).mean()


@pytest.mark.parametrize(
    "perturbation",
    [
        attack(0.0, random_start=True),
        keras_uegr.FastGradient(0.0, "linf"),
        keras_uegr.GaussianNoise(0.0),
    ],
    ids=lambda perturbation: type(perturbation).__name__,
)
def test_epsilon_zero_is_predict(perturbation):
    model = trained_model()
    token_ids, labels = opinions()
    logits = attacked_predictions(model, token_ids, labels, perturbation, 40)
    expected = model.predict(token_ids, verbose=0)
    np.testing.assert_allclose(logits, expected, atol=1e-6)


def test_an_attack_spares_no_token_that_training_spares():
    model = trained_model()
    token_ids, labels = opinions()
    radius = attack(0.3)
    expected = attacked_predictions(model, token_ids, labels, radius)
    sparing = keras_uegr.UEGRModel(
        model.model,
        unperturbed_token_ids=[int(x) for x in np.unique(token_ids)],
    )
    sparing.compile("sgd", model.loss)
    actual = attacked_predictions(sparing, token_ids, labels, radius)
    np.testing.assert_allclose(actual, expected, atol=1e-5)


@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_a_larger_radius_lowers_the_accuracy(norm):
    model = trained_model()
    token_ids, labels = opinions()
    accuracies = [
        accuracy(
            attacked_predictions(
                model, token_ids, labels, attack(epsilon, norm=norm), 90
            ),
            labels,
        )
        for epsilon in (0.0, 0.2, 0.5, 1.5)
    ]
    assert accuracies[0] > 0.8
    assert (np.diff(accuracies) <= 0).all()
    assert accuracies[-1] < accuracies[0] - 0.3


def test_the_attack_raises_the_loss_more_than_noise_of_its_size():
    model = trained_model()
    token_ids, labels = opinions()
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)

    def loss_under(perturbation):
        logits = attacked_predictions(
            model, token_ids, labels, perturbation, 90
        )
        return float(loss(labels, logits))

    # An entry of noise of this deviation gives an L2 norm of 0.3 `||e||_2`.
    noise = loss_under(keras_uegr.GaussianNoise(0.3))
    assert loss_under(attack(0.3)) > noise + 0.1
    assert loss_under(keras_uegr.FastGradient(0.3)) > noise + 0.1


def test_result_does_not_depend_on_the_size_of_the_batches():
    model = trained_model()
    token_ids, labels = opinions()
    expected = attacked_predictions(model, token_ids, labels, attack(0.3), 90)
    np.testing.assert_allclose(
        attacked_predictions(model, token_ids, labels, attack(0.3), 40),
        expected,
        atol=1e-4,
    )


def test_the_seed_decides_a_random_start():
    model = trained_model()
    token_ids, labels = opinions()
    first, again, other = (
        attacked_predictions(
            model, token_ids, labels, keras_uegr.UniformNoise(0.3), 90, seed
        )
        for seed in (1, 1, 2)
    )
    np.testing.assert_array_equal(first, again)
    assert np.abs(first - other).max() > 1e-3


@pytest.mark.parametrize("random", [attack(0.3, random_start=True)])
def test_each_batch_draws_anew_and_each_radius_the_same(random):
    model = trained_model()
    token_ids, labels = opinions()
    twice = np.concatenate([token_ids[:30], token_ids[:30]])
    labels = np.concatenate([labels[:30], labels[:30]])
    arguments = (model, twice, labels, random)
    one, other = np.split(attacked_predictions(*arguments, 30), 2)
    assert np.abs(one - other).max() > 1e-3
    backwards = attacked_curve(*arguments, [0.5, 0.3], 30)
    curve = attacked_curve(*arguments, iter([0.3, 0.5]), 30)
    assert list(curve) == [0.3, 0.5]
    for epsilon, logits in curve.items():
        np.testing.assert_array_equal(logits, backwards[epsilon])


def test_what_is_not_wrapped_is_told():
    inner = pooled_model()
    inner.compile("sgd", "mse")
    message = r"must be a `keras_uegr.UEGRModel`.*of type Functional"
    with pytest.raises(ValueError, match=message):
        attacked_predictions(inner, *opinions(), attack(0.1))


def test_a_model_without_weights_yet_is_told():
    inner = keras.Sequential(
        [keras.layers.Embedding(20, 5), keras.layers.GlobalMaxPooling1D()]
    )
    with pytest.raises(ValueError, match="must be built first"):
        attacked_predictions(compiled(inner), *opinions(), attack(0.1))


def test_labels_and_examples_that_do_not_fit_are_told():
    model = compiled(pooled_model())
    x, y = opinions()
    for x_given, y_given, batch_size, message in (
        (x, y + 1, 32, "integers from 0 to 2, .* from 1 to 3"),
        (x, -y, 32, "labels from -2 to 0"),
        (x, y[:8], 8, r"\[90\] examples and y of shape \(8,\)"),
        (x, {"a": y}, 8, r"y of shape \(\)"),
        (x, [y, y], 8, r"y of shape \(2, 90\)"),
        (x, None, 8, r"or `None` if the preprocessor.*y of shape \(\)"),
        (x[:0], y[:0], 8, "at least one example"),
        (x, y, 0, "positive integer. Received: batch_size=0"),
        (iter(x), y, 8, "a list of strings, or arrays"),
    ):
        with pytest.raises(ValueError, match=message):
            attacked_predictions(
                model, x_given, y_given, attack(0.1), batch_size
            )


def test_the_model_is_as_it_was():
    model = trained_model()
    token_ids, labels = opinions()
    before = [ops.convert_to_numpy(x).copy() for x in model.variables]
    attacked_predictions(
        model, token_ids, labels, attack(0.5, random_start=True), 90
    )
    after = [ops.convert_to_numpy(x) for x in model.variables]
    assert any(x.name == "seed_generator_state" for x in model.variables)
    for old, new in zip(before, after, strict=True):
        np.testing.assert_array_equal(new, old)
    overrides = [
        layer.name
        for layer in [model, *keras_internals.sublayers(model)]
        if "call" in vars(layer)
    ]
    assert overrides == []
    assert model.optimizer.iterations == 0


def test_takes_raw_strings():
    texts, labels = tiny_texts(5)
    model = compiled(tiny_bert())
    logits = attacked_predictions(
        model, texts, labels, keras_uegr.FastGradient(0.0)
    )
    expected = model.predict(texts, verbose=0)
    np.testing.assert_allclose(logits, expected, atol=1e-5)


def test_a_model_that_is_not_compiled_is_told():
    token_ids, labels = opinions()
    model = keras_uegr.UEGRModel(pooled_model(), name="raw")
    message = "must be compiled first.*Received: model=raw"
    with pytest.raises(ValueError, match=message):
        attacked_predictions(model, token_ids, labels, attack(0.1))


def test_an_attack_on_the_divergence_is_told():
    token_ids, labels = opinions()
    perturbation = keras_uegr.ProjectedGradient(
        random_start=True, objective="divergence"
    )
    with pytest.raises(ValueError, match='"loss". Received: objective=div'):
        attacked_predictions(
            compiled(pooled_model()), token_ids, labels, perturbation
        )


@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_curve_is_the_attack_at_each_radius(norm):
    model = trained_model()
    token_ids, labels = opinions()
    curve = attacked_curve(
        model, token_ids, labels, attack(0.4, norm=norm), [0.0, 0.2, 0.5], 40
    )
    assert list(curve) == [0.0, 0.2, 0.5]
    for epsilon, logits in curve.items():
        expected = attacked_predictions(
            model, token_ids, labels, attack(epsilon, norm=norm), 40
        )
        np.testing.assert_allclose(logits, expected, atol=1e-4)


def test_curve_is_traced_once_per_size_of_batch(monkeypatch):
    model = trained_model()
    token_ids, labels = opinions()
    calls = []
    inner_call = type(model.model).call
    monkeypatch.setattr(
        type(model.model),
        "call",
        lambda self, *x, **y: calls.append(1) or inner_call(self, *x, **y),
    )
    # The first tracing may find out that shapes vary.
    radii = [0.1, 0.2, 0.3, 0.4]
    for epsilons in (radii[:1], radii):
        calls.clear()
        attacked_curve(model, token_ids, labels, attack(1.0), epsilons, 45)
        traced = len(calls)
        if epsilons == radii[:1]:
            once = traced
    if keras.backend.backend() == "torch":
        once *= len(radii)
    assert traced == once


def test_curve_of_no_radius_is_told():
    token_ids, labels = opinions()
    with pytest.raises(ValueError, match="must have a positive `epsilon`"):
        attacked_curve(trained_model(), token_ids, labels, attack(0.0), [0.1])


def test_an_embedding_without_a_way_to_the_loss_is_told():
    token_ids = keras.Input((None,), dtype="int32")
    used = keras.layers.Embedding(20, 5, name="used")(token_ids)
    idle = keras.layers.Embedding(20, 5, name="idle")(token_ids)
    outputs = used + keras.layers.Lambda(ops.stop_gradient)(idle)
    outputs = keras.layers.GlobalAveragePooling1D()(outputs)
    inner = keras.Model(token_ids, keras.layers.Dense(3)(outputs))
    model = compiled(inner, embedding="idle")
    with pytest.raises(ValueError, match="embedding=idle"):
        attacked_predictions(model, *opinions(), attack(0.1))


def drawn(activation, factor, policy="mixed_float16"):
    """A classifier that is as sure as `factor` is large."""
    keras.config.set_dtype_policy(policy)
    inner = pooled_model(
        length=7,
        outputs=keras.layers.Dense(3, activation=activation),
    )
    keras.config.set_dtype_policy("float32")
    generator = np.random.default_rng(0)
    for weight in inner.weights:
        weight.assign(generator.normal(size=weight.shape))
    kernel = inner.weights[-2]
    kernel.assign(ops.multiply(kernel, factor))
    return inner


def compiled_to_scale(inner, scale, from_logits):
    model = keras_uegr.UEGRModel(
        inner, adversarial_weight=0, consistency_weight=0
    )
    model.compile(
        keras.optimizers.LossScaleOptimizer(
            keras.optimizers.SGD(0.0), initial_scale=scale
        ),
        keras.losses.SparseCategoricalCrossentropy(from_logits=from_logits),
    )
    return model


@pytest.mark.parametrize("batch_size", [5, 30])
@pytest.mark.parametrize("scale", [1.0, 2.0**15, 2.0**24])
def test_half_precision_is_attacked_whatever_the_scale_of_the_loss(
    scale, batch_size
):
    x, labels = (array[:30] for array in opinions())
    half, full = (
        attacked_predictions(
            compiled_to_scale(drawn(None, 3, policy), scale, True),
            x,
            labels,
            attack(0.3),
            batch_size,
        ).astype("float32")
        for policy in ("mixed_float16", "float32")
    )
    np.testing.assert_allclose(half, full, atol=0.1)


def test_half_precision_gives_gradients_of_unlikely_probabilities():
    x, labels = opinions()
    model = compiled_to_scale(drawn("softmax", 3), 2.0**15, False)
    outputs = attacked_predictions(model, x, labels, attack(0.2))
    assert np.isfinite(outputs).all()
    clean = model.predict(x, verbose=0)
    assert accuracy(outputs, labels) < accuracy(clean, labels)


def test_without_float16_a_gradient_takes_one_pass(monkeypatch):
    model = trained_model()
    passes = []
    differentiate = type(model).differentiate
    monkeypatch.setattr(
        type(model),
        "differentiate",
        lambda self, *x, **y: passes.append(1) or differentiate(self, *x, **y),
    )
    x, labels = opinions()
    attacked_predictions(model, x, labels, attack(0.3), EXAMPLES)
    assert len(passes) == attack(0.3).gradient_steps


def two_outputs(features):
    return {
        name: keras.layers.Dense(3, name=name)(features) for name in ("a", "b")
    }


@pytest.mark.parametrize("as_list", [False, True])
def test_labels_of_several_outputs_give_several_outputs(as_list):
    inner = pooled_model(length=7, outputs=two_outputs)
    model = keras_uegr.UEGRModel(
        inner, adversarial_weight=0, consistency_weight=0
    )
    model.compile(
        "sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    )
    x, labels = opinions()
    y = {"a": labels, "b": (labels + 1) % 3}
    y = list(y.values()) if as_list else y
    clean = model.predict(x, verbose=0)
    for epsilon, outputs in attacked_curve(
        model, x, y, attack(1.0), [0.0, 0.3], 40
    ).items():
        assert sorted(outputs) == ["a", "b"]
        for name, logits in outputs.items():
            same = np.allclose(logits, clean[name], atol=1e-5)
            assert same == (epsilon == 0)
    with pytest.raises(ValueError, match=r"shape \(90,\), \(8,\)"):
        attacked_predictions(
            model, x, {"a": labels, "b": labels[:8]}, attack(0.1)
        )


def test_labels_and_weights_of_the_preprocessor_are_attacked():
    texts = ["good", "a longer text"]
    model = compiled(tiny_gpt2())
    outputs = attacked_predictions(model, texts, None, attack(0.3))
    x, y, weights = keras.tree.map_structure(
        ops.convert_to_numpy, model.preprocessor(texts)
    )
    assert (weights.sum(axis=1) < weights.shape[1]).all()
    model.compile(
        "sgd",
        keras.losses.SparseCategoricalCrossentropy(
            from_logits=True, ignore_class=-1
        ),
    )
    counted = np.where(weights > 0, y, -1)
    expected = attacked_predictions(model, x, counted, attack(0.3))
    np.testing.assert_allclose(outputs, expected, atol=1e-4)
    everywhere = attacked_predictions(model, x, y, attack(0.3))
    assert np.abs(outputs - everywhere).max() > 1e-2


def test_each_of_many_batches_draws_anew(monkeypatch):
    """The seeds of batches are further apart than 32 bits are long."""
    monkeypatch.setattr(white_box, "_DRAWS", 2**31)
    x, labels = opinions()
    outputs = attacked_predictions(
        trained_model(),
        np.repeat(x[:1], 5, axis=0),
        np.repeat(labels[:1], 5),
        keras_uegr.GaussianNoise(1.0),
        batch_size=1,
    )
    assert len(np.unique(outputs.round(4), axis=0)) == 5


def test_examples_that_no_gradient_moves_are_told():
    x, _ = opinions()
    model = compiled(drawn("softmax", 40, "float32"))
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy())
    clean = model.predict(x, verbose=0)
    surest = clean.argmax(axis=-1)
    for attacked in (
        lambda: attacked_predictions(model, x, surest, attack(0.5)),
        lambda: attacked_curve(model, x, surest, attack(1), [0.2, 0.5])[0.5],
    ):
        with pytest.warns(UserWarning, match="is 0 for") as told:
            outputs = attacked()
        unmoved = (np.abs(outputs - clean).max(axis=-1) == 0).mean()
        [message] = [each for each in told if each.category is UserWarning]
        share = float(re.search(r"for ([\d.]+)%", str(message.message))[1])
        # What is moved a little may still give a probability of 1.
        assert 0 < share / 100 <= unmoved + 1e-3 < 1
        assert message.filename == __file__


def test_padding_is_not_told_as_what_no_gradient_moves():
    model = compiled(pooled_model(mask_zero=True, rate=0.1))
    x, labels = opinions()
    x[:3] = 0
    # A warning would be an error.
    attacked_predictions(model, x, labels, attack(0.3))
    sure = compiled(drawn("softmax", 40, "float32"))
    sure.compile("sgd", keras.losses.SparseCategoricalCrossentropy())
    attacked_predictions(sure, x, labels, keras_uegr.GaussianNoise(0.1))
