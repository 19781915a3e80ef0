"""Robust accuracy while a model trains."""

import keras
import numpy as np

from keras_uegr import text_input
from keras_uegr.evaluation import model_wrapper, white_box


class RobustAccuracy(keras.callbacks.Callback):
    """Reports the accuracy under attack at the end of each epoch.

    It is in the history and in the progress bar, and callbacks that come after
    this one in the list can watch it: `EarlyStopping`, `ModelCheckpoint`.

    Args:
        x: List of strings, or arrays, of examples, as for `predict`.
        y: Array of labels.
        perturbation: A perturbation such as
            `keras_uegr.ProjectedGradient(epsilon=0.02, steps=10)`.
        metric: A `keras.metrics.Metric` of labels and outputs. Defaults to
            `None`, `keras.metrics.SparseCategoricalAccuracy()`.
        batch_size: Positive integer, examples at once. Defaults to `32`.
        seed: Integer, for perturbations that draw. Defaults to `0`.
        name: String, the key in the logs. Defaults to
            `"val_robust_accuracy"`.

    Raises:
        ValueError: In `fit`, if the model has no embedding to perturb, or
            `perturbation` is not a perturbation.

    Example:

    >>> robust_accuracy = keras_uegr.evaluation.RobustAccuracy(
    ...     texts, labels, keras_uegr.ProjectedGradient(epsilon=0.02, steps=3)
    ... )
    >>> early_stopping = keras.callbacks.EarlyStopping(
    ...     monitor="val_robust_accuracy", mode="max"
    ... )
    >>> history = model.fit(
    ...     texts,
    ...     labels,
    ...     verbose=0,
    ...     callbacks=[robust_accuracy, early_stopping],
    ... )

    Reference:
        - [Rice et al., 2020](https://arxiv.org/abs/2002.11569), who stop early
          by it
    """

    def __init__(
        self,
        x,
        y,
        perturbation,
        metric=None,
        batch_size=32,
        seed=0,
        name="val_robust_accuracy",
    ):
        super().__init__()
        self.x = x
        self.y = np.asarray(y)
        self.perturbation = perturbation
        self._counts_classes = metric is None
        self.metric = metric or keras.metrics.SparseCategoricalAccuracy()
        self.batch_size = batch_size
        self.seed = seed
        self.name = name

    def on_train_begin(self, logs=None):
        self._attack = white_box.compile_attack(
            self.model, self.perturbation, self.seed
        )
        self._data = text_input.preprocess_data(
            self.model.preprocessor, self.x, self.y
        )[:2]

    def on_epoch_end(self, epoch, logs=None):
        outputs = white_box.run_attack(
            self._attack, *self._data, self.batch_size
        )
        if self._counts_classes:
            # A single output stands for two classes.
            from_logits = model_wrapper.gives_logits(self.model, outputs)
            outputs = model_wrapper.probabilities(outputs, from_logits)
        self.metric.reset_state()
        self.metric.update_state(self.y, outputs)
        logs[self.name] = float(self.metric.result())
