"""The losses of one batch: the clean pass, and the sub-models' pass.

    L = b * L_clean + a * mean_k l(y, p_k) + c * JS(p_1 .. p_K)

`L_clean` is the loss that the user compiled; `b`, `a` and `c` are
`clean_weight`, `adversarial_weight` and `consistency_weight`. Regularization
counts once, whatever the weights. Every term is weighted by `sample_weight` and
reduced over the examples as the `reduction` of the compiled loss says: by
default to the sum, divided by their number; with "mean_with_sample_weight"
divided by the sum of their weights; with "sum" not divided. For predictions at
each token the compiled loss counts tokens, but `JS` examples: each by the mean
over its unpadded tokens, its weight being the mean of theirs. Where an
optimizer adds up the gradients of several replicas, each of `model.replicas`
counts its own part of a mean: Keras divides the compiled loss, what is added
here is divided alike.

The `K` sub-models run as one batch of `K * B` rows, sub-model by sub-model.
"""

import warnings
from typing import Any, NamedTuple

import keras
from keras import ops

from keras_uegr import (
    concentration,
    consistency,
    forward_pass,
    interception,
    keras_internals,
)


class Batch(NamedTuple):
    """One batch of training data, as `fit` hands it to a train step."""

    x: Any
    y: Any = None
    sample_weight: Any = None

    def weights(self):
        """A copy of `sample_weight` for one call of the loss.

        Keras multiplies it by the mask of the outputs, on PyTorch in place.
        """
        return keras.tree.map_structure(
            lambda weight: None if weight is None else ops.copy(weight),
            self.sample_weight,
        )

    @property
    def examples(self):
        """Their number, an integer or a scalar tensor.

        Outputs need not be one row for each.
        """
        tensors = [x for x in keras.tree.flatten(self.x) if x is not None]
        return ops.shape(tensors[0])[0]


class CleanPass(NamedTuple):
    """What the clean pass leaves for the rest of the step.

    Attributes:
        loss: Scalar tensor, the compiled loss with regularization, before its
            weight.
        outputs: The model's outputs.
        embedded: A `forward_pass.Embedded`, `None` in a step without
            sub-models.
        confidence: Float tensor of shape `(B,)`, `exp(-loss)` per example, of
            the mean loss of its tokens that count, whatever they weigh; `None`
            in a step without sub-models.
    """

    loss: Any
    outputs: Any
    embedded: Any = None
    confidence: Any = None


class SubModelPass(NamedTuple):
    """What the sub-models' pass leaves for the metrics.

    Attributes:
        adversarial_loss: Scalar tensor, before its weight.
        divergence: Scalar tensor, before its weight.
        delta: Float tensor of shape `(B, T, D)`, or `None`.
        rates: Float tensor of shape `(K * B,)`, or `None`.
        mean_divergence: Scalar tensor, per example also where a loss sums, or
            `None`.
    """

    adversarial_loss: Any
    divergence: Any
    delta: Any = None
    rates: Any = None
    mean_divergence: Any = None


def clean_pass(model, batch, transform):
    """Runs the model as plain `fit` does; `transform` sees the embedding.

    The passes call the wrapped model itself: TensorFlow's graph rewriter orders
    sums by the names of operations, and these hold the names of the callers.
    """
    if model.has_sub_models:
        outputs, seen = forward_pass.run(model, batch.x, transform)
    else:
        outputs, seen = model.model(batch.x, training=True), None
    loss = model.compute_loss(
        x=batch.x,
        y=batch.y,
        y_pred=outputs,
        sample_weight=batch.weights(),
        training=True,
    )
    weighted = loss
    if model.clean_weight not in (0, 1):
        others = _regularization(model)
        weighted = model.clean_weight * (loss - others) + others
    if not model.has_sub_models:
        return weighted, CleanPass(loss, outputs)
    tokens = forward_pass.embedded_batch(
        model, batch.x, seen, model.unperturbed_token_ids
    )
    confidence = _confidence(model, batch, outputs, tokens.unpadded)
    return weighted, CleanPass(loss, outputs, tokens, confidence)


def perturbed_pass(model, batch, delta, transform=None, training=True):
    """The compiled loss, without regularization, and outputs at `e + delta`."""

    def shift(embedding):
        embedding = embedding + ops.cast(delta, embedding.dtype)
        return embedding if transform is None else transform(embedding)

    outputs, _ = forward_pass.run(model, batch.x, shift, training)
    loss_of = keras_internals.compiled_loss(model)
    with metrics_untouched(model):
        loss = loss_of(batch.y, outputs, batch.weights())
    return loss, outputs


