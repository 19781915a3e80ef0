"""The methods of `keras.Model` that take data: raw strings too."""

import keras

from keras_uegr import data_checks, model_parts, text_input
from keras_uegr.warm_up import WarmUp


class DataMethods:
    """The part of `UEGRModel` that hands data on to Keras.

    Arguments are those of `keras.Model`, also by position.
    """

    def fit(
        self,
        x=None,
        y=None,
        batch_size=None,
        epochs=1,
        verbose="auto",
        callbacks=None,
        validation_split=0.0,
        validation_data=None,
        shuffle=True,
        class_weight=None,
        sample_weight=None,
        initial_epoch=0,
        *args,
        **kwargs,
    ):
        """Trains the model, as `keras.Model.fit` does.

        Args:
            x: What `keras.Model.fit` takes, or raw strings if there is a
                preprocessor: a list or array of them, or a `tf.data.Dataset`,
                `keras.utils.PyDataset` or torch `DataLoader` of batches.
            y: Labels.
            batch_size: Integer, examples per step.
            epochs: Integer, passes over the data.
            verbose: `"auto"`, 0, 1, or 2.
            callbacks: List of `keras.callbacks.Callback`.
            validation_split: Float, the share of the data, its last part,
                that is kept for validation.
            validation_data: Data as in `x`, or a tuple `(x, y)` or
                `(x, y, sample_weight)`.
            shuffle: Boolean, whether each epoch has an order of its own.
            class_weight: Optional dict of weights, one for each class.
            sample_weight: Optional weights, one for each example.
            initial_epoch: Integer, the epoch to begin with.
            *args: Further arguments of `keras.Model.fit`.
            **kwargs: Further arguments of `keras.Model.fit`.

        Returns:
            A `keras.callbacks.History`.
        """
        data_checks.check_loss(self)
        x, y, sample_weight = self._prepare_labelled(x, y, sample_weight)
        validation_data = self._prepare_validation(validation_data)
        if self.has_sub_models and self.state.needs_plan:
            warm_up = WarmUp(initial_epoch)
            callbacks = [warm_up, *keras.tree.flatten(callbacks or [])]
        return super().fit(
            x,
            y,
            batch_size,
            epochs,
            verbose,
            callbacks,
            validation_split,
            validation_data,
            shuffle,
            class_weight,
            sample_weight,
            initial_epoch,
            *args,
            **kwargs,
        )

    def evaluate(
        self,
        x=None,
        y=None,
        batch_size=None,
        verbose="auto",
        sample_weight=None,
        *args,
        **kwargs,
    ):
        """Loss and metrics of the wrapped model; takes raw strings too."""
        x, y, sample_weight = self._prepare_labelled(x, y, sample_weight)
        return super().evaluate(
            x, y, batch_size, verbose, sample_weight, *args, **kwargs
        )

    def predict(self, x, *args, **kwargs):
        """Outputs of the wrapped model; takes raw strings too."""
        return super().predict(self._prepare(x)[0], *args, **kwargs)

    def train_on_batch(self, x, y=None, sample_weight=None, *args, **kwargs):
        """Trains on one batch; takes raw strings too."""
        data_checks.check_loss(self)
        return super().train_on_batch(
            *self._prepare_labelled(x, y, sample_weight), *args, **kwargs
        )

    def test_on_batch(self, x, y=None, sample_weight=None, *args, **kwargs):
        """Loss and metrics of one batch; takes raw strings too."""
        return super().test_on_batch(
            *self._prepare_labelled(x, y, sample_weight), *args, **kwargs
        )

    def predict_on_batch(self, x):
        """Outputs for one batch; takes raw strings too."""
        return super().predict_on_batch(self._prepare(x)[0])

    def check_batch(self, y):
        """Checks the labels of a batch, as they reach a training step."""
        data_checks.check_labels(self.loss, y, self.model)

    def _prepare(self, x, y=None, sample_weight=None):
        x, y, sample_weight = text_input.preprocess_data(
            self.preprocessor,
            x,
            y,
            sample_weight,
            model_parts.takes_strings(self.model),
        )
        self._check(x, y)
        return x, y, sample_weight

    def _prepare_labelled(self, x, y, sample_weight):
        x, y, sample_weight = self._prepare(x, y, sample_weight)
        self._check_labels_are_there(x, y)
        return x, y, sample_weight

    def _prepare_validation(self, data):
        data = text_input.preprocess_validation_data(
            self.preprocessor, data, model_parts.takes_strings(self.model)
        )
        if data is not None and not text_input.is_lazy(data):
            # Keras looks at them after the first epoch only.
            x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(data)
            self._check(x, y)
            self._check_labels_are_there(x, y)
            data_checks.count_examples(x, y, sample_weight)
        return data

    def _check(self, x, y):
        data_checks.check_examples(x)
        if self.compiled:
            data_checks.check_labels(self.loss, y, self.model)

    def _check_labels_are_there(self, x, y):
        if self.compiled:
            data_checks.check_labels_are_there(self.loss, x, y)
