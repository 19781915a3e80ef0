"""Each recipe against its published formula, by hand in NumPy."""

import re

import keras
import numpy as np
import pytest
from keras import ops

import keras_uegr
from keras_uegr import model_parts, recipes, text_input
from keras_uegr.optimizers import noisy_selection
from tests import reference
from tests.conformance import families
from tests.optimizers import reference as optimizer_reference
from tests.pooled_model import pooled_model

pytestmark = pytest.mark.slow

LEARNING_RATE = 0.5
# The passes differ by layers of the test's own, or not at all.
may_be_alike = pytest.mark.filterwarnings(
    "ignore:With .perturbation=None.:UserWarning"
)


def batch(examples=6, length=7):
    rng = np.random.default_rng(0)
    token_ids = rng.integers(1, 20, (examples, length)).astype("int32")
    return token_ids, rng.integers(0, 3, examples)


def parameters():
    return reference.random_parameters(20, 5, 4, 3)


def compiled(recipe, optimizer=None, inner=None, **settings):
    """A small model, and the recipe's around it."""
    inner = inner or pooled_model(parameters=parameters())
    model, own = recipe(inner, learning_rate=LEARNING_RATE, **settings)
    model.compile(
        own if optimizer is None else optimizer,
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    )
    return inner, model


def step_of(recipe, **settings):
    """What one SGD step makes of the parameters, and the random start.

    The start is drawn again from the same state, to know it.
    """
    sgd = keras.optimizers.SGD(LEARNING_RATE)
    inner, model = compiled(recipe, sgd, **settings)
    token_ids, labels = batch()
    start = None
    if model.perturbation is not None:
        state = ops.convert_to_numpy(model.seed_generator.state)
        embedded = ops.convert_to_tensor(
            parameters()["embedding"][token_ids].astype("float32")
        )
        start = ops.convert_to_numpy(
            model.perturbation.start(
                embedded,
                ops.ones((*token_ids.shape, 1)),
                1.0,
                model.seed_generator,
            )
        )
        model.seed_generator.state.assign(state)
    model.train_on_batch(token_ids, labels)
    values = [ops.convert_to_numpy(weight) for weight in inner.weights]
    return dict(zip(parameters(), values, strict=True)), start


def differentiate(values, delta, logits_gradient):
    """Gradients of the parameters and of the embedding at `e + delta`."""
    token_ids, _ = batch()
    embedded = values["embedding"][token_ids] + delta
    logits, cache = reference.forward(values, embedded)
    return reference.backward(values, token_ids, cache, logits_gradient(logits))


def cross_entropy(logits):
    return reference.cross_entropy_gradient(logits, batch()[1])


def clean_probabilities():
    values = parameters()
    embedded = values["embedding"][batch()[0]]
    return reference.softmax(reference.forward(values, embedded)[0])


def divergence_from_clean(logits):
    """Gradient of the mean of KL(p || q) and KL(q || p), q a constant."""
    p, q = reference.softmax(logits), clean_probabilities()
    log_ratio = np.log(p / q)
    forward = p * (log_ratio - (p * log_ratio).sum(axis=-1, keepdims=True))
    return (forward + p - q) / 2 / len(p)


def sgd(*weighted_gradients):
    return {
        name: value
        - LEARNING_RATE
        * sum(
            weight * gradient[name] for weight, gradient in weighted_gradients
        )
        for name, value in parameters().items()
    }


def assert_same(found, expected):
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, rtol=0, atol=2e-5)


def norm_of(x):
    return np.sqrt((x**2).sum(axis=(1, 2), keepdims=True))


def project(delta, radius):
    return delta * np.minimum(1.0, radius / norm_of(delta))


def test_finetune_is_the_plain_step():
    found, _ = step_of(recipes.finetune)
    gradients, _ = differentiate(parameters(), 0.0, cross_entropy)
    assert_same(found, sgd((1.0, gradients)))


def test_fgm_adds_the_loss_at_one_step():
    found, _ = step_of(recipes.fgm, epsilon=0.4)
    gradients, direction = differentiate(parameters(), 0.0, cross_entropy)
    delta = 0.4 * direction / norm_of(direction)
    adversarial, _ = differentiate(parameters(), delta, cross_entropy)
    assert_same(found, sgd((1.0, gradients), (1.0, adversarial)))


