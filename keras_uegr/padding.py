"""Padding: which positions of a batch hold a token.

KerasHub's models are told so by an input: `padding_mask`, and where there are
an encoder and a decoder by one for each. What is embedded has the mask of the
input that it came from. Outputs that are one for each token follow the
decoder, where there is one. The sequences may differ in length.
"""

from keras import ops


def unpadded_embedding(model, x, token_ids):
    """Float tensor, 0 where the embedded tokens are padding.

    Args:
        model: The `UEGRModel`.
        x: The model's inputs by name.
        token_ids: Integer tensor of shape `(B, T)`, the embedded tokens, or
            whatever else the embedding layer was given, or `None` if it isn't
            known.

    Returns:
        A tensor of shape `(B, T)`, or `None` if nothing tells.
    """
    for name in _masks_of(model.embedded_input):
        if name in x:
            return ops.cast(x[name], "float32")
    if token_ids is None:
        return None
    if model.embedding is not None:
        mask = model.embedding.compute_mask(token_ids, None)
        if mask is not None:
            return ops.cast(mask, "float32")
    padding = model.padding_token_id
    if padding is None or len(token_ids.shape) != 2:
        return None
    return ops.cast(token_ids != padding, "float32")


def _masks_of(embedded_input):
    """The names that the mask of an input may have, the likeliest first."""
    part, _, _ = embedded_input.rpartition("token_ids")
    names = [f"{part}padding_mask", "padding_mask"]
    # What is embedded first is the encoder's.
    return names if part else [*names, "encoder_padding_mask"]


def unpadded_outputs(x, unpadded):
    """Float tensor, 0 where outputs of tokens are those of padding.

    Args:
        x: The model's inputs by name.
        unpadded: What `unpadded_embedding` returned.

    Returns:
        A tensor of shape `(B, T)`, or `None` if nothing tells, or the outputs
        aren't one for each token.
    """
    if "mask_positions" in x:
        # A masked language model predicts at these alone.
        return None
    if "decoder_padding_mask" in x:
        return ops.cast(x["decoder_padding_mask"], "float32")
    return unpadded
