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
    NaN if the model's outputs are. Give it a model of logits, as
    `attacked_predictions`, and as there a warning tells if it does not.

    Args:
        x: List of strings, or arrays, of examples, as for `predict`.
        y: Array of labels, or `None` where the preprocessor makes them, as
            those of language models do.
        perturbation: A perturbation such as
            `keras_uegr.ProjectedGradient(epsilon=0.02, steps=10)`.
        metric: A `keras.metrics.Metric` of labels, outputs and the weights
            that a preprocessor may make. Defaults to `None`,
            `keras.metrics.SparseCategoricalAccuracy()` of one output.
        batch_size: Positive integer, examples at once. Defaults to `32`.
        seed: Integer, for perturbations that draw: they draw the same in each
            epoch. Defaults to `0`.
        name: String, the key in the logs. Defaults to
            `"val_robust_accuracy"`.
        from_logits: Boolean, whether the outputs are logits, which without a
            `metric` tells the class of a single output. Defaults to `None`, as
            in `attack_texts`: it is found out as `fit` begins, if the outputs
            are finite then.

    Raises:
        ValueError: If `metric` is no metric. As `fit` begins, if the model has
            no embedding to perturb, `perturbation` is not a perturbation, `x`
            and `y` don't fit to each other or to the model, or, without a
            `metric`, `y` isn't the number of a class for each example, the
            model has several outputs, or `from_logits` has to be set. The
            first batch is attacked then, so that what else fails does so
            before an epoch is spent.

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
        from_logits=None,
    ):
        super().__init__()
        self.x = x
        self.y = y
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
        self.from_logits = from_logits

    def on_train_begin(self, logs=None):
        value_checks.check_positive_integers(batch_size=self.batch_size)
        self._attack = white_box.compile_attack(self.model, self.perturbation)
        self._data = preprocessed(self.model, self.x, self.y)
        self._gives_logits = None
        if self._counts_classes:
            self._check_classes(self._data[1])
        self._measure(
            keras.tree.map_structure(
                lambda array: (
                    array if array is None else array[: self.batch_size]
                ),
                self._data,
            )
        )

    def _check_classes(self, y):
        regression = model_wrapper.is_regression(self.model)
        if regression or keras.tree.is_nested(y) or y.size != len(y):
            shapes = keras.tree.map_structure(np.shape, y)
            raise ValueError(
                "`metric` must be set where the labels aren't one class for "
                "each example: to `keras.metrics.CategoricalAccuracy()`, or, "
                "for a regression, to an error. Received: metric=None, with "
                f"loss={self.model.loss} and y of shape {shapes}"
            )

    def on_epoch_end(self, epoch, logs=None):
        logs[self.name], stuck = self._measure(self._data)
        white_box.warn_if_stuck(stuck, stacklevel=2)

    def _measure(self, data):
        """The metric, and which examples no gradient moved."""
        outputs, stuck = white_box.run_attack(
            self._attack, data, self.batch_size, self.seed
        )
        if self._counts_classes:
            self._check_outputs(outputs)
            if not np.isfinite(outputs).all():
                # The largest of numbers that are none is the first class.
                return float("nan"), stuck
            outputs = self._probabilities(outputs)
        _, y, sample_weight = data
        self.metric.reset_state()
        self.metric.update_state(y, outputs, sample_weight)
        return float(self.metric.result()), stuck

    def _check_outputs(self, outputs):
        if keras.tree.is_nested(outputs):
            shapes = keras.tree.map_structure(np.shape, outputs)
            raise ValueError(
                "`metric` must be set for a model of several outputs. "
                f"Received: metric=None, with outputs of shapes {shapes}"
            )
        # A single output stands for two classes.
        classes = max(2, outputs.shape[-1])
        y = self._data[1]
        unknown = y[~np.isin(y, np.arange(classes))]
        if unknown.size:
            raise ValueError(
                "`metric` must be set where the labels aren't integers from 0 "
                f"to {classes - 1}, the index of each example's class. "
                f"Received: metric=None, with labels such as {unknown[0]}"
            )

    def _probabilities(self, outputs):
        # Found once: while it trains the look of the outputs may change.
        if self._gives_logits is None:
            self._gives_logits = model_wrapper.get_from_logits(
                self.from_logits, self.model, outputs
            )
        return model_wrapper.probabilities(outputs, self._gives_logits)
