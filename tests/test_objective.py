"""What counts in the losses of one batch, and how much."""

import functools
import types

import keras
import numpy as np
import pytest
from keras import ops

import keras_uegr
from keras_uegr import objective
from tests import reference
from tests.pooled_model import pooled_model

EXAMPLES = 6
TERMS = ("loss", "clean_loss", "adversarial_loss", "js_divergence")


class Shift(keras_uegr.Perturbation):
    """Adds one number to every entry that may move: easily done in NumPy."""

    def __init__(self, size=0.5):
        super().__init__(relative=False)
        self.size = size

    def start(self, embedding, mask, strength, seed):
        return self.size * strength * mask * ops.ones_like(embedding)


def wrap(inner, perturbation, **arguments):
    """A `UEGRModel` that draws nothing, and computes the same in every step."""
    arguments = {
        "dropout": keras_uegr.AdaptiveDropout(0.0, 0.0),
        "token_share": 1,
        "include_clean": True,
        **arguments,
    }
    return keras_uegr.UEGRModel(inner, perturbation, **arguments)


def step(model, x, y, sample_weight=None):
    """The logs of one step, and the gradient it went along."""
    before = model.get_weights()
    logs = model.train_on_batch(x, y, sample_weight, return_dict=True)
    after = model.get_weights()
    gradient = [
        old - new
        for old, new in zip(before, after, strict=True)
        if np.issubdtype(old.dtype, np.floating) and old.ndim
    ]
    return logs, gradient


def assert_equal(found, expected, factor=1.0):
    """Compares two results of `step`; `factor` is on the first."""
    for name in TERMS:
        assert expected[0][name] != 0
        assert factor * found[0][name] == pytest.approx(
            expected[0][name], rel=1e-4
        )
    for ours, wanted in zip(found[1], expected[1], strict=True):
        np.testing.assert_allclose(factor * ours, wanted, atol=1e-5)


def token_ids(length=7, seed=0):
    rng = np.random.default_rng(seed)
    return rng.integers(1, 20, (EXAMPLES, length)).astype("int32")


def pooled(**arguments):
    parameters = reference.random_parameters(20, 5, 4, 3)
    return pooled_model(parameters=parameters, **arguments)


KINDS = {
    "softmax": (
        keras.losses.SparseCategoricalCrossentropy,
        np.array([0, 1, 2, 0, 1, 2]),
    ),
    "sigmoid": (
        keras.losses.BinaryCrossentropy,
        np.random.default_rng(0).integers(0, 2, (EXAMPLES, 3)),
    ),
    "regression": (
        lambda from_logits: keras.losses.MeanSquaredError(),
        np.random.default_rng(0).normal(size=(EXAMPLES, 3)).astype("float32"),
    ),
}


WEIGHT = np.array([1.0, 2.0, 0.0, 0.5, 1.0, 0.0], "float32")


def weighted_step(kind, perturbation, *batch):
    model = wrap(pooled(), perturbation, consistency_weight=5.0)
    loss = KINDS[kind][0](from_logits=True)
    model.compile(keras.optimizers.SGD(1.0), loss, run_eagerly=True)
    return step(model, *batch)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_an_example_of_weight_zero_influences_nothing(kind):
    x, labels = token_ids(), KINDS[kind][1]
    changed, changed_labels = x.copy(), labels.copy()
    changed[WEIGHT == 0] = token_ids(seed=5)[WEIGHT == 0]
    changed_labels[WEIGHT == 0] = labels[:2]
    assert (changed_labels != labels).any()
    # Unlike one along the gradient, this moves examples of weight 0 too.
    assert_equal(
        weighted_step(kind, Shift(), x, labels, WEIGHT),
        weighted_step(kind, Shift(), changed, changed_labels, WEIGHT),
    )


@pytest.mark.slow
def test_examples_of_weight_zero_count_in_the_mean_as_in_keras():
    """The sum over the examples is divided by the number of all of them."""
    x, labels, kept = token_ids(), KINDS["softmax"][1], WEIGHT > 0
    attack = keras_uegr.FastGradient(0.3)
    assert_equal(
        weighted_step("softmax", attack, x, labels, WEIGHT),
        weighted_step("softmax", attack, x[kept], labels[kept], WEIGHT[kept]),
        EXAMPLES / kept.sum(),
    )


def test_weights_count_on_the_steps_of_the_ascent():
    make_loss, labels = KINDS["softmax"]
    x, kept = token_ids(), WEIGHT > 0

    def one_step(*batch):
        model = wrap(
            pooled(),
            keras_uegr.ProjectedGradient(0.3, steps=2, train_on_steps=True),
            dropout=None,
            sub_models=1,
            clean_weight=0,
            consistency_weight=0,
        )
        model.compile(keras.optimizers.SGD(1.0), make_loss(from_logits=True))
        return step(model, *batch)

    logs, gradient = one_step(x, labels, WEIGHT)
    expected, few = one_step(x[kept], labels[kept], WEIGHT[kept])
    factor = EXAMPLES / kept.sum()
    assert factor * logs["adversarial_loss"] == pytest.approx(
        expected["adversarial_loss"], rel=1e-4
    )
    for ours, wanted in zip(gradient, few, strict=True):
        np.testing.assert_allclose(factor * ours, wanted, atol=1e-5)


def test_weights_may_have_an_axis_of_one():
    x, labels = token_ids(), KINDS["softmax"][1]
    attack = keras_uegr.FastGradient(0.3)
    found, expected = (
        weighted_step("softmax", attack, x, labels, weight)
        for weight in (WEIGHT[:, None], WEIGHT)
    )
    assert_equal(found, expected)
    assert found[0]["perturbation_norm"] == pytest.approx(
        expected[0]["perturbation_norm"], rel=1e-5
    )


@pytest.mark.parametrize("reduction", ["mean", "mean_with_sample_weight"])
def test_weights_of_tokens_may_have_an_axis_of_one(reduction):
    found, expected = (
        reduced_step(reduction, tagger(), TAGS, weight)[0]
        for weight in (TOKEN_WEIGHT[..., None], TOKEN_WEIGHT)
    )
    assert_equal(found, expected)