def test_pgd_trains_on_the_last_point_alone():
    found, _ = step_of(recipes.pgd, epsilon=0.5, steps=3, step_size=0.3)
    delta = 0.0
    for _ in range(3):
        _, direction = differentiate(parameters(), delta, cross_entropy)
        delta = project(delta + 0.3 * direction / norm_of(direction), 0.5)
    adversarial, _ = differentiate(parameters(), delta, cross_entropy)
    assert_same(found, sgd((1.0, adversarial)))


def test_freelb_averages_the_gradients_of_all_steps():
    found, delta = step_of(recipes.freelb, epsilon=0.5, steps=3, step_size=0.3)
    assert np.abs(delta).max() > 0
    terms = []
    for _ in range(3):
        gradients, direction = differentiate(parameters(), delta, cross_entropy)
        terms.append((1 / 3, gradients))
        delta = project(delta + 0.3 * direction / norm_of(direction), 0.5)
    assert_same(found, sgd(*terms))


def of_each_token(gradient):
    """Divided by the largest entry of each token."""
    return gradient / np.abs(gradient).max(axis=-1, keepdims=True)


@pytest.mark.parametrize(
    ("direction", "step"), [("gradient", of_each_token), ("steepest", np.sign)]
)
def test_smart_adds_the_divergence_where_it_is_highest(direction, step):
    found, start = step_of(
        recipes.smart, epsilon=0.3, weight=2.0, direction=direction
    )
    gradients, _ = differentiate(parameters(), 0.0, cross_entropy)
    _, raising = differentiate(parameters(), start, divergence_from_clean)
    delta = np.clip(start + 0.3 * step(raising), -0.3, 0.3)
    divergence, _ = differentiate(parameters(), delta, divergence_from_clean)
    assert_same(found, sgd((1.0, gradients), (2 * 2.0, divergence)))


def test_r3f_adds_the_divergence_under_noise():
    found, noise = step_of(recipes.r3f, stddev=0.3, weight=2.0)
    assert np.abs(noise).max() > 0
    gradients, _ = differentiate(parameters(), 0.0, cross_entropy)
    divergence, _ = differentiate(parameters(), noise, divergence_from_clean)
    assert_same(found, sgd((1.0, gradients), (2 * 2.0, divergence)))


@may_be_alike
def test_rdrop_is_the_mean_loss_of_two_passes_without_dropout():
    found, _ = step_of(recipes.rdrop)
    gradients, _ = differentiate(parameters(), 0.0, cross_entropy)
    assert_same(found, sgd((1.0, gradients)))


@may_be_alike
def test_rdrop_adds_the_divergence_of_two_dropout_passes():
    def gradients(*logits):
        divergence = symmetric_divergence(*logits)
        return [
            cross_entropy(each) / 2 + 3.0 * apart
            for each, apart in zip(logits, divergence, strict=True)
        ]

    inner = pooled_model(parameters=parameters(), outputs=with_fixed_dropout)
    sgd_instead = keras.optimizers.SGD(LEARNING_RATE)
    _, model = compiled(recipes.rdrop, sgd_instead, inner, weight=3.0)
    model.train_on_batch(*batch())
    found = [ops.convert_to_numpy(w) for w in inner.weights if w.ndim == 2][1:]
    expected = gradients_of_kernels(parameters(), gradients)
    for value, name, gradient in zip(
        found, ("kernel_1", "kernel_2"), expected, strict=True
    ):
        moved = parameters()[name] - LEARNING_RATE * gradient
        np.testing.assert_allclose(value, moved, rtol=0, atol=2e-5)


class ByAHalf(keras_uegr.GaussianNoise):
    def start(self, embedding, mask, strength, seed):
        return 0.5 * ops.ones_like(embedding)


def logs_of_regression(model):
    """Of a step with labels of zero."""
    model.compile(keras.optimizers.SGD(0.0), "mean_squared_error")
    labels = np.zeros((6, 3), "float32")
    return model.train_on_batch(batch()[0], labels, return_dict=True)


@pytest.mark.parametrize("recipe", [recipes.smart, recipes.r3f])
def test_of_a_regression_half_the_weight_is_of_the_squared_difference(recipe):
    inner = pooled_model(parameters=parameters())
    model, _ = recipe(inner, LEARNING_RATE, weight=3.0)
    model.perturbation = ByAHalf(0.1, relative=False)
    logs = logs_of_regression(model)
    embedded = parameters()["embedding"][batch()[0]]
    clean, moved = (
        reference.forward(parameters(), x)[0]
        for x in (embedded, embedded + 0.5)
    )
    added = logs["loss"] - logs["clean_loss"]
    assert added == pytest.approx(1.5 * ((moved - clean) ** 2).mean(), rel=1e-3)