def ascent_pass(model, batch, clean, delta, weight, transform):
    """What an adversary raises: `weight` times its objective at `e + delta`.

    Returns:
        Tuple of that scalar and of the objective without its weight.
    """
    loss, outputs = perturbed_pass(model, batch, delta, transform)
    if model.perturbation.objective == "divergence":
        members = [outputs, _constant(clean.outputs)]
        loss = _total(model, _divergences(model, batch, clean, members))
    value = ops.multiply(weight, loss)
    if not (model.clean_weight or model.needs_sub_model_pass):
        # No other pass is trained on.
        value = (
            value + _regularization(model) / model.perturbation.gradient_steps
        )
    return value, loss


def sub_model_pass(model, batch, clean, delta, rates, weights):
    """The adversarial and the consistency loss of the `K` sub-models.

    Args:
        model: The `UEGRModel`.
        batch: A `Batch` of `B` examples.
        clean: The `CleanPass` of the same batch.
        delta: Float tensor of shape `(B, T, D)`, or `None`.
        rates: Float tensor of shape `(K * B,)`, or `None` for the dropout
            layers' own.
        weights: Tuple of two scalars, of the adversarial and of the
            consistency loss.

    Returns:
        Tuple `(loss, SubModelPass)`, the loss a scalar.
    """
    outputs = _sub_model_outputs(model, batch.x, delta, rates)
    members = [_member(model, k, outputs) for k in range(model.sub_models)]
    loss_of = keras_internals.compiled_loss(model)
    with metrics_untouched(model):
        losses = [loss_of(batch.y, each, batch.weights()) for each in members]
    adversarial_loss = sum(losses) / model.sub_models
    if model.include_clean:
        members = [*members, _constant(clean.outputs)]
    divergences = _divergences(model, batch, clean, members)
    divergence = _total(model, divergences)
    adversarial_weight, consistency_weight = weights
    loss = ops.multiply(adversarial_weight, adversarial_loss) + ops.multiply(
        consistency_weight, divergence
    )
    if not model.clean_weight:
        # The clean pass, which usually holds them, isn't trained on.
        loss = loss + _regularization(model)
    return loss, SubModelPass(
        adversarial_loss,
        divergence,
        mean_divergence=_total(model, divergences, sums=False),
    )


def _sub_model_outputs(model, x, delta, rates):
    """Outputs of all sub-models, each tensor `(K * B, ...)`."""
    sub_models = model.sub_models

    def tile(tensor):
        if tensor is None:
            return None
        return ops.concatenate([tensor] * sub_models, axis=0)

    def shift(embedding):
        if delta is None:
            return embedding
        moved = concentration.on_tokens(tile(delta), model)
        return embedding + ops.cast(moved, embedding.dtype)

    layers = [] if rates is None else model.dropout_layers
    with interception.intercept_dropout(
        model.model, layers, rates, model.seed_generator
    ) as reached:
        outputs, _ = forward_pass.run(
            model, keras.tree.map_structure(tile, x), shift
        )
    _warn_unless_reached(layers, reached)
    return outputs


def _warn_unless_reached(layers, reached):
    missed = [layer.name for layer in layers if id(layer) not in reached]
    if missed:
        warnings.warn(
            "The model does not call these dropout layers, so they do not "
            f"tell the sub-models apart: {missed}. Set the argument "
            "`dropout_layers` of `UEGRModel` to layers that it does call.",
            stacklevel=2,
        )


def _member(model, k, outputs):
    """The outputs of sub-model `k`; all of those that have no loss."""
    losses = keras_internals.compiled_output_losses(model)
    trained = [path for path, _ in losses]
    members = [
        _rows(model.sub_models, k, tensor)
        if any(path[: len(start)] == start for start in trained)
        else tensor
        for path, tensor in keras.tree.flatten_with_path(outputs)
    ]
    return keras.tree.pack_sequence_as(outputs, members)


def _rows(sub_models, k, tensor):
    """The rows of sub-model `k`, with their Keras mask."""

    def rows(tensor):
        shape = ops.shape(tensor)
        return ops.reshape(tensor, (sub_models, -1, *shape[1:]))[k]

    return keras_internals.carry_mask(tensor, rows(tensor), rows)


def _regularization(model):
    return sum(ops.sum(loss) for loss in model.losses) / model.replicas