@pytest.mark.parametrize("container", [list, tuple])
def test_labels_and_weights_of_one_output_may_come_in_a_list(container):
    make_loss, labels = KINDS["softmax"]

    def fitted(labels, weight):
        model = wrap(pooled(), keras_uegr.FastGradient(0.3), warmup_steps=0)
        model.compile(keras.optimizers.SGD(1.0), make_loss(from_logits=True))
        x = token_ids()
        logs = model.fit(x, labels, sample_weight=weight, verbose=0).history
        return {name: values[0] for name, values in logs.items()}

    found = fitted(container([labels]), container([WEIGHT]))
    assert found == pytest.approx(fitted(labels, WEIGHT), rel=1e-4)


def test_all_weights_zero_leaves_the_model_as_it_is():
    model = wrap(pooled(), keras_uegr.FastGradient(0.3))
    make_loss, labels = KINDS["softmax"]
    model.compile(
        keras.optimizers.SGD(1.0), make_loss(from_logits=True), run_eagerly=True
    )
    logs, gradient = step(model, token_ids(), labels, np.zeros(EXAMPLES))
    assert [logs[name] for name in TERMS] == [0.0] * len(TERMS)
    for part in gradient:
        np.testing.assert_array_equal(part, 0.0)


def tagger(mask_zero=False, dropout=0.0):
    """Classifies each token by itself; weights depend on nothing."""
    parameters = reference.random_parameters(20, 5, 4, 3)
    x = keras.Input((None,), dtype="int32")
    embedding = keras.layers.Embedding(20, 5, mask_zero=mask_zero)
    hidden = keras.layers.Dense(4, activation="tanh")(embedding(x))
    hidden = keras.layers.Dropout(dropout)(hidden)
    model = keras.Model(x, keras.layers.Dense(3)(hidden))
    for weight, value in zip(model.weights, parameters.values(), strict=True):
        weight.assign(value)
    return model


def tagger_logits(embedded):
    parameters = reference.random_parameters(20, 5, 4, 3)
    hidden = np.tanh(embedded @ parameters["kernel_1"] + parameters["bias_1"])
    return hidden @ parameters["kernel_2"] + parameters["bias_2"]


def tagger_table():
    return reference.random_parameters(20, 5, 4, 3)["embedding"]


TAGS = np.random.default_rng(1).integers(0, 3, (EXAMPLES, 7))
TOKEN_WEIGHT = np.ones((EXAMPLES, 7), "float32")
TOKEN_WEIGHT[:, 5:] = 0.0
TOKEN_WEIGHT[2, 1:] = 0.0
TOKEN_WEIGHT[:, 0] = 2.0


@pytest.mark.slow
def test_a_token_of_weight_zero_influences_nothing():
    x, changed, changed_tags = token_ids(), token_ids(seed=5), 2 - TAGS
    unweighted = TOKEN_WEIGHT == 0
    changed = np.where(unweighted, changed, x)
    changed_tags = np.where(unweighted, changed_tags, TAGS)
    assert (changed != x).any()

    def one_step(*batch):
        model = wrap(
            tagger(),
            keras_uegr.FastGradient(0.3, relative=False),
            consistency_weight=5.0,
        )
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        model.compile(keras.optimizers.SGD(1.0), loss, run_eagerly=True)
        return step(model, *batch, TOKEN_WEIGHT)

    assert_equal(one_step(x, TAGS), one_step(changed, changed_tags))


IGNORING = keras.losses.SparseCategoricalCrossentropy(
    from_logits=True, ignore_class=-100
)


@pytest.mark.slow
def test_a_token_whose_label_is_ignored_influences_nothing():
    x, changed = token_ids(), token_ids(seed=5)
    ignored = TOKEN_WEIGHT == 0
    tags = np.where(ignored, -100, TAGS)

    def one_step(x):
        # Unlike one along the gradient, it moves tokens that are ignored too.
        model = wrap(tagger(), Shift(), consistency_weight=5.0)
        model.compile(keras.optimizers.SGD(1.0), IGNORING, run_eagerly=True)
        return step(model, x, tags)

    assert_equal(one_step(x), one_step(np.where(ignored, changed, x)))


@pytest.mark.parametrize("how", ["ignored", "weighted"])
def test_confidence_is_that_of_the_tokens_whose_label_counts(how):
    model = wrap(tagger(), None)
    model.compile("sgd", IGNORING)
    batch = batch_of(np.where(TOKEN_WEIGHT == 0, -100, TAGS))
    if how == "weighted":
        weight = ops.convert_to_tensor(TOKEN_WEIGHT)
        batch = batch_of(TAGS)._replace(sample_weight=weight)
    _, clean = objective.clean_pass(model, batch, None)
    probabilities = reference.softmax(
        tagger_logits(tagger_table()[token_ids()])
    )
    losses = -np.log(
        np.take_along_axis(probabilities, TAGS[..., None], axis=-1)[..., 0]
    )
    expected = np.average(losses, axis=1, weights=TOKEN_WEIGHT != 0)
    np.testing.assert_allclose(
        ops.convert_to_numpy(clean.confidence), np.exp(-expected), rtol=1e-4
    )


def test_token_losses_are_weighed_as_documented():
    model = wrap(tagger(), Shift())
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.SGD(1.0), loss, run_eagerly=True)
    logs, _ = step(model, token_ids(), TAGS, TOKEN_WEIGHT)
    embedded = tagger_table()[token_ids()]
    clean = reference.softmax(tagger_logits(embedded))
    shifted = reference.softmax(tagger_logits(embedded + 0.5))
    divergence = reference.jensen_shannon(np.stack([shifted, shifted, clean]))
    divergence = (divergence * TOKEN_WEIGHT).sum(axis=1) / (
        TOKEN_WEIGHT != 0
    ).sum(axis=1)
    assert logs["js_divergence"] == pytest.approx(divergence.mean(), rel=1e-4)

    def cross_entropy(probabilities):
        label = np.take_along_axis(probabilities, TAGS[..., None], axis=-1)
        return (-np.log(label[..., 0]) * TOKEN_WEIGHT).mean()

    assert logs["clean_loss"] == pytest.approx(cross_entropy(clean), rel=1e-4)
    assert logs["adversarial_loss"] == pytest.approx(
        cross_entropy(shifted), rel=1e-4
    )


