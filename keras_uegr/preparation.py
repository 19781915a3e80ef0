"""Scores the weights once, before training: a pass over the data.

    f_i = mean over the batches of (dL_clean/dtheta_i)^2

Child-Tuning-D (arXiv:2109.05687) and SIFT (arXiv:2312.11875) choose what they
train this way, and never again. No weight changes in this pass.
"""

import functools
import itertools
import warnings

import keras
from keras import ops

from keras_uegr import (
    argument_checks,
    data_checks,
    keras_internals,
    model_parts,
    objective,
    string_data,
    text_input,
    value_checks,
)
from keras_uegr.batches import batches as in_batches
from keras_uegr.optimizers.gradients import all_finite, unscaled_or_zero
from keras_uegr.optimizers.saliency import FISHER


def prepare_saliency(model, x, y, batch_size=32, batches=None):
    """Sets the average of `saliency="fisher"` to that over a data set.

    With `fisher_decay=1` the optimizer then keeps to these scores, and with
    them to one mask, but for ties, through the whole training.

    Args:
        model: A built `keras_uegr.UEGRModel`, compiled with a
            `SaliencyMaskedOptimizer` of `saliency="fisher"`.
        x: List of strings, or arrays, of `N` examples, as for `fit`. Datasets
            and generators aren't taken.
        y: Array or list of `N` labels, several of them in a list or
            dictionary where the model has several outputs, or `None` where
            the preprocessor makes the labels or there is no compiled loss.
            Weights that it makes too weigh the loss, as in `fit`.
        batch_size: Positive integer. Defaults to `32`.
        batches: Positive integer, how many batches to look at, or `None`
            (default) for all.

    Raises:
        ValueError: If the model is not built, or not compiled with such an
            optimizer, or another argument is not as above, or there is no
            batch with a finite gradient.

    Example:

    >>> optimizer = keras_uegr.SaliencyMaskedOptimizer(
    ...     "adamw", saliency="fisher", fisher_decay=1.0
    ... )
    >>> model.compile(optimizer, model.loss)
    >>> keras_uegr.prepare_saliency(model, texts, labels)
    """
    argument_checks.check_compiled(model)
    optimizer = model_parts.find_masked_optimizer(model.optimizer)
    if optimizer is None or optimizer.saliency != FISHER:
        raise ValueError(
            "The model must be compiled with a `SaliencyMaskedOptimizer` of "
            f'`saliency="{FISHER}"`. '
            f"Received: optimizer={model.optimizer.name}"
        )
    argument_checks.check_built(model)
    data = _checked_data(model, x, y, batch_size, batches)
    _build_metrics(model, next(in_batches(*data)))
    variables = model.trainable_variables
    optimizer.build(variables)
    squares = model.compile_inference(
        functools.partial(_squared_gradients, model, variables)
    )
    total, seen, count = [0.0] * len(variables), 0, 0
    for batch in itertools.islice(in_batches(*data), batches):
        seen += 1
        found = squares(batch)
        if not all_finite(found):
            continue
        total = [a + b for a, b in zip(total, found, strict=True)]
        count += 1
    _check_batches(seen, count)
    optimizer.set_fisher_averages([square / count for square in total])


def _checked_data(model, x, y, batch_size, batches):
    """The arguments of `in_batches`, if `fit` would take them."""
    value_checks.check_positive_integers(batch_size=batch_size)
    if text_input.is_lazy(x):
        raise ValueError(
            "`x` must be arrays or a list of strings, and `y` their labels: "
            "of a dataset or generator pass what it holds. "
            f"Received: x of type {type(x).__name__}"
        )
    x, y, sample_weight = text_input.preprocess_data(
        model.preprocessor, x, string_data.as_arrays(y)
    )
    examples = data_checks.count_examples(x, y, sample_weight)
    if not examples or batches == 0:
        raise ValueError(
            "There must be at least one batch to look at. "
            f"Received: {examples} examples, batches={batches}"
        )
    if y is None and model.loss is not None:
        raise ValueError(
            "`y` must be the labels that the compiled loss compares with; no "
            "preprocessor makes them. Received: y=None"
        )
    if batches is not None:
        value_checks.check_positive_integers(batches=batches)
    data_checks.check_labels(model.loss, y, model.model)
    return x, y, batch_size, sample_weight


def _build_metrics(model, batch):
    """Creates the metrics that the loss updates, one for each output.

    Within a function that JAX compiles they would hold tracers.
    """
    specs = keras.tree.map_structure(
        lambda x: keras.KerasTensor(
            x.shape, keras.backend.standardize_dtype(x.dtype)
        ),
        batch,
    )
    keras_internals.build_for_training(model, specs)


def _check_batches(seen, count):
    """There was a batch that can be counted."""
    if not count:
        raise ValueError(
            "At least one batch must have a finite gradient. In half "
            "precision compile with a "
            "`keras.optimizers.LossScaleOptimizer` of a smaller "
            f"`initial_scale`. Received: {seen} batches, all of which "
            "overflow"
        )
    if count < seen:
        warnings.warn(
            f"{seen - count} of {seen} batches were left out: their gradient "
            "isn't finite.",
            stacklevel=3,
        )


def _squared_gradients(model, variables, data):
    batch = objective.Batch(*data)

    def loss(transform):
        del transform
        outputs = model(batch.x, training=False)
        value = model.compute_loss(
            x=batch.x,
            y=batch.y,
            y_pred=outputs,
            sample_weight=batch.weights(),
        )
        return value, ()

    _, _, gradients, _ = model.differentiate(
        loss, variables, watch_embedding=False
    )
    return [
        ops.square(gradient)
        for gradient in unscaled_or_zero(gradients, variables, model.optimizer)
    ]
