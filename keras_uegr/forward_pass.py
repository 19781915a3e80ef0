"""One pass of the wrapped model: what its embedding gave, and what may move."""

from typing import Any, NamedTuple

from keras import ops

from keras_uegr import data_checks, interception, model_parts, padding


class Embedded(NamedTuple):
    """The embedded tokens of a batch.

    Attributes:
        embedding: Float tensor of shape `(B, T, D)`, or `None` for a model
            whose embedding is not intercepted; so is `movable` then.
        movable: Float tensor of shape `(B, T, 1)`: 1 at the positions that
            may be perturbed, 0 elsewhere.
        unpadded: Float tensor of shape `(B, T)`, 0 where outputs of tokens
            are those of padding, or `None` if nothing tells, or the outputs
            aren't one for each token.
    """

    embedding: Any
    movable: Any
    unpadded: Any


def run(model, x, transform, training=True):
    """Runs the wrapped model; `transform` sees the embedding.

    Args:
        model: The `UEGRModel`.
        x: The inputs of a batch.
        transform: Function of a tensor `(B, T, D)`, or `None`.
        training: Boolean.

    Returns:
        Tuple of the outputs, and of what the pass has seen at the embedding,
        an `interception.Seen`.
    """
    data_checks.check_is_not_ragged(x)
    tokens = None
    if model.chosen_input is not None:
        x, tokens = model_parts.named_input(model.model, x, model.chosen_input)
    with interception.intercept_embedding(
        model.embedding, transform, tokens
    ) as seen:
        outputs = model.model(x, training=training)
    if model.embedding is not None and seen.embedding is None:
        of_input = ""
        if model.chosen_input is not None:
            of_input = f" with the input {model.chosen_input}"
        raise ValueError(
            f"The embedding layer {model.embedding.name} was not called in "
            f"the forward pass{of_input}, so nothing can be perturbed. Set the "
            "argument `embedding` of `UEGRModel` to the layer that embeds the "
            "tokens."
        )
    return outputs, seen


def embedded_batch(model, x, seen, unperturbed_token_ids=()):
    """What the pass over `x` has `seen` at the embedding, as an `Embedded`.

    Args:
        model: The `UEGRModel`.
        x: The inputs of a batch.
        seen: The `interception.Seen` of the pass.
        unperturbed_token_ids: Token ids that may not be perturbed, beside
            padding.
    """
    named = model_parts.inputs_by_name(model.model, x)
    movable = padding.unpadded_embedding(model, named, seen.token_ids)
    unpadded = padding.unpadded_outputs(named, movable)
    if model.embedding is None:
        if model.perturbation is not None:
            # It was set after none was needed: the error says what to do.
            model_parts.find_embedding(model.model)
        return Embedded(None, None, unpadded)
    if model.perturbation is not None and len(seen.embedding.shape) != 3:
        raise ValueError(
            "The embedding layer that is perturbed must give a tensor of shape "
            "(examples, tokens, width). Set the argument `embedding` of "
            "`UEGRModel` to the layer that embeds the tokens. Received: "
            f"embedding={model.embedding.name}, which gives a tensor of shape "
            f"{tuple(seen.embedding.shape)}"
        )
    if movable is None:
        movable = ops.ones(ops.shape(seen.embedding)[:-1], dtype="float32")
    _check_token_ids(model, seen, unperturbed_token_ids)
    for token_id in unperturbed_token_ids:
        movable = movable * ops.cast(seen.token_ids != token_id, "float32")
    movable = ops.expand_dims(movable, axis=-1)
    return Embedded(ops.stop_gradient(seen.embedding), movable, unpadded)


def _check_token_ids(model, seen, unperturbed_token_ids):
    """What was embedded is one number for each token."""
    if unperturbed_token_ids and len(seen.token_ids.shape) != 2:
        raise ValueError(
            "`unperturbed_token_ids` needs a layer that is given token ids, of "
            "shape (examples, tokens). Leave it out, or set the argument "
            "`embedding` of `UEGRModel` to the layer that embeds the tokens. "
            f"Received: unperturbed_token_ids={unperturbed_token_ids}, "
            f"embedding={model.embedding.name}, which is given a tensor of "
            f"shape {tuple(seen.token_ids.shape)}"
        )