def metrics_untouched(model):
    """A scope that is thrown away, with what metrics are updated in it.

    Inside of the loss Keras updates a metric for each output, which is to be
    that of the clean predictions. The scope has to bring the values of all
    variables: while `fit` runs on JAX, the variables themselves hold none, and
    a loss may read the model's.
    """
    variables = [*model.variables, *model.metrics_variables]
    return keras.StatelessScope(
        [(variable, variable.value) for variable in variables]
    )


def _constant(outputs):
    return keras.tree.map_structure(ops.stop_gradient, outputs)


def _divergences(model, batch, clean, members):
    """Between the members, one `(reduction, values)` for each output.

    The values are of shape `(B,)`, and weighted.
    """
    found = []
    for path, loss in _compared_outputs(model):
        outputs = [follow(path, member) for member in members]
        if len(outputs) == 1:
            continue
        kind = model.output_kind
        if kind is None:
            if not (model.needs_divergence or consistency.is_known(loss)):
                continue
            kind = consistency.output_kind(loss)
        if model.needs_divergence:
            consistency.check_axis(loss, outputs[0])
        elif not consistency.is_along_last_axis(loss, outputs[0]):
            continue
        weight, token_weight = consistency.weights(
            loss,
            *_labels_and_weight(model, batch, path),
            clean.embedded.unpadded,
        )
        values = consistency.divergence_per_example(
            ops.stack(outputs),
            kind,
            consistency.reads_logits(loss),
            token_weight,
            model.divergence,
        )
        if weight is not None:
            values = values * ops.cast(ops.reshape(weight, (-1,)), values.dtype)
        found.append((getattr(loss, "reduction", None), values))
    return found


def _labels_and_weight(model, batch, path):
    """Those of an output; `None` where there are none."""
    return (
        follow_optional(model, path, batch.y),
        follow_optional(model, path, batch.sample_weight),
    )


def _total(model, divergences, sums=True):
    """The sum over the outputs of their divergences, each reduced.

    Args:
        model: The `UEGRModel`.
        divergences: What `_divergences` found.
        sums: Boolean, `False` for means over the examples alone.
    """
    total = 0.0
    for reduction, values in divergences:
        if sums and reduction == "sum":
            # Keras divides only means by the number of replicas.
            total = total + model.replicas * ops.sum(values)
        else:
            total = total + ops.mean(values)
    # Computed in float32, but added to losses.
    return ops.cast(total / model.replicas, keras.config.floatx())


def _compared_outputs(model):
    """One `(path, loss)` for each output that the divergence is taken of."""
    losses = keras_internals.compiled_output_losses(model)
    names = model.consistency_outputs
    if names is None:
        return losses
    known = [path[0] for path, _ in losses if path]
    if not set(names) <= set(known):
        raise ValueError(
            "`consistency_outputs` must hold names of outputs that have a "
            f"loss, here {known}. Received: consistency_outputs={names}"
        )
    return [(path, loss) for path, loss in losses if path[0] in names]


def _confidence(model, batch, outputs, unpadded):
    """`exp(-loss)` of each example, its losses summed over the outputs."""
    # A loss that is one number for the whole batch counts for each example.
    total = ops.zeros((batch.examples,), dtype="float32")
    for path, loss in keras_internals.compiled_output_losses(model):
        labels, weight = _labels_and_weight(model, batch, path)
        # `call` is the loss before weights and reduction.
        values = loss.call(
            ops.cast(labels, loss.dtype),
            ops.cast(follow(path, outputs), loss.dtype),
        )
        values = consistency.mean_per_example(
            values, consistency.counted_tokens(loss, labels, unpadded, weight)
        )
        total = total + ops.cast(values, "float32")
    return ops.stop_gradient(ops.exp(-total))


def example_weight(sample_weight):
    """`sample_weight` if it is one number per example, else `None`."""
    given = [x for x in keras.tree.flatten(sample_weight) if x is not None]
    if len(given) != 1:
        return None
    (weight,) = given
    if len(weight.shape) > 1 and weight.shape[1] != 1:
        return None
    return ops.reshape(weight, (-1,))


def follow(path, structure):
    """What is at `path` of a structure of outputs."""
    for key in path:
        structure = structure[key]
    return structure


def follow_optional(model, path, structure):
    """What belongs to an output: labels or weights, by position or by name."""
    if not keras.tree.is_nested(structure):
        return structure
    if not path:
        # Keras takes those of a single output in a list, too.
        (only,) = keras.tree.flatten(structure)
        return only
    if isinstance(structure, dict) and isinstance(path[0], int):
        path = (model.output_names[path[0]], *path[1:])
    elif isinstance(structure, (list, tuple)) and isinstance(path[0], str):
        structure = keras_internals.labels_by_path(model, structure)
    return follow(path, structure)
