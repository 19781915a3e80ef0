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
        x: The model's input.
        token_ids: Integer tensor of shape `(B, T)`, the embedded tokens, or
            `None` if they aren't known.

    Returns:
        A tensor of shape `(B, T)`, or `None` if nothing tells.
    """
    if isinstance(x, dict):
        part = model.embedded_input.removesuffix("token_ids")
        for name in (f"{part}padding_mask", "encoder_padding_mask"):
            if name in x:
                return ops.cast(x[name], "float32")
    if token_ids is None:
        return None
    padding = model.padding_token_id
    if getattr(model.embedding, "mask_zero", False):
        padding = 0
    return (
        None if padding is None else ops.cast(token_ids != padding, "float32")
    )


def unpadded_outputs(x, unpadded):
    """Float tensor, 0 where outputs of tokens are those of padding.

    Args:
        x: The model's input.
        unpadded: What `unpadded_embedding` returned.

    Returns:
        A tensor of shape `(B, T)`, or `None` if nothing tells, or the outputs
        aren't one for each token.
    """
    if isinstance(x, dict):
        if "mask_positions" in x:
            # A masked language model predicts at these alone.
            return None
        if "decoder_padding_mask" in x:
            return ops.cast(x["decoder_padding_mask"], "float32")
    return unpadded