def test_weights_of_tokens_are_none_of_padding():
    def divergence(x, tags, weight):
        model = wrap(tagger(mask_zero=True), Shift())
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        model.compile(keras.optimizers.SGD(0.0), loss)
        return step(model, x, tags, weight)[0]["js_divergence"]

    add = functools.partial(np.pad, pad_width=((0, 0), (0, 3)))
    expected = divergence(token_ids(), TAGS, TOKEN_WEIGHT)
    found = divergence(
        add(token_ids()), add(TAGS), add(TOKEN_WEIGHT, constant_values=5.0)
    )
    assert found == pytest.approx(expected, rel=1e-4)


def test_masked_tokens_count_in_no_loss():
    """A Keras mask counts in the adversarial loss as in the clean one."""
    model = wrap(tagger(mask_zero=True), None, consistency_weight=0.0)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.SGD(1.0), loss, run_eagerly=True)
    before = model.get_weights()
    x = token_ids()
    x[:, 4:] = 0
    changed = np.where(x == 0, 2 - TAGS, TAGS)
    assert (changed != TAGS).any()
    logs, _ = step(model, x, TAGS)
    assert logs["adversarial_loss"] == pytest.approx(
        logs["clean_loss"], rel=1e-5
    )
    model.set_weights(before)
    other_logs, _ = step(model, x, changed)
    for name in TERMS[:3]:
        assert other_logs[name] == pytest.approx(logs[name], rel=1e-5)


@pytest.mark.parametrize("sub_models", [1, 2])
def test_each_loss_weighs_masked_tokens_by_the_weights_as_they_came(sub_models):
    """Keras multiplies weights by the mask; on PyTorch in place."""
    x, weight = token_ids(), TOKEN_WEIGHT + 0.5
    x[:, 4:] = 0
    model = wrap(
        tagger(mask_zero=True),
        None,
        sub_models=sub_models,
        consistency_weight=0.0,
    )
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.SGD(0.0), loss)
    # Of one batch: `train_on_batch` hands arrays on, which PyTorch copies.
    history = model.fit(x, TAGS, sample_weight=weight, verbose=0).history
    expected = model.evaluate(x, TAGS, sample_weight=weight, verbose=0)
    for name in ("clean_loss", "adversarial_loss"):
        assert history[name] == [pytest.approx(expected, rel=1e-5)]


def test_metrics_see_the_keras_mask_as_in_plain_training():
    x = token_ids()
    x[:, 4:] = 0
    accuracies = []
    for wrapped in (False, True):
        model = tagger(mask_zero=True)
        if wrapped:
            model = wrap(model, Shift())
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        model.compile(
            keras.optimizers.SGD(0.0),
            loss,
            metrics=["accuracy"],
            run_eagerly=True,
        )
        logs = model.train_on_batch(x, TAGS, return_dict=True)
        accuracies.append(float(logs["accuracy"]))
    assert accuracies[1] == pytest.approx(accuracies[0])


def two_outputs():
    """The pooled model with a head for a topic and a head for a tone."""

    def heads(hidden):
        return {
            "topic": keras.layers.Dense(3, name="topic")(hidden),
            "tone": keras.layers.Dense(2, name="tone")(hidden),
        }

    model = pooled_model(outputs=heads)
    rng = np.random.default_rng(0)
    for weight in model.weights:
        weight.assign(rng.normal(0.0, 0.7, weight.shape))
    return model


def two_losses():
    return {
        "topic": keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        "tone": keras.losses.BinaryCrossentropy(from_logits=True),
    }


def two_labels():
    return {"topic": KINDS["softmax"][1], "tone": KINDS["sigmoid"][1][:, :2]}


def two_output_logits(model, embedded):
    """Logits of both outputs in NumPy, from the weights of the model."""
    dense = [model.get_layer(name) for name in ("hidden", "topic", "tone")]
    kernel, bias = dense[0].get_weights()
    hidden = np.tanh(embedded.mean(axis=1) @ kernel + bias)
    return [
        hidden @ layer.get_weights()[0] + layer.get_weights()[1]
        for layer in dense[1:]
    ]


def two_output_terms(topic, tone, weights):
    """The two losses and, per example, the probabilities, in NumPy."""
    labels = two_labels()
    topic = reference.softmax(topic)
    tone = 1 / (1 + np.exp(-tone))
    both = np.stack([tone, 1 - tone], axis=-1)
    topic_loss = -np.log(topic[range(EXAMPLES), labels["topic"]])
    tone_loss = -np.log(
        np.where(labels["tone"] == 1, both[..., 0], both[..., 1])
    ).mean(axis=1)
    losses = [
        (topic_loss * weights["topic"]).mean(),
        (tone_loss * weights["tone"]).mean(),
    ]
    return losses, topic, both


@pytest.mark.parametrize("weighted", [False, True])
def test_two_outputs_with_two_losses(weighted):
    inner = two_outputs()
    model = wrap(inner, Shift())
    model.compile(keras.optimizers.SGD(0.1), two_losses(), run_eagerly=True)
    weights = dict.fromkeys(("topic", "tone"), np.ones(EXAMPLES))
    if weighted:
        weights = {
            "topic": np.array([1.0, 0, 2, 0, 1, 1]),
            "tone": np.array([0, 3.0, 1, 1, 0, 1]),
        }
    embedded = inner.get_layer("embedding").get_weights()[0][token_ids()]
    clean, topic, tone = two_output_terms(
        *two_output_logits(inner, embedded), weights
    )
    adversarial, shifted_topic, shifted_tone = two_output_terms(
        *two_output_logits(inner, embedded + 0.5), weights
    )
    divergence = (
        weights["topic"]
        * reference.jensen_shannon(
            np.stack([shifted_topic, shifted_topic, topic])
        )
        + weights["tone"]
        * reference.jensen_shannon(
            np.stack([shifted_tone, shifted_tone, tone])
        ).mean(axis=-1)
    ).mean()
    logs, _ = step(
        model, token_ids(), two_labels(), weights if weighted else None
    )
    assert logs["clean_loss"] == pytest.approx(sum(clean), rel=1e-4)
    assert logs["adversarial_loss"] == pytest.approx(sum(adversarial), rel=1e-4)
    assert logs["js_divergence"] == pytest.approx(divergence, rel=1e-3)
    assert logs["loss"] == pytest.approx(
        sum(clean) + sum(adversarial) + model.consistency_weight * divergence,
        rel=1e-4,
    )
    # Keras' own metric of each output is that of the clean predictions.
    assert sum(clean) != pytest.approx(sum(adversarial), rel=0.01)
    assert logs["topic_loss"] == pytest.approx(clean[0], rel=1e-4)
    assert logs["tone_loss"] == pytest.approx(clean[1], rel=1e-4)


