"""The metrics that show what the method does while it trains."""

import keras
from keras import ops

NAMES = (
    "clean_loss",
    "adversarial_loss",
    "js_divergence",
    "perturbation_norm",
    "dropout_rate",
    "updated_fraction",
)


def create():
    """A `keras.metrics.Mean` for each name, as a dict."""
    return {name: keras.metrics.Mean(name=name) for name in NAMES}


def update(metrics, batch, clean, sub_models, updated_fraction):
    """Adds one step.

    Args:
        metrics: The dict that `create` made.
        batch: The `objective.Batch`.
        clean: Its `objective.CleanPass`.
        sub_models: Its `objective.SubModelPass`, or `None`.
        updated_fraction: Scalar, share of the trainable entries updated.
    """
    examples = ops.shape(keras.tree.flatten(clean.outputs)[0])[0]
    values = {"clean_loss": clean.loss, "updated_fraction": updated_fraction}
    if sub_models is not None:
        values["adversarial_loss"] = sub_models.adversarial_loss
        values["js_divergence"] = sub_models.divergence
    for name, value in values.items():
        metrics[name].update_state(value, sample_weight=examples)
    if sub_models is None:
        return
    weight = _example_weight(batch.sample_weight)
    if sub_models.delta is not None:
        square = ops.sum(ops.square(sub_models.delta), axis=(1, 2))
        metrics["perturbation_norm"].update_state(ops.sqrt(square), weight)
    if sub_models.rates is not None:
        rates = ops.reshape(sub_models.rates, (-1, examples))
        metrics["dropout_rate"].update_state(ops.mean(rates, axis=0), weight)


def _example_weight(sample_weight):
    """`sample_weight` if it is one number per example, else `None`."""
    if sample_weight is None or keras.tree.is_nested(sample_weight):
        return None
    if len(sample_weight.shape) > 1 and sample_weight.shape[1] != 1:
        return None
    return ops.reshape(sample_weight, (-1,))
