"""The metrics that show what the method does while it trains."""

import keras
from keras import ops

from keras_uegr import objective

NAMES = (
    "clean_loss",
    "adversarial_loss",
    "js_divergence",
    "perturbation_norm",
    "dropout_rate",
    "updated_fraction",
)
SKIPPED = "skipped_steps"


def create(skip_nonfinite):
    """The metrics as a dict: a `keras.metrics.Mean` for each name.

    With `skip_nonfinite` the steps that were skipped are counted too.
    """
    metrics = {name: keras.metrics.Mean(name=name) for name in NAMES}
    if skip_nonfinite:
        metrics[SKIPPED] = keras.metrics.Sum(name=SKIPPED)
    return metrics


def update(metrics, batch, step, replicas, updated_fraction, applied):
    """Adds one step.

    Args:
        metrics: The dict that `create` made.
        batch: The `objective.Batch`.
        step: Its `training_step.Objective`.
        replicas: Integer, how many such batches the losses are divided by.
        updated_fraction: Scalar, share of the trainable entries that an
            update selects.
        applied: Boolean, may be a tensor: whether there was an update.
    """
    clean, sub_models = step.clean, step.extra
    applied = ops.cast(applied, "float32")
    if SKIPPED in metrics:
        metrics[SKIPPED].update_state(1.0 - applied)
    values = {
        "clean_loss": clean.loss * replicas,
        "updated_fraction": updated_fraction * applied,
    }
    if sub_models is not None:
        values["adversarial_loss"] = sub_models.adversarial_loss * replicas
        values["js_divergence"] = sub_models.divergence * replicas
    for name, value in values.items():
        metrics[name].update_state(value, sample_weight=batch.examples)
    if sub_models is None:
        return
    weight = objective.example_weight(batch.sample_weight)
    if sub_models.delta is not None:
        square = ops.sum(ops.square(sub_models.delta), axis=(1, 2))
        metrics["perturbation_norm"].update_state(ops.sqrt(square), weight)
    if sub_models.rates is not None:
        rates = ops.reshape(sub_models.rates, (-1, batch.examples))
        metrics["dropout_rate"].update_state(ops.mean(rates, axis=0), weight)