def test_loss_weights_leave_divergence_and_confidence_alone():
    inner, weights = two_outputs(), {"topic": 3.0, "tone": 0.0}
    logs = []
    for loss_weights in (None, weights):
        model = wrap(inner, Shift())
        model.compile(keras.optimizers.SGD(0.0), two_losses(), loss_weights)
        logs.append(step(model, token_ids(), two_labels())[0])
    assert logs[0]["clean_loss"] != pytest.approx(logs[1]["clean_loss"], 0.1)
    assert logs[0]["js_divergence"] == pytest.approx(
        logs[1]["js_divergence"], rel=1e-5
    )
    labels = keras.tree.map_structure(ops.convert_to_tensor, two_labels())
    batch = objective.Batch(ops.convert_to_tensor(token_ids()), labels)
    _, clean = objective.clean_pass(model, batch, None)
    table = inner.get_layer("embedding").get_weights()[0]
    topic, tone = two_output_logits(inner, table[token_ids()])
    right = reference.softmax(topic)[range(EXAMPLES), two_labels()["topic"]]
    sides = np.where(two_labels()["tone"] == 1, tone, -tone)
    expected = right * np.exp(-np.log1p(np.exp(-sides)).mean(axis=1))
    np.testing.assert_allclose(
        ops.convert_to_numpy(clean.confidence), expected, rtol=1e-4
    )


@pytest.mark.parametrize("weight", [0.0, 1.0])
@pytest.mark.parametrize("name", ["a", "z"])
@pytest.mark.parametrize("shape", [(), (5,)])
def test_an_output_without_a_loss_need_not_be_one_row_for_each_example(
    name, shape, weight
):
    """It changes nothing, wherever its name is in the alphabet."""

    def heads(hidden):
        logits = keras.layers.Dense(3, name="logits")(hidden)
        other = ops.mean(ops.square(hidden)) + ops.zeros(shape)
        return {"logits": logits, name: other}

    make_loss, labels = KINDS["softmax"]
    weights = {"adversarial_weight": weight, "consistency_weight": weight}
    alone = wrap(pooled(), Shift(), **weights)
    alone.compile(keras.optimizers.SGD(0.1), make_loss(from_logits=True))
    expected, expected_gradient = step(alone, token_ids(), labels)
    model = wrap(pooled(outputs=heads), Shift(), **weights)
    loss = {"logits": make_loss(from_logits=True)}
    model.compile(keras.optimizers.SGD(0.1), loss)
    found, gradient = step(model, token_ids(), {"logits": labels})
    for term in TERMS:
        assert found[term] == pytest.approx(expected[term], rel=1e-5)
    for ours, wanted in zip(gradient, expected_gradient, strict=True):
        np.testing.assert_allclose(ours, wanted, atol=1e-6)


@pytest.mark.parametrize("kind", [list, tuple])
def test_labels_in_a_list_are_those_of_the_sorted_names(kind):
    model = wrap(two_outputs(), Shift())
    model.compile(keras.optimizers.SGD(0.0), two_losses(), run_eagerly=True)
    labels = two_labels()
    expected, _ = step(model, token_ids(), labels)
    listed = kind(labels[name] for name in ("tone", "topic"))
    model.reset_metrics()
    found, _ = step(model, token_ids(), listed)
    assert found == pytest.approx(expected)


def divergence_of(inner, outputs):
    model = wrap(inner, Shift(), consistency_outputs=outputs)
    model.compile(keras.optimizers.SGD(0.0), two_losses(), run_eagerly=True)
    return step(model, token_ids(), two_labels())[0]["js_divergence"]


def test_divergence_is_that_of_the_outputs_asked_for():
    inner = two_outputs()
    topic, tone = (divergence_of(inner, [name]) for name in ("topic", "tone"))
    assert topic > 1e-4
    assert tone > 1e-4
    assert topic != pytest.approx(tone, rel=0.01)
    assert divergence_of(inner, None) == pytest.approx(topic + tone, rel=1e-4)
    message = r"here \['topic', 'tone'\]. Received: .*\['mood'\]"
    with pytest.raises(ValueError, match=message):
        divergence_of(inner, ["mood"])


def divergence_of_list(inner, outputs):
    """As `divergence_of`, the inputs and outputs in lists."""
    factor = keras.Input((1,), name="factor")
    heads = [inner.output[name] * factor for name in ("topic", "tone")]
    listed = keras.Model([inner.input, factor], heads)
    model = wrap(listed, Shift(), consistency_outputs=outputs)
    losses, labels = two_losses(), two_labels()
    model.compile(
        keras.optimizers.SGD(0.0), list(losses.values()), run_eagerly=True
    )
    x = [token_ids(), np.ones((EXAMPLES, 1), "float32")]
    return step(model, x, list(labels.values()))[0]["js_divergence"]


def test_positions_name_the_outputs_of_a_list():
    inner = two_outputs()
    for position, name in enumerate(("topic", "tone")):
        expected = divergence_of(inner, [name])
        found = divergence_of_list(inner, [position])
        assert found == pytest.approx(expected, rel=1e-4)
    expected = divergence_of(inner, None)
    assert divergence_of_list(inner, [0, 1]) == pytest.approx(expected, 1e-4)
    message = r"here \[0, 1\]. Received: consistency_outputs=\[2\]"
    with pytest.raises(ValueError, match=message):
        divergence_of_list(inner, [2])


@pytest.mark.parametrize("outputs", [[], "topic"])
def test_outputs_to_compare_are_a_list(outputs):
    with pytest.raises(ValueError, match="must be a list of names of outputs"):
        keras_uegr.UEGRModel(two_outputs(), consistency_outputs=outputs)


