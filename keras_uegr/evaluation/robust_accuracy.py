"""Robust accuracy while a model trains."""

import keras
import numpy as np

from keras_uegr import value_checks
from keras_uegr.evaluation import model_wrapper, white_box
from keras_uegr.evaluation.labelled_data import preprocessed


class RobustAccuracy(keras.callbacks.Callback):
    """Reports the accuracy under attack at the end of each epoch.

    It is in the history and in the progress bar, and callbacks that come after
    this one in the list can watch it: `EarlyStopping`, `ModelCheckpoint`. It is
    NaN if the model's outputs are.

    Args:
        x: List of strings, or arrays, of examples, as for `predict`.
        y: Array of labels.
        perturbation: A perturbation such as
            `keras_uegr.ProjectedGradient(epsilon=0.02, steps=10)`.
        metric: A `keras.metrics.Metric` of labels and outputs. Defaults to
            `None`, `keras.metrics.SparseCategoricalAccuracy()`.
        batch_size: Positive integer, examples at once. Defaults to `32`.
        seed: Integer, for perturbations that draw: they draw the same in each
            epoch. Defaults to `0`.
        name: String, the key in the logs. Defaults to
            `"val_robust_accuracy"`.

    Raises:
        ValueError: If `metric` is no metric. As `fit` begins, if the model has
            no embedding to perturb, `perturbation` is not a perturbation, `x`
            and `y` don't fit to each other or to the model, or, without a
            `metric`, `y` isn't the number of a class for each example.

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
        if not (metric is None or isinstance(metric, keras.metrics.Metric)):
            raise ValueError(
                "`metric` must be a `keras.metrics.Metric`, such as "
                "`keras.metrics.MeanAbsoluteError()`. "
                f"Received: metric={metric}"
            )
        self.metric = metric or keras.metrics.SparseCategoricalAccuracy()
        self.batch_size = batch_size
        self.seed = seed
        self.name = name

    def on_train_begin(self, logs=None):
        value_checks.check_positive_integers(batch_size=self.batch_size)
        self._attack = white_box.compile_attack(self.model, self.perturbation)
        self._data = preprocessed(self.model, self.x, self.y)
        if self._counts_classes:
            self._check_classes()

    def _check_classes(self):
        regression = model_wrapper.is_regression(self.model)
        if regression or self.y.size != len(self.y):
            raise ValueError(
                "`metric` must be set where the labels aren't one class for "
                "each example: to `keras.metrics.CategoricalAccuracy()`, or, "
                "for a regression, to an error. Received: metric=None, with "
                f"loss={self.model.loss} and y of shape {self.y.shape}"
            )

    def on_epoch_end(self, epoch, logs=None):
        outputs = white_box.run_attack(
            self._attack, self._data, self.batch_size, self.seed
        )
        if self._counts_classes:
            if not np.isfinite(outputs).all():
                # The largest of numbers that are none is the first class.
                logs[self.name] = float("nan")
                return
            # A single output stands for two classes.
            from_logits = model_wrapper.gives_logits(self.model, outputs)
            outputs = model_wrapper.probabilities(outputs, from_logits)
        self.metric.reset_state()
        self.metric.update_state(self.y, outputs)
        logs[self.name] = float(self.metric.result())
