"""Models in which nothing drops in the first step, and then much does.

In that step only the perturbation tells the sub-models from the clean pass.
"""

import keras
from keras import ops

import keras_uegr


@keras.saving.register_keras_serializable("tests")
class LatePolicy(keras_uegr.ConfidencePolicy):
    """The default policy, but for the first step, in which nothing drops."""

    def fractions(self, signals):
        is_late = ops.cast(signals.step > 0, "float32")
        return super().fractions(signals) * is_late


def late_dropout():
    return keras_uegr.AdaptiveDropout(low=0.0, high=0.3, policy=LatePolicy())


def without_own_dropout(model):
    """Sets the rates of the model's own layers to 0, and returns it."""
    for layer in model._flatten_layers():
        if isinstance(layer, keras.layers.Dropout):
            layer.rate = 0.0
    return model


def assert_perturbation_reaches_the_model(metrics):
    """Of the step in which nothing drops, that the perturbation costs."""
    assert metrics["dropout_rate"] == 0
    assert metrics["perturbation_norm"] > 1e-2
    assert metrics["adversarial_loss"] > metrics["clean_loss"] + 0.1


def assert_sub_models_differ(metrics):
    """Of a later step; what is left without dropout is below 1e-8."""
    assert metrics["js_divergence"] > 1e-7
