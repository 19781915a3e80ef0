"""Trains one cell: equal starts, equal order of the data."""

import dataclasses
import time

import keras
import numpy as np

import minilm
import quickstart
from method_comparison import methods
from text_datasets.dataset import model_inputs


@dataclasses.dataclass(frozen=True)
class Trained:
    """A trained model and what its training took.

    Args:
        model: `keras_uegr.UEGRModel`.
        seconds_per_step: float. The median.
        preparation_seconds: float. Before the first step, compilation included.
        total_seconds: float. Preparation and compilation included.
        steps: integer.
        training_loss: float. The mean over the whole training, as the method
            defines it.
    """

    model: keras.Model
    seconds_per_step: float
    preparation_seconds: float
    total_seconds: float
    steps: int
    training_loss: float

    def cost(self):
        """Return everything but the model, as a dictionary."""
        return {
            field.name: getattr(self, field.name)
            for field in dataclasses.fields(self)
            if field.name != "model"
        }


def train(method, data, seed, settings, steps=None, callbacks=()):
    """Return the `Trained` model of a method.

    The weights, head included, and the order of the examples depend on the
    seed alone, so that all methods share them.

    Args:
        method: dict, see `methods.py`.
        data: `text_datasets.Dataset`.
        seed: integer.
        settings: `cells.Settings`.
        steps: integer. Defaults to `None`, as many as `settings.epochs` make.
        callbacks: list of Keras callbacks. Their time isn't the steps'.
    """
    steps = steps or steps_of(settings)
    texts, labels = in_order(data.train, steps * settings.batch_size, seed)
    keras.utils.set_random_seed(seed)
    classifier = minilm.classifier(
        num_classes=data.task.outputs, sequence_length=settings.sequence_length
    )
    model, optimizer = methods.build(
        method,
        classifier,
        learning_rate_of(settings, steps),
        steps,
        steps_per_epoch(settings),
    )
    model.compile(optimizer=optimizer, loss=loss_of(data.task))
    timer, started = quickstart.StepTimer(), time.perf_counter()
    methods.prepare(
        model,
        model_inputs(data.train.texts),
        data.train.labels,
        settings.batch_size,
    )
    prepared = time.perf_counter()
    history = model.fit(
        model_inputs(texts),
        labels,
        batch_size=settings.batch_size,
        shuffle=False,
        callbacks=[timer, *callbacks],
        verbose=0,
    )
    return Trained(
        model,
        timer.median(),
        prepared - started,
        time.perf_counter() - started,
        len(timer.seconds),
        float(history.history["loss"][-1]),
    )


def learning_rate_of(settings, steps):
    """Return the learning rate of a training of so many steps."""
    if settings.decay == "none":
        return settings.learning_rate
    return keras.optimizers.schedules.PolynomialDecay(
        settings.learning_rate, steps, end_learning_rate=0.0
    )


def steps_of(settings):
    """Return the number of training steps that the epochs make."""
    return settings.epochs * steps_per_epoch(settings)


def steps_per_epoch(settings):
    """Return the number of batches that the training examples make."""
    return -(-settings.train_size // settings.batch_size)


def in_order(examples, count, seed):
    """Return `count` texts and labels: shuffled passes, one after another."""
    passes = -(-count // len(examples))
    texts, labels = quickstart.in_training_order(examples, passes, seed)
    return texts[:count], np.asarray(labels[:count])


def loss_of(task):
    """Return the loss of a task."""
    if task.is_regression:
        return keras.losses.MeanSquaredError()
    return keras.losses.SparseCategoricalCrossentropy(from_logits=True)
