"""Builds a text classifier around a backbone or a preset."""

import keras
from keras import ops


@keras.saving.register_keras_serializable("keras_uegr")
class PooledClassifier(keras.Model):
    """Mean over the unpadded positions, dropout, and a dense layer.

    For KerasHub backbones without a classifier of their own, such as most
    decoder-only language models. Of an encoder-decoder model it is the
    decoder's output that is averaged.

    Args:
        backbone: A `keras_hub.models.Backbone` whose output is a sequence
            `(B, T, D)`, or a dict with the key `"sequence_output"` or
            `"decoder_sequence_output"`.
        num_classes: Positive integer, the width of the output.
        dropout: Float in `[0, 1)`, the rate before the dense layer. Defaults
            to `0.1`.

    Call arguments:
        inputs: What the backbone takes: a dict with `token_ids` and
            `padding_mask`, each of shape `(B, T)`, or with one such pair for
            the encoder and one for the decoder.

    Returns of a call:
        Logits of shape `(B, num_classes)`.
    """

    def __init__(self, backbone, num_classes, dropout=0.1, **kwargs):
        inputs = backbone.input
        sequence, part = backbone(inputs), ""
        if isinstance(sequence, dict):
            part = "" if "sequence_output" in sequence else "decoder_"
            sequence = sequence[f"{part}sequence_output"]
        mask = ops.expand_dims(inputs[f"{part}padding_mask"], axis=-1)
        mask = ops.cast(mask, sequence.dtype)
        # Keras' masked pooling is NaN for an example that is all padding.
        count = ops.maximum(ops.sum(mask, axis=1), 1.0)
        pooled = ops.sum(sequence * mask, axis=1) / count
        dtype = backbone.dtype_policy
        pooled = keras.layers.Dropout(
            dropout, dtype=dtype, name="classifier_dropout"
        )(pooled)
        outputs = keras.layers.Dense(num_classes, dtype=dtype, name="logits")(
            pooled
        )
        super().__init__(inputs=inputs, outputs=outputs, **kwargs)
        # Keras scales the loss by the policy of the model.
        self.dtype_policy = dtype
        self.backbone = backbone
        self.num_classes = num_classes
        self.dropout = dropout

    def get_config(self):
        return {
            "backbone": keras.saving.serialize_keras_object(self.backbone),
            "num_classes": self.num_classes,
            "dropout": self.dropout,
            "name": self.name,
        }

    @classmethod
    def from_config(cls, config):
        config = dict(config)
        config["backbone"] = keras.saving.deserialize_keras_object(
            config["backbone"]
        )
        return cls(**config)


def classifier_from_backbone(backbone, num_classes, preprocessor=None):
    """The KerasHub classifier of `backbone`, or a `PooledClassifier`.

    Args:
        backbone: A `keras_hub.models.Backbone`.
        num_classes: Positive integer.
        preprocessor: Optional `keras_hub.models.Preprocessor`, kept by the
            KerasHub classifier; a `PooledClassifier` does not hold it.

    Returns:
        A `keras.Model` with an attribute `backbone`.
    """
    classifier_class = _classifier_class(type(backbone))
    if classifier_class is None:
        return PooledClassifier(backbone, num_classes)
    return classifier_class(
        backbone=backbone, num_classes=num_classes, preprocessor=preprocessor
    )


def classifier_from_preset(preset, num_classes, load_weights=True):
    """The KerasHub classifier of a preset, or a `PooledClassifier`.

    Args:
        preset: String, see `keras_hub.models.Backbone.from_preset`.
        num_classes: Positive integer.
        load_weights: Boolean, `False` for random weights. Defaults to `True`.

    Returns:
        A `keras.Model` with an attribute `backbone`.
    """
    import keras_hub

    try:
        return keras_hub.models.TextClassifier.from_preset(
            preset, num_classes=num_classes, load_weights=load_weights
        )
    except ValueError:
        backbone = keras_hub.models.Backbone.from_preset(
            preset, load_weights=load_weights
        )
        if _classifier_class(type(backbone)) is not None:
            raise
        return PooledClassifier(backbone, num_classes)


def _classifier_class(backbone_class):
    import keras_hub

    for candidate in vars(keras_hub.models).values():
        if (
            isinstance(candidate, type)
            and issubclass(candidate, keras_hub.models.TextClassifier)
            and candidate.backbone_cls is backbone_class
        ):
            return candidate
    return None
