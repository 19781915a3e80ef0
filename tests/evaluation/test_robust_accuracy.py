import keras
import numpy as np
import pytest

import keras_uegr
from keras_uegr.evaluation import RobustAccuracy, attacked_predictions
from tests.backbones import tiny_bert, tiny_gpt2, tiny_texts
from tests.pooled_model import pooled_model

pytestmark = pytest.mark.slow


def wrapped(classifier):
    """A model whose training is plain: how it trains doesn't matter here."""
    return keras_uegr.UEGRModel(
        classifier, adversarial_weight=0, consistency_weight=0
    )


def compiled():
    model = wrapped(tiny_bert())
    model.compile(
        keras.optimizers.Adam(1e-2),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    return model


def attack(epsilon=0.3):
    return keras_uegr.ProjectedGradient(epsilon, steps=2)


def test_reports_what_the_attack_leaves_after_each_epoch():
    texts, labels = tiny_texts(12)
    model = compiled()
    model.optimizer.learning_rate = 3e-3
    reported, expected = RobustAccuracy(texts, labels, attack(0.1)), []

    def measure(epoch, logs):
        logits = attacked_predictions(model, texts, labels, attack(0.1))
        expected.append((logits.argmax(axis=-1) == labels).mean())

    history = model.fit(
        texts,
        np.array(labels),
        epochs=3,
        verbose=0,
        callbacks=[
            reported,
            keras.callbacks.LambdaCallback(on_epoch_end=measure),
        ],
    ).history
    assert len(set(expected)) > 1
    np.testing.assert_allclose(
        history["val_robust_accuracy"], expected, atol=1e-6
    )


def test_radius_zero_is_the_accuracy_and_a_metric_may_be_given():
    texts, labels = tiny_texts(12)
    model = compiled()
    history = model.fit(
        texts,
        np.array(labels),
        validation_data=(texts, np.array(labels)),
        verbose=0,
        callbacks=[
            RobustAccuracy(texts, labels, attack(0.0), batch_size=5),
            RobustAccuracy(
                texts,
                labels,
                attack(0.0),
                metric=keras.metrics.SparseCategoricalCrossentropy(
                    from_logits=True
                ),
                name="val_robust_loss",
            ),
        ],
    ).history
    assert history["val_robust_accuracy"] == history["val_accuracy"]
    assert history["val_robust_loss"] == pytest.approx(
        history["val_loss"], rel=1e-5
    )


def test_early_stopping_can_watch_it():
    texts, labels = tiny_texts(8)
    model = compiled()
    history = model.fit(
        texts,
        np.array(labels),
        epochs=5,
        verbose=0,
        callbacks=[
            RobustAccuracy(texts, labels, attack()),
            keras.callbacks.EarlyStopping(
                monitor="val_robust_accuracy",
                mode="min",
                baseline=-1.0,
                patience=2,
            ),
        ],
    ).history
    assert len(history["val_robust_accuracy"]) == 2


def test_a_single_output_is_two_classes():
    """The largest of one number is always the first."""
    model = wrapped(tiny_bert(num_classes=1))
    model.compile(
        keras.optimizers.SGD(0.0),
        keras.losses.BinaryCrossentropy(from_logits=True),
    )
    texts, _ = tiny_texts(12)
    logits = model.predict(texts, verbose=0)[:, 0]
    # All right before the attack, and both classes among them.
    labels = (logits > np.median(logits)).astype(int)
    bias = model.model.get_layer("logits").bias
    bias.assign(bias - np.median(logits))
    robust = RobustAccuracy(texts, labels, attack(0.0))
    history = model.fit(texts, labels, verbose=0, callbacks=[robust]).history
    assert history["val_robust_accuracy"] == [1.0]


def test_what_is_no_perturbation_is_told_before_training():
    texts, labels = tiny_texts(4)
    model = compiled()
    with pytest.raises(ValueError, match="must be a perturbation object"):
        model.fit(
            texts,
            np.array(labels),
            callbacks=[RobustAccuracy(texts, labels, "pgd")],
        )


def test_the_seed_decides_what_a_random_attack_draws():
    texts, labels = tiny_texts(12)
    labels = np.array(labels)
    model = compiled()
    names = {"first": 1, "again": 1, "other": 2}
    history = model.fit(
        texts,
        labels,
        verbose=0,
        callbacks=[
            RobustAccuracy(
                texts,
                labels,
                keras_uegr.GaussianNoise(3.0),
                metric=keras.metrics.SparseCategoricalCrossentropy(
                    from_logits=True
                ),
                seed=seed,
                name=name,
            )
            for name, seed in names.items()
        ],
    ).history
    assert history["first"] == history["again"]
    assert history["first"] != history["other"]


def test_a_random_attack_is_the_same_in_each_epoch():
    texts, labels = tiny_texts(12)
    model = compiled()
    model.optimizer.learning_rate = 0.0
    loss = keras.metrics.SparseCategoricalCrossentropy(from_logits=True)
    noise = keras_uegr.GaussianNoise(3.0)
    robust = RobustAccuracy(texts, labels, noise, metric=loss, batch_size=6)
    history = model.fit(
        texts, np.array(labels), epochs=3, verbose=0, callbacks=[robust]
    ).history
    assert np.ptp(history["val_robust_accuracy"]) == 0


def test_a_model_that_has_diverged_has_no_accuracy():
    texts, labels = tiny_texts(12)
    model = compiled()
    bias = model.model.get_layer("logits").bias
    bias.assign(np.full(bias.shape, np.nan))
    robust = RobustAccuracy(texts, labels, attack())
    history = model.fit(
        texts, np.array(labels), verbose=0, callbacks=[robust]
    ).history
    assert np.isnan(history["val_robust_accuracy"]).all()


@pytest.mark.parametrize(
    ("loss", "labels", "message"),
    [
        ("categorical_crossentropy", np.eye(2)[[0, 1, 1]], r"\(3, 2\)"),
        ("mse", np.ones(3), "with loss=mse"),
        (keras.losses.Huber(), np.ones(3), "with loss=.*huber"),
        ("sparse_categorical_crossentropy", [0, 1, 2], "labels from 0 to 2"),
        ("hinge", [-1, 1, 1], "from 0 to 1, .*such as -1$"),
        (
            keras.losses.BinaryCrossentropy(from_logits=True),
            [1, 2, 1],
            "such as 2$",
        ),
        ("binary_crossentropy", [1.0, 0.0, 0.9], "such as 0.9$"),
    ],
)
def test_labels_that_are_no_classes_are_told_before_training(
    loss, labels, message
):
    texts, _ = tiny_texts(3)
    several = "categorical" in str(loss)
    model = wrapped(tiny_bert(num_classes=2 if several else 1))
    model.compile("sgd", loss)
    robust = RobustAccuracy(texts, labels, attack())
    with pytest.raises(ValueError, match=message):
        model.fit(texts, np.array(labels), verbose=0, callbacks=[robust])


def test_what_is_no_metric_is_told():
    with pytest.raises(ValueError, match="Received: metric=accuracy"):
        RobustAccuracy(["a"], [0], attack(), metric="accuracy")


def test_labels_that_the_loss_does_not_take_are_told_before_training():
    texts, labels = tiny_texts(5)
    model = wrapped(tiny_bert())
    model.compile("sgd", "categorical_crossentropy")
    robust = RobustAccuracy(texts, labels, attack())
    with pytest.raises((ValueError, RuntimeError)):
        model.fit(texts, np.eye(2)[labels], verbose=0, callbacks=[robust])
    assert model.optimizer.iterations == 0


def squared_error(y, outputs):
    difference = keras.ops.cast(y, outputs.dtype) - outputs
    return keras.ops.mean(keras.ops.square(difference), axis=-1)


def single_output(activation=None, value=0.25):
    model = wrapped(
        pooled_model(outputs=keras.layers.Dense(1, activation=activation))
    )
    kernel, bias = model.model.weights[-2:]
    # Small, but not 0: an attack that moves nothing is told.
    kernel.assign(np.full(kernel.shape, 1e-3))
    bias.assign([value])
    return model


def tokens(labels):
    x = np.random.default_rng(0).integers(1, 20, (len(labels), 5))
    return x.astype("int32"), np.array(labels)


def test_a_single_output_of_an_own_loss_has_to_be_said():
    x, y = tokens([1, 1, 1, 0])
    model = single_output()
    model.compile(keras.optimizers.SGD(0.0), squared_error)
    with pytest.raises(ValueError, match="`from_logits` must be"):
        model.fit(x, y, callbacks=[RobustAccuracy(x, y, attack())], verbose=0)
    for from_logits, expected in ((True, 0.75), (False, 0.25)):
        robust = RobustAccuracy(x, y, attack(), from_logits=from_logits)
        history = model.fit(x, y, callbacks=[robust], verbose=0).history
        assert history["val_robust_accuracy"] == [expected]


@pytest.mark.parametrize(
    ("before", "after"),
    [(1.5, 0.25), (np.nan, 1.5)],
    ids=["another look", "finite"],
)
def test_outputs_stay_logits_however_they_look_while_training(before, after):
    x, y = tokens([1, 1, 1, 0])
    model = single_output(value=before)
    model.compile(keras.optimizers.SGD(0.0), squared_error)
    robust = RobustAccuracy(x, y, attack())
    bias = model.model.weights[-1]
    change = keras.callbacks.LambdaCallback(
        on_train_begin=lambda logs: bias.assign([after])
    )
    history = model.fit(x, y, callbacks=[robust, change], verbose=0).history
    assert history["val_robust_accuracy"] == [0.75]


def test_labels_of_the_preprocessor_are_counted_by_its_weights():
    texts, _ = tiny_texts(6)
    model = wrapped(tiny_gpt2())
    model.compile(
        keras.optimizers.SGD(0.0),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        weighted_metrics=["accuracy"],
    )
    robust = RobustAccuracy(
        texts,
        None,
        attack(0.0),
        metric=keras.metrics.SparseCategoricalAccuracy(),
        batch_size=4,
    )
    history = model.fit(
        texts, validation_data=(texts,), verbose=0, callbacks=[robust]
    ).history
    assert history["val_robust_accuracy"] == pytest.approx(
        history["val_accuracy"]
    )


def test_half_precision_has_an_accuracy_whatever_the_scale_of_the_loss():
    x, y = tokens([0, 1, 2, 0, 1, 2, 0])
    keras.config.set_dtype_policy("mixed_float16")
    model = wrapped(pooled_model())
    keras.config.set_dtype_policy("float32")
    model.compile(
        keras.optimizers.LossScaleOptimizer(
            keras.optimizers.SGD(0.0), initial_scale=2.0**24
        ),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    )
    robust = RobustAccuracy(x, y, attack(), batch_size=5)
    history = model.fit(x, y, epochs=2, callbacks=[robust], verbose=0).history
    logits = attacked_predictions(model, x, y, attack())
    expected = (logits.argmax(axis=-1) == y).mean()
    np.testing.assert_allclose(
        history["val_robust_accuracy"], expected, rtol=1e-6
    )


def test_several_outputs_need_a_metric_before_training():
    x, y = tokens([0, 1, 2, 0])
    model = wrapped(
        pooled_model(
            outputs=lambda features: {
                name: keras.layers.Dense(3, name=name)(features)
                for name in ("a", "b")
            }
        )
    )
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    for losses, labels, message in (
        (
            {"a": loss, "b": loss},
            {"a": y, "b": y},
            "`metric` must be set.*y of",
        ),
        ({"a": loss}, y, "for a model of several outputs"),
    ):
        model.compile("sgd", losses)
        robust = RobustAccuracy(x, labels, attack())
        with pytest.raises(ValueError, match=message):
            model.fit(x, labels, verbose=0, callbacks=[robust])
        assert model.optimizer.iterations == 0


def test_labels_may_be_a_tensor_of_the_backend():
    x, y = tokens([1, 1, 1, 0])
    model = single_output()
    model.compile(
        keras.optimizers.SGD(0.0),
        keras.losses.BinaryCrossentropy(from_logits=True),
    )
    # On PyTorch it has a gradient.
    labels = keras.Variable(y.astype("float32")).value
    robust = RobustAccuracy(x, labels, attack())
    history = model.fit(x, y, callbacks=[robust], verbose=0).history
    assert history["val_robust_accuracy"] == [0.75]


def test_examples_that_no_gradient_moves_are_told_after_each_epoch():
    x, y = tokens([1, 1, 1, 1])
    # On TensorFlow Keras finds the logits again: these are right, and far off.
    model = single_output("sigmoid", value=200.0)
    model.compile(keras.optimizers.SGD(0.0), "binary_crossentropy")
    robust = RobustAccuracy(x, y, attack())
    with pytest.warns(UserWarning, match="is 0 for 100.0%") as told:
        model.fit(x, y, epochs=2, callbacks=[robust], verbose=0)
    assert len([x for x in told if x.category is UserWarning]) == 2