@may_be_alike
def test_of_a_regression_a_quarter_of_rdrops_weight_is_of_that():
    inner = pooled_model(parameters=parameters(), outputs=with_fixed_dropout)
    model, _ = recipes.rdrop(inner, LEARNING_RATE, weight=3.0)
    logs = logs_of_regression(model)
    pooled = parameters()["embedding"][batch()[0]].mean(axis=1)
    hidden = np.tanh(pooled @ parameters()["kernel_1"] + parameters()["bias_1"])
    dropped = hidden * (FIXED[:6] - FIXED[6:])
    kernel = ops.convert_to_numpy(inner.trainable_variables[-2])
    added = logs["loss"] - logs["adversarial_loss"]
    expected = 0.75 * ((dropped @ kernel) ** 2).mean()
    assert added == pytest.approx(expected, rel=1e-3)


def test_sam_takes_the_gradient_at_the_worst_weights_nearby():
    found, _ = step_of(recipes.sam, radius=0.2)
    gradients, _ = differentiate(parameters(), 0.0, cross_entropy)
    norm = np.sqrt(sum((gradient**2).sum() for gradient in gradients.values()))
    moved = {
        name: value + 0.2 * gradients[name] / norm
        for name, value in parameters().items()
    }
    nearby, _ = differentiate(moved, 0.0, cross_entropy)
    assert_same(found, sgd((1.0, nearby)))


def roast_terms(epsilon, weight):
    gradients, direction = differentiate(parameters(), 0.0, cross_entropy)
    delta = epsilon * of_each_token(direction)
    adversarial, _ = differentiate(parameters(), delta, cross_entropy)
    divergence, _ = differentiate(parameters(), delta, divergence_from_clean)
    return (1.0, gradients), (1.0, adversarial), (2 * weight, divergence)


def test_roast_adds_loss_and_divergence_at_one_step_of_each_token():
    sgd_instead = keras.optimizers.SGD(LEARNING_RATE)
    inner, model = compiled(recipes.roast, sgd_instead, epsilon=0.2, weight=0.5)
    model.train_on_batch(*batch())
    values = [ops.convert_to_numpy(weight) for weight in inner.weights]
    found = dict(zip(parameters(), values, strict=True))
    assert_same(found, sgd(*roast_terms(0.2, 0.5)))


def test_roast_draws_by_the_rank_of_the_mean_squared_gradient():
    settings = {"epsilon": 0.2, "weight": 0.5, "refresh_steps": 3}
    _, model = compiled(recipes.roast, alpha=0.6, beta=2.0, **settings)
    keras_uegr.prepare_saliency(model, *batch(), batch_size=3)
    before, scores = mean_square(), []
    for name in ("kernel_1", "kernel_2"):
        square = sum(w * g[name] for w, g in roast_terms(0.2, 0.5)) ** 2
        scores.append((2 / 3 * before[name] + 1 / 3 * square).ravel())
    (state,) = (v for v in model.optimizer.variables if "seed" in v.path)
    same = keras.random.SeedGenerator(0)
    same.state.assign(ops.convert_to_tensor(state))
    draws = [
        ops.convert_to_numpy(keras.random.uniform(shape, seed=same)).ravel()
        for shape in ((5, 4), (4, 3))
    ]
    expected = optimizer_reference.drawn_mask(
        np.concatenate(scores), 0.6, 0.25, np.concatenate(draws)
    )
    masks = changed_kernels(model, 4)
    for mask in masks[:3]:
        np.testing.assert_array_equal(mask, expected)
    assert (masks[3] != expected).any()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"beta": 0}, "`beta` must be a finite number above 0.*beta=0"),
        ({"beta": -1}, "`beta` must be .*beta=-1"),
        ({"beta": float("inf")}, "`beta` must be .*beta=inf"),
        ({"beta": "10"}, "`beta` must be .*beta=10"),
        ({"refresh_steps": 0}, "`refresh_steps` must be a positive int.*=0"),
        ({"refresh_steps": None}, "`refresh_steps` must be .*=None"),
    ],
)
def test_roast_names_the_argument_that_is_wrong(settings, message):
    with pytest.raises(ValueError, match=message):
        compiled(recipes.roast, **settings)