def test_regularization_losses_count_once():
    def regularized(hidden):
        return keras.layers.Dense(
            3,
            kernel_regularizer=keras.regularizers.L2(0.5),
            activity_regularizer=keras.regularizers.L2(0.1),
            name="logits",
        )(hidden)

    inner = pooled_model(outputs=regularized)
    make_loss, labels = KINDS["softmax"]
    model = wrap(inner, None, sub_models=3, consistency_weight=0.0)
    model.compile(
        keras.optimizers.SGD(0.0), make_loss(from_logits=True), run_eagerly=True
    )
    kernel = inner.get_layer("logits").get_weights()[0]
    logits = ops.convert_to_numpy(inner(token_ids()))
    regularization = (
        0.5 * np.square(kernel).sum() + 0.1 * np.square(logits).sum() / EXAMPLES
    )
    assert regularization > 0.1
    for _ in range(2):
        model.reset_metrics()
        logs, _ = step(model, token_ids(), labels)
        # Nothing is perturbed or dropped: the two losses differ by this alone.
        assert logs["clean_loss"] - logs["adversarial_loss"] == pytest.approx(
            regularization, rel=1e-4
        )
        assert logs["loss"] == pytest.approx(
            logs["clean_loss"] + logs["adversarial_loss"], rel=1e-5
        )


@pytest.mark.parametrize("clean_weight", [0, 0.5])
def test_regularization_of_several_numbers_is_their_sum(clean_weight):
    class Penalty(keras.layers.Layer):
        def call(self, hidden):
            self.add_loss(keras.ops.convert_to_tensor([1.0, 2.0, 4.0]))
            return hidden

    make_loss, labels = KINDS["softmax"]
    inner = pooled_model(outputs=lambda x: keras.layers.Dense(3)(Penalty()(x)))
    model = wrap(inner, None, clean_weight=clean_weight)
    model.compile(keras.optimizers.SGD(0.0), make_loss(from_logits=True))
    logs, _ = step(model, token_ids(), labels)
    assert np.shape(logs["loss"]) == ()
    assert logs["loss"] > 7.0


@pytest.mark.slow
@pytest.mark.parametrize("clean_weight", [0, 0.5, 1])
@pytest.mark.parametrize("train_on_steps", [False, True])
def test_regularization_counts_once_whatever_is_trained_on(
    clean_weight, train_on_steps
):
    def update(factor):
        def regularized(hidden):
            regularizer = keras.regularizers.L2(factor)
            return keras.layers.Dense(
                3, kernel_regularizer=regularizer, name="logits"
            )(hidden)

        inner = pooled_model(
            outputs=regularized,
            parameters=reference.random_parameters(20, 5, 4, 3),
        )
        perturbation = keras_uegr.ProjectedGradient(
            0.1, steps=3, train_on_steps=train_on_steps
        )
        model = keras_uegr.UEGRModel(
            inner,
            perturbation,
            dropout=None,
            sub_models=1,
            token_share=1,
            clean_weight=clean_weight,
            consistency_weight=0,
        )
        make_loss, labels = KINDS["softmax"]
        model.compile(keras.optimizers.SGD(0.1), make_loss(from_logits=True))
        model.train_on_batch(token_ids(), labels)
        return inner.get_layer("logits").get_weights()[0]

    kernel = reference.random_parameters(20, 5, 4, 3)["kernel_2"]
    np.testing.assert_allclose(
        update(0.5) - update(0.0), -0.1 * 2 * 0.5 * kernel, atol=1e-6
    )


def test_clean_loss_is_weighed():
    def update(clean_weight, adversarial_weight):
        parameters = reference.random_parameters(20, 5, 4, 3)
        inner = pooled_model(parameters=parameters)
        model = keras_uegr.UEGRModel(
            inner,
            None,
            dropout=keras_uegr.AdaptiveDropout(0.0, 0.0),
            clean_weight=clean_weight,
            adversarial_weight=adversarial_weight,
            consistency_weight=0,
        )
        make_loss, labels = KINDS["softmax"]
        model.compile(keras.optimizers.SGD(0.1), make_loss(from_logits=True))
        model.train_on_batch(token_ids(), labels)
        return inner.get_weights()[1] - parameters["kernel_1"]

    # Nothing is perturbed or dropped, so both losses are the same.
    np.testing.assert_allclose(update(0.3, 0.5), update(0.8, 0.0), atol=1e-6)


@pytest.mark.parametrize(
    ("clean_weight", "adversarial_weight"),
    [(0.0, 1.0), (0.25, 1.0), (2.0, 0.0)],
)
def test_the_metric_of_the_clean_loss_is_before_its_weight(
    clean_weight, adversarial_weight
):
    make_loss, labels = KINDS["softmax"]
    model = wrap(
        pooled(),
        None,
        clean_weight=clean_weight,
        adversarial_weight=adversarial_weight,
        consistency_weight=0,
    )
    model.compile(keras.optimizers.SGD(0.0), make_loss(from_logits=True))
    logs, _ = step(model, token_ids(), labels)
    parameters = reference.random_parameters(20, 5, 4, 3)
    logits, _ = reference.forward(
        parameters, parameters["embedding"][token_ids()]
    )
    probabilities = reference.softmax(logits)
    expected = -np.log(probabilities[range(EXAMPLES), labels]).mean()
    assert logs["clean_loss"] == pytest.approx(expected, rel=1e-4)
    # Nothing is perturbed or dropped, so both losses are the same.
    assert logs["loss"] == pytest.approx(
        (clean_weight + adversarial_weight) * expected, rel=1e-4
    )


@pytest.mark.parametrize("include_clean", [True, False])
def test_clean_output_is_a_member_of_the_divergence_on_request(include_clean):
    model = wrap(pooled(), Shift(), include_clean=include_clean)
    make_loss, labels = KINDS["softmax"]
    model.compile(
        keras.optimizers.SGD(1.0), make_loss(from_logits=True), run_eagerly=True
    )
    logs, _ = step(model, token_ids(), labels)
    parameters = reference.random_parameters(20, 5, 4, 3)
    embedded = parameters["embedding"][token_ids()]
    clean, shifted = (
        reference.softmax(reference.forward(parameters, e)[0])
        for e in (embedded, embedded + 0.5)
    )
    members = [shifted, shifted, clean] if include_clean else [shifted] * 2
    expected = reference.jensen_shannon(np.stack(members)).mean()
    assert (expected > 1e-3) == include_clean
    assert logs["js_divergence"] == pytest.approx(expected, abs=1e-6)


def test_one_sub_model_with_the_clean_output_has_a_divergence():
    model = wrap(pooled(), Shift(), sub_models=1)
    make_loss, labels = KINDS["softmax"]
    model.compile(
        keras.optimizers.SGD(1.0), make_loss(from_logits=True), run_eagerly=True
    )
    logs, _ = step(model, token_ids(), labels)
    assert logs["js_divergence"] > 1e-3


