"""The methods of `keras.Model` that take data: raw strings too."""

from keras_uegr import data_checks, model_parts, text_input


class DataMethods:
    """The part of `UEGRModel` that hands data on to Keras.

    Arguments are those of `keras.Model`, also by position.
    """

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
        x, y, sample_weight = self._prepare(x, y, sample_weight)
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
            *self._prepare(x, y, sample_weight), *args, **kwargs
        )

    def test_on_batch(self, x, y=None, sample_weight=None, *args, **kwargs):
        """Loss and metrics of one batch; takes raw strings too."""
        return super().test_on_batch(
            *self._prepare(x, y, sample_weight), *args, **kwargs
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
        data_checks.check_examples(x)
        if self.compiled:
            data_checks.check_labels(self.loss, y, self.model)
        return x, y, sample_weight