def test_roast_updates_the_published_share():
    _, model = compiled(recipes.roast, alpha=0.6, beta=1.0)
    share = noisy_selection.density_of(0.6, 0.5)
    assert model.optimizer.density == pytest.approx(share)
    assert share == pytest.approx(0.454, abs=1e-3)


@keras.saving.register_keras_serializable("tests")
class FixedDropout(keras.layers.Layer):
    """Drops what is written down: other units in each row of a batch."""

    def call(self, inputs, training=None):
        if not training:
            return inputs
        return inputs * ops.convert_to_tensor(FIXED)[: ops.shape(inputs)[0]]


FIXED = 2.0 * np.random.default_rng(6).integers(0, 2, (12, 4)).astype("float32")


def with_fixed_dropout(x):
    return keras.layers.Dense(3)(FixedDropout()(x))


def gradients_of_kernels(values, logits_gradients):
    """Summed over the two halves of `FIXED`."""
    pooled = values["embedding"][batch()[0]].mean(axis=1)
    hidden = np.tanh(pooled @ values["kernel_1"] + values["bias_1"])
    drops = FIXED[:6], FIXED[6:]
    logits = [
        hidden * drop @ values["kernel_2"] + values["bias_2"] for drop in drops
    ]
    first, second = 0.0, 0.0
    for drop, gradient in zip(drops, logits_gradients(*logits), strict=True):
        before_tanh = gradient @ values["kernel_2"].T * drop * (1 - hidden**2)
        first = first + pooled.T @ before_tanh
        second = second + (hidden * drop).T @ gradient
    return first, second


def norms_of_kernels(values, logits_gradients):
    gradients = gradients_of_kernels(values, logits_gradients)
    return [*map(optimizer_reference.norm, gradients)]


def symmetric_divergence(*logits):
    """Gradients of the mean of KL(p || q) and KL(q || p)."""
    p, q = (reference.softmax(x) for x in logits)
    gradients = []
    for here, there in ((p, q), (q, p)):
        log_ratio = np.log(here / there)
        mean = (here * log_ratio).sum(axis=-1, keepdims=True)
        gradients.append(
            (here * (log_ratio - mean) + here - there) / 2 / len(p)
        )
    return gradients


def loss_of_first(first, second):
    """Gradients of the cross-entropy of the clean pass."""
    return cross_entropy(first), 0.0 * second


@may_be_alike
@pytest.mark.parametrize(("scale", "lowest"), [(1.0, 0), (3.0, 0), (9.0, 1)])
def test_rose_updates_the_tensor_that_two_passes_agree_on_most(scale, lowest):
    values = parameters()
    values["kernel_2"] *= scale
    norms = norms_of_kernels(values, symmetric_divergence)
    assert norms[lowest] < 0.8 * norms[1 - lowest]
    if scale == 3.0:
        # The loss that is trained on would choose the other one.
        norms = norms_of_kernels(values, loss_of_first)
        assert norms[1] < 0.8 * norms[0]
    inner = pooled_model(parameters=values, outputs=with_fixed_dropout)
    _, model = compiled(recipes.rose, inner=inner, density=0.5)
    (mask,) = changed_kernels(model, 1)
    first, second = mask[:20], mask[20:]
    assert [first.any(), second.any()] == [lowest == 0, lowest == 1]


def changed_kernels(model, steps):
    """Which entries of both kernels each step has changed, all in a row."""
    kernels = [w for w in model.trainable_variables if w.name == "kernel"]
    masks = []
    for _ in range(steps):
        before = [ops.convert_to_numpy(kernel) for kernel in kernels]
        model.train_on_batch(*batch())
        masks.append(
            np.concatenate(
                [
                    (ops.convert_to_numpy(kernel) != old).ravel()
                    for kernel, old in zip(kernels, before, strict=True)
                ]
            )
        )
    return masks


def test_child_tuning_f_draws_another_share_in_every_step():
    _, model = compiled(recipes.child_tuning_f, density=0.25)
    masks = changed_kernels(model, 12)
    assert np.mean(masks) == pytest.approx(0.25, abs=0.02)
    assert (np.sum(masks, axis=0) > 0).mean() > 0.9
    assert any((mask != masks[0]).any() for mask in masks)