def test_a_loss_that_sums_is_averaged_over_the_sub_models():
    _, labels = KINDS["softmax"]
    loss = keras.losses.SparseCategoricalCrossentropy(
        from_logits=True, reduction="sum"
    )
    model = wrap(pooled(), Shift(), sub_models=3)
    model.compile(keras.optimizers.SGD(0.0), loss, run_eagerly=True)
    logs, _ = step(model, token_ids(), labels)
    parameters = reference.random_parameters(20, 5, 4, 3)
    embedded = parameters["embedding"][token_ids()]
    for name, e in (
        ("clean_loss", embedded),
        ("adversarial_loss", embedded + 0.5),
    ):
        probabilities = reference.softmax(reference.forward(parameters, e)[0])
        expected = -np.log(probabilities[range(EXAMPLES), labels]).sum()
        assert logs[name] == pytest.approx(expected, rel=1e-4)


def reduced_step(reduction, inner, labels, *weight, **arguments):
    """One step with a loss of that `reduction`, and the model."""
    loss = keras.losses.SparseCategoricalCrossentropy(
        from_logits=True, reduction=reduction
    )
    model = wrap(inner, Shift(), **arguments)
    model.compile(keras.optimizers.SGD(1.0), loss, run_eagerly=True)
    return step(model, token_ids(), labels, *weight), model


@pytest.mark.parametrize("weight", [(), (WEIGHT,)])
def test_a_loss_that_sums_multiplies_every_term_alike(weight):
    labels = KINDS["softmax"][1]
    arguments = {"dropout": keras_uegr.AdaptiveDropout(0, 0, "divergence")}
    summed, model = reduced_step("sum", pooled(), labels, *weight, **arguments)
    mean, other = reduced_step("mean", pooled(), labels, *weight, **arguments)
    assert_equal(summed, mean, 1 / EXAMPLES)
    # The policy's target is that of an example.
    for found in (model, other):
        assert float(found.state.divergence) == pytest.approx(
            mean[0]["js_divergence"], rel=1e-4
        )


@pytest.mark.parametrize("factor", [100.0, 0.01])
@pytest.mark.parametrize("tokens", [False, True])
def test_a_mean_by_weights_leaves_their_scale_out_of_every_term(factor, tokens):
    make_inner, labels, weight = pooled, KINDS["softmax"][1], WEIGHT
    if tokens:
        make_inner, labels, weight = tagger, TAGS, TOKEN_WEIGHT
    scaled, expected = (
        reduced_step("mean_with_sample_weight", make_inner(), labels, each)[0]
        for each in (factor * weight, weight)
    )
    assert_equal(scaled, expected)


def test_a_mean_by_weights_divides_the_divergence_by_their_sum():
    reduction = "mean_with_sample_weight"
    labels = KINDS["softmax"][1]
    mean, _ = reduced_step("mean", pooled(), labels, WEIGHT)
    by_weights, _ = reduced_step(reduction, pooled(), labels, WEIGHT)
    assert_equal(by_weights, mean, WEIGHT.mean())
    unweighted, _ = reduced_step("mean", pooled(), labels)
    assert_equal(reduced_step(reduction, pooled(), labels)[0], unweighted)
    of_tokens = (
        TOKEN_WEIGHT.sum(axis=1) / (TOKEN_WEIGHT != 0).sum(axis=1)
    ).mean()
    mean, _ = reduced_step("mean", tagger(), TAGS, TOKEN_WEIGHT)
    by_weights, _ = reduced_step(reduction, tagger(), TAGS, TOKEN_WEIGHT)
    assert of_tokens * by_weights[0]["js_divergence"] == pytest.approx(
        mean[0]["js_divergence"], rel=1e-4
    )


def test_a_mean_by_weights_of_zero_leaves_the_model_as_it_is():
    (logs, gradient), _ = reduced_step(
        "mean_with_sample_weight",
        pooled(),
        KINDS["softmax"][1],
        np.zeros(EXAMPLES),
    )
    assert [logs[name] for name in TERMS] == [0.0] * len(TERMS)
    for part in gradient:
        np.testing.assert_array_equal(part, 0.0)


def batch_of(y, x=None):
    return objective.Batch(
        ops.convert_to_tensor(token_ids() if x is None else x),
        ops.convert_to_tensor(y),
    )


def test_confidence_is_the_probability_of_the_label():
    make_loss, labels = KINDS["softmax"]
    model = wrap(pooled(), None)
    model.compile("sgd", make_loss(from_logits=True))
    _, clean = objective.clean_pass(model, batch_of(labels), None)
    parameters = reference.random_parameters(20, 5, 4, 3)
    logits, _ = reference.forward(
        parameters, parameters["embedding"][token_ids()]
    )
    np.testing.assert_allclose(
        ops.convert_to_numpy(clean.confidence),
        reference.softmax(logits)[range(EXAMPLES), labels],
        rtol=1e-4,
    )


