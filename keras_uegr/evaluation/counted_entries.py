"""What the mean of a loss is over: how many entries of it, or their weights.

The mean over all examples is that of their batches, each by what it counts. A
loss leaves out what a Keras mask hides and the class that it ignores, and where
`reduction` is "mean_with_sample_weight" it counts weights.
"""

import keras
import numpy as np
from keras import ops

from keras_uegr import keras_internals, objective


class _Ones(keras.losses.Loss):
    """1 for each entry of a loss, where that leaves none out."""

    def __init__(self, loss):
        super().__init__("ones", reduction="none", dtype=loss.dtype)
        self.loss = loss

    def call(self, y_true, y_pred):
        values = self.loss.call(y_true, y_pred)
        return keras_internals.carry_mask(values, ops.ones_like(values))


def counted_entries(model, batch, outputs):
    """How much each example counts in the mean, of each output with a loss.

    Args:
        model: A compiled `UEGRModel`, whose loss was called.
        batch: An `objective.Batch` of `B` examples.
        outputs: The model's outputs for it.

    Returns:
        Float tensor of shape `(outputs, B)`.
    """
    found = []
    for path, loss in keras_internals.compiled_output_losses(model):
        weight = None
        if loss.reduction == "mean_with_sample_weight":
            weight = objective.follow_optional(model, path, batch.sample_weight)
        entries = _Ones(loss)(
            objective.follow_optional(model, path, batch.y),
            objective.follow(path, outputs),
            weight,
        )
        if len(entries.shape) == 0:
            # A function of one's own may have taken the mean already.
            entries = ops.ones((batch.examples,), dtype=entries.dtype)
        entries = ops.reshape(entries, (batch.examples, -1))
        found.append(ops.cast(ops.sum(entries, axis=1), "float32"))
    return ops.stop_gradient(ops.stack(found))


def shares(counts, batch_size):
    """The shares of all that is counted, the same in each output.

    Args:
        counts: NumPy array of shape `(outputs, n)`, of batches or examples.
        batch_size: Integer, with which the shares don't matter.

    Returns:
        NumPy array of shape `(n,)`, whose sum is 1, or 0 if nothing counts.

    Raises:
        ValueError: If they differ between the outputs.
    """
    totals = counts.sum(axis=1, keepdims=True)
    found = counts / np.where(totals > 0, totals, 1.0)
    if len(counts[0]) > 1 and not np.allclose(found, found[:1], atol=1e-6):
        raise ValueError(
            "Each loss of a model of several outputs must leave out the same "
            "entries, such as padding or an ignored class. Set `batch_size="
            f"{batch_size}` for this measurement. Received: losses that count "
            f"{counts.tolist()}"
        )
    return found[0]