def mean_square():
    """Squared gradients of the kernels, mean of two batches of three."""
    token_ids, labels = batch()
    values, squares = parameters(), []
    for rows in (slice(0, 3), slice(3, 6)):
        logits, cache = reference.forward(
            values, values["embedding"][token_ids[rows]]
        )
        gradients, _ = reference.backward(
            values,
            token_ids[rows],
            cache,
            reference.cross_entropy_gradient(logits, labels[rows]),
        )
        squares.append(gradients)
    return {
        name: np.mean([square[name] ** 2 for square in squares], axis=0)
        for name in values
    }


def top(scores, density):
    scores = scores.ravel()
    count = round(density * (scores > 0).sum())
    return scores >= np.sort(scores)[::-1][count - 1]


def test_child_tuning_d_keeps_to_the_highest_squared_gradients_of_all():
    _, model = compiled(recipes.child_tuning_d, density=0.25)
    keras_uegr.prepare_saliency(model, *batch(), batch_size=3)
    scores = mean_square()
    # The embedding table, which would win most places, is no candidate.
    names = ("kernel_1", "kernel_2")
    expected = top(np.concatenate([scores[n].ravel() for n in names]), 0.25)
    for mask in changed_kernels(model, 3):
        np.testing.assert_array_equal(mask, expected)


class EmbeddingClassifier(keras.Model):
    """Its name is in the paths of all its variables."""

    def __init__(self):
        super().__init__()
        self.embedding = keras.layers.Embedding(20, 5)
        self.pool = keras.layers.GlobalAveragePooling1D()
        self.dropout = keras.layers.Dropout(0.1)
        self.logits = keras.layers.Dense(3)

    def call(self, inputs):
        return self.logits(self.dropout(self.pool(self.embedding(inputs))))


@pytest.mark.parametrize("name", ["child_tuning_d", "roast", "rose"])
def test_only_embeddings_are_left_out_and_not_all_of_a_model(name):
    inner = EmbeddingClassifier()
    inner(batch()[0])
    _, model = compiled(recipes.RECIPES[name], inner=inner)
    model.optimizer.build(model.trainable_variables)
    masked = [
        variable.path.split("/", 1)[1]
        for variable, is_masked in zip(
            model.trainable_variables, model.optimizer._is_masked, strict=True
        )
        if is_masked
    ]
    assert len(masked) == 1
    assert masked[0].endswith("/kernel")


@pytest.mark.filterwarnings("ignore:Layer .* does not support masking")
@pytest.mark.filterwarnings("ignore:Layer .* looks like it has unbuilt")
@pytest.mark.parametrize("family", families.BACKBONES)
def test_every_embedding_of_a_backbone_is_left_out(family):
    for variable in families.backbone(family).trainable_variables:
        if variable.name.endswith("embeddings") or "embedding" in variable.path:
            assert re.search(model_parts.EMBEDDINGS, variable.path)


@pytest.mark.parametrize("name", ["child_tuning_d", "roast", "rose"])
def test_frozen_embeddings_are_no_mistake(name):
    inner = pooled_model(rate=0.1, parameters=parameters())
    inner.get_layer("embedding").trainable = False
    _, model = compiled(recipes.RECIPES[name], inner=inner)
    # A warning is an error here.
    model.optimizer.build(model.trainable_variables)
    assert model.optimizer.get_config()["dense_variables"] == []


def test_sift_keeps_to_the_highest_squared_gradients_of_each_variable():
    _, model = compiled(recipes.sift, density=0.25)
    keras_uegr.prepare_saliency(model, *batch(), batch_size=3)
    scores = mean_square()
    expected = np.concatenate(
        [top(scores[name], 0.25) for name in ("kernel_1", "kernel_2")]
    )
    for mask in changed_kernels(model, 3):
        np.testing.assert_array_equal(mask, expected)


def kernels_after_a_step(recipe, **settings):
    inner = pooled_model(parameters=parameters(), outputs=with_fixed_dropout)
    _, model = compiled(recipe, inner=inner, **settings)
    if recipe in (recipes.child_tuning_d, recipes.sift):
        keras_uegr.prepare_saliency(model, *batch(), batch_size=3)
    model.train_on_batch(*batch())
    kernels = [w for w in model.trainable_variables if w.name == "kernel"]
    return np.concatenate(
        [ops.convert_to_numpy(kernel).ravel() for kernel in kernels]
    )