def test_confidence_leaves_out_padding():
    model = wrap(tagger(mask_zero=True), None)
    model.compile(
        "sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    )
    x = token_ids()
    x[:, 4:] = 0
    padded, cut = (
        ops.convert_to_numpy(
            objective.clean_pass(
                model, batch_of(TAGS[:, :end], x[:, :end]), None
            )[1].confidence
        )
        for end in (7, 4)
    )
    np.testing.assert_allclose(padded, cut, rtol=1e-5)


def test_padding_and_named_tokens_may_not_move():
    make_loss, labels = KINDS["softmax"]
    model = wrap(pooled(mask_zero=True), Shift(), unperturbed_token_ids=[3, 9])
    model.compile("sgd", make_loss(from_logits=True))
    x = token_ids()
    x[:, :3] = [3, 9, 4]
    x[0, 4:] = 0
    _, clean = objective.clean_pass(model, batch_of(labels, x), None)
    np.testing.assert_array_equal(
        ops.convert_to_numpy(clean.embedded.movable)[..., 0],
        ~np.isin(x, [0, 3, 9]),
    )
    np.testing.assert_array_equal(
        ops.convert_to_numpy(clean.embedded.unpadded), x != 0
    )


class Padding:
    """A preprocessor whose tokenizer pads with token 0."""

    tokenizer = types.SimpleNamespace(pad_token_id=0)

    def __call__(self, x):
        return x


def projecting(width, **arguments):
    """A `UEGRModel` that is given features, and embeds them by `Dense`."""
    features = keras.Input((7, width))
    hidden = keras.layers.Dense(5, name="projection")(features)
    pooled = keras.layers.GlobalAveragePooling1D()(hidden)
    model = wrap(
        keras.Model(features, keras.layers.Dense(3)(pooled)),
        Shift(),
        embedding="projection",
        dropout=None,
        **arguments,
    )
    model.compile("sgd", KINDS["softmax"][0](from_logits=True))
    return model


@pytest.mark.parametrize("width", [1, 7, EXAMPLES])
def test_a_layer_that_embeds_no_token_ids_is_perturbed_everywhere(width):
    x = np.random.default_rng(0).normal(size=(EXAMPLES, 7, width))
    batch = batch_of(KINDS["softmax"][1], x.astype("float32"))
    _, clean = objective.clean_pass(projecting(width), batch, None)
    np.testing.assert_array_equal(
        ops.convert_to_numpy(clean.embedded.movable),
        np.ones((EXAMPLES, 7, 1)),
    )


def test_padding_of_a_layer_that_embeds_no_token_ids_is_not_guessed():
    model = projecting(2, preprocessor=Padding())
    x = np.zeros((EXAMPLES, 7, 2), "float32")
    batch = batch_of(KINDS["softmax"][1], x)
    _, clean = objective.clean_pass(model, batch, None)
    np.testing.assert_array_equal(
        ops.convert_to_numpy(clean.embedded.movable), np.ones((EXAMPLES, 7, 1))
    )


def test_token_ids_can_not_be_told_apart_by_a_layer_that_has_none():
    model = projecting(2, unperturbed_token_ids=[3])
    x = np.ones((EXAMPLES, 7, 2), "float32")
    batch = batch_of(KINDS["softmax"][1], x)
    message = r"`unperturbed_token_ids`.*\(3,\), embedding=projection.*7, 2\)"
    with pytest.raises(ValueError, match=message):
        objective.clean_pass(model, batch, None)


def test_an_embedding_that_the_input_does_not_reach_is_told():
    inner = pooled()
    inner.token_embedding = keras.layers.Embedding(20, 5, name="unused")
    inner.token_embedding.build((None, 7))
    model = wrap(inner, Shift())
    make_loss, labels = KINDS["softmax"]
    model.compile("sgd", make_loss(from_logits=True))
    message = "layer unused was not called .* `embedding` of `UEGRModel`"
    with pytest.raises(ValueError, match=message):
        objective.clean_pass(model, batch_of(labels), None)


def test_a_loss_of_its_own_needs_the_kind_of_output_to_be_set():
    def own_loss(y_true, y_pred):
        return ops.mean(ops.square(y_true - y_pred), axis=-1)

    labels = KINDS["regression"][1]
    compiled = []
    for kind in (None, "regression"):
        model = wrap(pooled(), Shift(), output_kind=kind)
        model.compile(keras.optimizers.SGD(0.1), own_loss, run_eagerly=True)
        compiled.append(model)
    with pytest.raises(ValueError, match="Set its argument `output_kind`"):
        compiled[0].train_on_batch(token_ids(), labels)
    logs, _ = step(compiled[1], token_ids(), labels)
    parameters = reference.random_parameters(20, 5, 4, 3)
    embedded = parameters["embedding"][token_ids()]
    forward = functools.partial(reference.forward, parameters)
    members = [forward(e)[0] for e in [embedded + 0.5] * 2 + [embedded]]
    expected = np.stack(members).var(axis=0).mean()
    assert logs["js_divergence"] == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize(
    "kind", ["own", "probabilities", "generalized", "dice", "tversky"]
)
def test_divergence_is_that_of_what_the_outputs_are(kind):
    def own_loss(y_true, y_pred):
        return keras.losses.sparse_categorical_crossentropy(
            y_true, y_pred, from_logits=True
        )

    activation = None if kind == "own" else "softmax"
    parameters = reference.random_parameters(20, 5, 4, 3)
    inner = pooled_model(
        parameters=parameters,
        outputs=keras.layers.Dense(3, activation=activation),
    )
    model = wrap(inner, Shift(), output_kind="softmax")
    losses = {
        "own": own_loss,
        "probabilities": "sparse_categorical_crossentropy",
        "generalized": keras.losses.CategoricalGeneralizedCrossEntropy(),
        "dice": keras.losses.Dice(),
        "tversky": "tversky",
    }
    labels = KINDS["softmax"][1]
    if kind in ("dice", "tversky"):
        labels = np.eye(3)[labels]
    model.compile(keras.optimizers.SGD(0.0), losses[kind])
    logs, _ = step(model, token_ids(), labels)
    e = parameters["embedding"][token_ids()]
    members = [
        reference.forward(parameters, x)[0] for x in (e + 0.5, e + 0.5, e)
    ]
    expected = reference.jensen_shannon(reference.softmax(np.stack(members)))
    assert logs["js_divergence"] == pytest.approx(expected.mean(), rel=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize(
    "settings",
    [
        {"perturbation": keras_uegr.ProjectedGradient(0.5, steps=3)},
        {
            "perturbation": keras_uegr.ProjectedGradient(
                0.5, steps=3, train_on_steps=True
            ),
            "consistency_weight": 0,
            "sub_models": 1,
            "token_share": 1,
        },
        {
            "perturbation": keras_uegr.GaussianNoise(0.5),
            "sharpness_radius": 3.0,
        },
    ],
    ids=["ascent", "train_on_steps", "sharpness"],
)
def test_other_passes_leave_the_metrics_of_the_clean_one_alone(settings):
    inner = two_outputs()
    model = keras_uegr.UEGRModel(inner, dropout=None, **settings)
    model.compile(keras.optimizers.SGD(0.1), two_losses())
    embedded = inner.get_layer("embedding").get_weights()[0][token_ids()]
    weights = dict.fromkeys(("topic", "tone"), np.ones(EXAMPLES))
    clean, _, _ = two_output_terms(*two_output_logits(inner, embedded), weights)
    logs, _ = step(model, token_ids(), two_labels())
    assert logs["topic_loss"] == pytest.approx(clean[0], rel=1e-4)
    assert logs["tone_loss"] == pytest.approx(clean[1], rel=1e-4)


def test_metrics_under_sharpness_are_those_of_the_weights_as_they_are():
    make_loss, labels = KINDS["softmax"]
    found = []
    for radius in (0.0, 3.0):
        model = wrap(pooled(), Shift(), sharpness_radius=radius)
        model.compile(
            keras.optimizers.SGD(0.0),
            make_loss(from_logits=True),
            metrics=["accuracy", "sparse_categorical_crossentropy"],
        )
        found.append(step(model, token_ids(), labels)[0])
    assert found[1] == pytest.approx(found[0], rel=1e-5)


def test_the_gain_of_the_divergence_policy_holds_under_sharpness():
    policy = keras_uegr.DivergencePolicy(target=10.0, gain=0.02)
    make_loss, labels = KINDS["softmax"]
    model = keras_uegr.UEGRModel(
        pooled_model(rate=0.1),
        dropout=keras_uegr.AdaptiveDropout(0.0, 0.5, policy),
        sharpness_radius=0.1,
    )
    model.compile("sgd", make_loss(from_logits=True))
    for steps in (1, 2):
        model.train_on_batch(token_ids(), labels)
        fraction = float(ops.convert_to_numpy(model.state.fraction))
        assert fraction == pytest.approx(0.02 * steps, rel=1e-4)


@pytest.mark.parametrize("train_on_steps", [False, True])
def test_reported_loss_holds_the_regularization(train_on_steps):
    def total_loss(factor):
        regularizer = keras.regularizers.L2(factor)
        inner = pooled_model(
            outputs=keras.layers.Dense(3, kernel_regularizer=regularizer),
            parameters=reference.random_parameters(20, 5, 4, 3),
        )
        model = keras_uegr.UEGRModel(
            inner,
            keras_uegr.ProjectedGradient(
                0.1, steps=3, train_on_steps=train_on_steps
            ),
            dropout=None,
            sub_models=1,
            token_share=1,
            clean_weight=0,
            consistency_weight=0,
        )
        make_loss, labels = KINDS["softmax"]
        model.compile(keras.optimizers.SGD(0.1), make_loss(from_logits=True))
        return step(model, token_ids(), labels)[0]["loss"]

    kernel = reference.random_parameters(20, 5, 4, 3)["kernel_2"]
    assert total_loss(0.5) - total_loss(0.0) == pytest.approx(
        0.5 * np.square(kernel).sum(), rel=1e-4
    )


@pytest.mark.parametrize("policy", ["divergence", "confidence"])
def test_a_loss_of_its_own_has_the_kind_of_output_that_is_set(policy):
    """Also where the divergence isn't trained on."""

    def own_loss(y_true, y_pred):
        return keras.losses.sparse_categorical_crossentropy(
            y_true, y_pred, from_logits=True
        )

    model = keras_uegr.UEGRModel(
        pooled_model(),
        dropout=keras_uegr.AdaptiveDropout(0.3, 0.5, policy),
        consistency_weight=0.0,
        output_kind="softmax",
        warmup_steps=0,
    )
    model.compile(keras.optimizers.SGD(0.0), own_loss)
    logs, _ = step(model, token_ids(), KINDS["softmax"][1])
    assert logs["js_divergence"] > 0


def transposed_step(axis, **arguments):
    """A step of a tagger whose classes are the axis before the last."""
    inner = tagger()
    outputs = ops.transpose(inner.output, (0, 2, 1))
    model = wrap(keras.Model(inner.input, outputs), Shift(), **arguments)
    loss = keras.losses.CategoricalCrossentropy(from_logits=True, axis=axis)
    model.compile(keras.optimizers.SGD(1.0), loss)
    return step(model, token_ids(), np.eye(3)[TAGS].transpose(0, 2, 1))


def test_a_divergence_along_another_axis_than_the_last_is_told():
    message = (
        "last axis of the outputs: transpose them.*`consistency_weight=0`. "
        "Received: loss=categorical_crossentropy with axis=1"
    )
    with pytest.raises(ValueError, match=message):
        transposed_step(1)


def test_without_a_divergence_a_loss_may_have_any_axis():
    logs, gradient = transposed_step(1, consistency_weight=0)
    model = wrap(tagger(), Shift(), consistency_weight=0)
    loss = keras.losses.CategoricalCrossentropy(from_logits=True, axis=2)
    model.compile(keras.optimizers.SGD(1.0), loss)
    expected = step(model, token_ids(), np.eye(3)[TAGS])
    for term in TERMS[:3]:
        assert logs[term] == pytest.approx(expected[0][term], rel=1e-5)
    for ours, wanted in zip(gradient, expected[1], strict=True):
        np.testing.assert_allclose(ours, wanted, atol=1e-5)
    # Where it would only be shown, it is left out.
    assert logs["js_divergence"] == 0
    assert expected[0]["js_divergence"] > 0


@pytest.mark.parametrize(
    "settings",
    [
        {"dropout": keras_uegr.AdaptiveDropout(policy="divergence")},
        {
            "perturbation": keras_uegr.ProjectedGradient(
                objective="divergence", random_start=True
            )
        },
    ],
    ids=["policy", "perturbation"],
)
def test_what_follows_the_divergence_needs_its_kind(settings):
    model = keras_uegr.UEGRModel(
        pooled_model(), consistency_weight=0.0, **settings
    )
    model.compile("sgd", lambda y_true, y_pred: ops.mean(y_pred, axis=-1))
    with pytest.raises(ValueError, match="output_kind"):
        step(model, token_ids(), KINDS["softmax"][1])


@pytest.mark.parametrize("method", ["fit", "train_on_batch"])
def test_a_loss_may_read_a_variable_of_the_model(method):
    class Scaled(keras.layers.Layer):
        def build(self, shape):
            self.factor = self.add_weight(shape=(), initializer="ones")

        def call(self, hidden):
            return hidden + 0.0 * self.factor

    scaled = Scaled()
    model = wrap(
        pooled_model(outputs=lambda x: keras.layers.Dense(3)(scaled(x))),
        Shift(),
        clean_weight=0.0,
        consistency_weight=0.0,
        warmup_steps=0,
        output_kind="softmax",
    )

    def loss(y_true, y_pred):
        return scaled.factor * keras.losses.sparse_categorical_crossentropy(
            y_true, y_pred, from_logits=True
        )

    model.compile(keras.optimizers.SGD(0.1), loss)
    getattr(model, method)(token_ids(), KINDS["softmax"][1])
    assert float(ops.convert_to_numpy(scaled.factor)) < 1.0
