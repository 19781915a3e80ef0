import keras
import numpy as np
import pytest

import keras_uegr
from keras_uegr.evaluation import RobustAccuracy, attacked_predictions
from tests.backbones import tiny_bert, tiny_texts

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
    reported, expected = RobustAccuracy(texts, labels, attack()), []

    def measure(epoch, logs):
        logits = attacked_predictions(model, texts, labels, attack())
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
    ],
)
def test_labels_that_are_no_classes_are_told_before_training(
    loss, labels, message
):
    texts, _ = tiny_texts(3)
    regression = loss not in (
        "categorical_crossentropy",
        "sparse_categorical_crossentropy",
    )
    model = wrapped(tiny_bert(num_classes=1 if regression else 2))
    model.compile("sgd", loss)
    robust = RobustAccuracy(texts, labels, attack())
    with pytest.raises(ValueError, match=message):
        model.fit(texts, np.array(labels), verbose=0, callbacks=[robust])


def test_what_is_no_metric_is_told():
    with pytest.raises(ValueError, match="Received: metric=accuracy"):
        RobustAccuracy(["a"], [0], attack(), metric="accuracy")