@may_be_alike
@pytest.mark.parametrize(
    "recipe",
    [
        recipes.child_tuning_d,
        recipes.child_tuning_f,
        recipes.rose,
        recipes.sift,
    ],
)
def test_what_is_selected_takes_the_step_of_plain_fit(recipe):
    before = np.concatenate(
        [parameters()[name].ravel() for name in ("kernel_1", "kernel_2")]
    ).astype("float32")
    plain = kernels_after_a_step(recipes.finetune)
    found = kernels_after_a_step(recipe, density=0.5)
    moved = found != before
    assert 0 < moved.sum() < moved.size
    np.testing.assert_allclose(found[moved], plain[moved], atol=1e-6)


@pytest.mark.parametrize("name", sorted(recipes.RECIPES))
def test_only_our_own_method_warms_up(name):
    model, _ = recipes.RECIPES[name](pooled_model(rate=0.1), LEARNING_RATE)
    if model.has_sub_models:
        assert model.state.needs_plan == (name == "uegr")


@pytest.mark.parametrize("name", sorted(recipes.RECIPES))
def test_every_recipe_has_adamw_at_the_rate_that_is_given(name):
    _, optimizer = recipes.RECIPES[name](pooled_model(rate=0.1), 0.125)
    inner = getattr(optimizer, "inner_optimizer", optimizer)
    assert isinstance(inner, keras.optimizers.AdamW)
    assert float(ops.convert_to_numpy(optimizer.learning_rate)) == 0.125


@pytest.mark.parametrize("name", sorted(recipes.RECIPES))
def test_every_recipe_hands_further_arguments_on(name):
    def wrap(**arguments):
        inner = pooled_model(rate=0.1)
        return recipes.RECIPES[name](inner, LEARNING_RATE, **arguments)[0]

    assert wrap(unperturbed_token_ids=[3]).unperturbed_token_ids == (3,)
    with pytest.raises(ValueError, match="Received: embedding=absent"):
        assert not wrap(embedding="absent").embedding
    if name != "uegr":
        message = r"\['token_share'\] itself.*Received: {'token_share': 0.5}"
        with pytest.raises(TypeError, match=message):
            wrap(token_share=0.5)


@pytest.mark.parametrize("name", sorted(recipes.RECIPES))
def test_every_recipe_trains_and_saves(name, tmp_path):
    x, y = batch()
    # Of a small variable its draw may leave out every entry.
    settings = {"alpha": 0.1} if name == "roast" else {}
    inner = pooled_model(parameters=parameters(), rate=0.1)
    _, model = compiled(recipes.RECIPES[name], inner=inner, **settings)
    if name in ("child_tuning_d", "sift"):
        with pytest.raises(
            ValueError, match=r"prepare_saliency\(model, x, y\)"
        ):
            model.train_on_batch(x, y)
        keras_uegr.prepare_saliency(model, x, y)
    start = ops.convert_to_numpy(inner.weights[1])
    assert np.isfinite(model.train_on_batch(x, y)).all()
    assert (ops.convert_to_numpy(inner.weights[1]) != start).any()
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    assert loaded.get_config().keys() == model.get_config().keys()
    np.testing.assert_allclose(
        loaded.predict(x, verbose=0), model.predict(x, verbose=0), atol=1e-6
    )


def test_preparation_needs_an_optimizer_that_uses_it():
    _, model = compiled(recipes.finetune)
    with pytest.raises(ValueError, match='`saliency="fisher"`. Received: opt'):
        keras_uegr.prepare_saliency(model, *batch())


def of_half_precision(initial_scale):
    keras.config.set_dtype_policy("mixed_float16")
    model = keras_uegr.UEGRModel(pooled_model(parameters=parameters()))
    optimizer = keras_uegr.SaliencyMaskedOptimizer("sgd", saliency="fisher")
    model.compile(
        keras.optimizers.LossScaleOptimizer(
            optimizer, initial_scale=initial_scale
        ),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    )
    return model


def test_preparation_leaves_out_the_scale_of_the_loss():
    model = of_half_precision(256.0)
    keras_uegr.prepare_saliency(model, *batch(), batch_size=3)
    expected = mean_square()["kernel_2"]
    averages = [
        ops.convert_to_numpy(variable)
        for variable in model.masked_optimizer.variables
        if variable.shape == expected.shape and "fisher" in variable.path
    ]
    (average,) = averages
    np.testing.assert_allclose(average, expected, rtol=0.05, atol=1e-4)


def test_preparation_leaves_out_dropout():
    inner = pooled_model(parameters=parameters(), rate=0.5)
    _, model = compiled(recipes.sift, inner=inner)
    keras_uegr.prepare_saliency(model, *batch(), batch_size=3)
    np.testing.assert_allclose(
        averages_of(model)[4, 3],
        mean_square()["kernel_2"],
        rtol=1e-4,
        atol=1e-8,
    )


def test_preparation_where_every_batch_overflows_is_told():
    model = of_half_precision(2.0**40)
    with pytest.raises(ValueError, match="a smaller `initial_scale`.*2 batch"):
        keras_uegr.prepare_saliency(model, *batch(), batch_size=3)


def test_preparation_leaves_out_batches_that_overflow():
    x, y = batch()

    def loss(y_true, y_pred):
        scale = ops.where(ops.any(ops.equal(y_true, 9)), np.inf, 1.0)
        return ops.mean(y_pred, axis=-1) * scale

    _, model = compiled(recipes.sift)
    model.compile(model.optimizer, loss)
    labels = np.zeros_like(y)
    keras_uegr.prepare_saliency(model, x[3:], labels[3:], batch_size=3)
    expected = averages_of(model)
    labels[:3] = 9
    with pytest.warns(UserWarning, match="1 of 2 batches were left out"):
        keras_uegr.prepare_saliency(model, x, labels, batch_size=3)
    for shape, average in averages_of(model).items():
        np.testing.assert_allclose(average, expected[shape], rtol=1e-5)


def test_preparation_needs_a_batch():
    _, model = compiled(recipes.sift)
    x, y = batch()
    with pytest.raises(ValueError, match="Received: 0 examples, batches=None"):
        keras_uegr.prepare_saliency(model, x[:0], y[:0])
    with pytest.raises(ValueError, match="Received: 6 examples, batches=0"):
        keras_uegr.prepare_saliency(model, x, y, batches=0)


def test_preparation_needs_a_built_model():
    embedding = keras.layers.Embedding(20, 5)
    inner = keras.Sequential([embedding, keras.layers.GlobalMaxPooling1D()])
    model, optimizer = recipes.sift(inner, LEARNING_RATE)
    model.compile(optimizer, "mean_squared_error")
    with pytest.raises(ValueError, match="must be built first"):
        keras_uegr.prepare_saliency(model, *batch())


def test_preparation_looks_at_as_many_batches_as_asked_for():
    _, model = compiled(recipes.sift, density=0.25)
    x, y = batch()
    keras_uegr.prepare_saliency(model, x, y, batch_size=3, batches=1)
    few = [ops.convert_to_numpy(v) for v in model.optimizer.variables]
    keras_uegr.prepare_saliency(model, x[:3], y[:3], batch_size=3)
    for variable, value in zip(model.optimizer.variables, few, strict=True):
        np.testing.assert_allclose(variable, value, rtol=1e-6)
    keras_uegr.prepare_saliency(model, x, y, batch_size=3)
    assert any(
        not np.allclose(ops.convert_to_numpy(variable), value)
        for variable, value in zip(model.optimizer.variables, few, strict=True)
    )


def averages_of(model):
    """What `prepare_saliency` set, by the shape of the variable."""
    return {
        tuple(variable.shape): ops.convert_to_numpy(variable)
        for variable in model.masked_optimizer.variables
        if "fisher" in variable.path
    }


def test_preparation_looks_at_all_batches_of_several_outputs():
    def heads(hidden):
        return {
            "a": keras.layers.Dense(2, name="a")(hidden),
            "b": keras.layers.Dense(3, name="b")(hidden),
        }

    inner = pooled_model(outputs=heads)
    model, optimizer = recipes.sift(inner, LEARNING_RATE)
    model.compile(
        optimizer, keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    )
    x, y = batch()
    labels = {"a": (y > 0).astype("int32"), "b": y}
    halves = []
    for rows in (slice(0, 3), slice(3, 6)):
        part = {name: array[rows] for name, array in labels.items()}
        keras_uegr.prepare_saliency(model, x[rows], part, batch_size=3)
        halves.append(averages_of(model))
    assert halves[0]
    for both in (labels, [labels["a"].tolist(), labels["b"]]):
        keras_uegr.prepare_saliency(model, x, both, batch_size=3)
        for shape, average in averages_of(model).items():
            mean = (halves[0][shape] + halves[1][shape]) / 2
            np.testing.assert_allclose(average, mean, rtol=1e-4, atol=1e-9)


def test_preparation_weighs_the_loss_as_the_preprocessor_says(monkeypatch):
    x, y = batch()
    _, model = compiled(recipes.sift)
    keras_uegr.prepare_saliency(model, x[:3], y[:3].tolist())
    expected = averages_of(model)
    assert expected
    weights = np.array([1.0, 1.0, 1.0, 0.0, 0.0, 0.0], "float32")
    monkeypatch.setattr(
        text_input, "preprocess_data", lambda *data: (x, y, weights)
    )
    keras_uegr.prepare_saliency(model, x, None)
    for shape, average in averages_of(model).items():
        # The mean is over all six examples.
        np.testing.assert_allclose(
            average, expected[shape] / 4, rtol=1e-4, atol=1e-9
        )


def iterate():
    yield batch()


def test_preparation_needs_no_labels_without_a_loss():
    inner = pooled_model(
        outputs=lambda x: keras.layers.Dense(3, activity_regularizer="l2")(x)
    )
    model, optimizer = recipes.sift(inner, LEARNING_RATE)
    model.compile(optimizer)
    keras_uegr.prepare_saliency(model, batch()[0], None)
    assert max(x.max() for x in averages_of(model).values()) > 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"y": [0, 1, 2, 0, 1, 3]}, "integers from 0 to 2.*from 0 to 3"),
        ({"y": list("abcabc")}, "`y` must be numbers"),
        ({"y": [0, 1]}, r"same number of examples.*'x': \[6\], 'y': \[2\]"),
        ({"y": None}, "`y` must be the labels.*Received: y=None"),
        (
            {"x": iterate(), "y": None},
            "`x` must be arrays or.*x of type generator",
        ),
        ({"batch_size": 0}, "`batch_size` must be a positive.*batch_size=0"),
        ({"batch_size": 2.5}, "`batch_size` must be a positive.*=2.5"),
        ({"batches": -1}, "`batches` must be a positive.*batches=-1"),
        ({"batches": 1.5}, "`batches` must be a positive.*batches=1.5"),
    ],
)
def test_preparation_refuses_what_training_would(change, message):
    _, model = compiled(recipes.sift)
    x, y = batch()
    with pytest.raises(ValueError, match=message):
        keras_uegr.prepare_saliency(model, **{"x": x, "y": y, **change})


def test_training_goes_on_with_the_scores_of_a_file(tmp_path):
    _, model = compiled(recipes.sift, density=0.25)
    keras_uegr.prepare_saliency(model, *batch())
    (mask,) = changed_kernels(model, 1)
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(changed_kernels(loaded, 1)[0], mask)


@pytest.mark.parametrize(
    ("recipe", "settings"),
    [(recipes.roast, {"refresh_steps": 4}), (recipes.rose, {"density": 0.5})],
)
def test_training_goes_on_with_the_selection_of_a_file(
    recipe, settings, tmp_path
):
    dropout, head = keras.layers.Dropout(0.5, seed=3), keras.layers.Dense(3)
    inner = pooled_model(
        parameters=parameters(), outputs=lambda x: head(dropout(x))
    )
    _, model = compiled(recipe, inner=inner, **settings)
    changed_kernels(model, 2)
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    before = [ops.convert_to_numpy(x) for x in loaded.optimizer.variables]
    for value, variable in zip(before, model.optimizer.variables, strict=True):
        np.testing.assert_array_equal(value, ops.convert_to_numpy(variable))
    masks, expected = changed_kernels(loaded, 3), changed_kernels(model, 3)
    np.testing.assert_array_equal(masks, expected)
    for one, other in zip(loaded.weights, model.weights, strict=True):
        np.testing.assert_array_equal(
            ops.convert_to_numpy(one), ops.convert_to_numpy(other)
        )


def test_sam_stays_where_it_is_without_a_gradient():
    inner, model = compiled(recipes.sam, keras.optimizers.SGD(LEARNING_RATE))
    token_ids, labels = batch()
    model.train_on_batch(token_ids, labels, sample_weight=np.zeros(len(labels)))
    for weight, start in zip(inner.weights, parameters().values(), strict=True):
        np.testing.assert_array_equal(
            ops.convert_to_numpy(weight), start.astype("float32")
        )
