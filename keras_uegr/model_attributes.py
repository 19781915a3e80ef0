"""The attributes that a user set on a plain `keras.Model`, kept in a file.

`model.backbone = backbone` tells `UEGRModel` what to perturb and what to mask,
and `model.preprocessor` how to read strings. Keras writes the layers of a model
to a file, not what was set on it: without these attributes the loaded model
would train otherwise than the saved one. Layers are written as their names.

The backbone may be a layer of the model, or a model whose layers the user's
model goes through one by one. The latter isn't in the file, and a
`BackboneLayers` takes its place.
"""

import collections

import keras

from keras_uegr import keras_internals
from keras_uegr.custom_objects import is_serializable
from keras_uegr.model_parts import BLOCK_LISTS

_PARTS = ("token_embedding", *BLOCK_LISTS)


class BackboneLayers(keras.layers.Layer):
    """Those layers of a model that are its backbone.

    Args:
        layers: List of `keras.layers.Layer`.
        parts: Dictionary of attributes to set, each a layer or a list of them.
        name: String, the name of the backbone.
    """

    def __init__(self, layers, parts, name):
        super().__init__(name=name)
        self.layers = layers
        for part, value in parts.items():
            setattr(self, part, value)
        self.built = True

    def call(self, inputs):
        raise NotImplementedError(
            "The backbone of a loaded model is called as part of it. Call "
            "`model` instead."
        )


def serialize(model, model_config):
    """What `restore` needs.

    Args:
        model: `keras.Model`.
        model_config: What its `get_config` returned. What it holds under the
            name of an attribute, as those of KerasHub's tasks do, is left out.

    Returns:
        A dictionary that can be written as JSON.
    """
    layers = _named_layers(model)
    attributes = _describe_parts(model, layers)
    backbone = getattr(model, "backbone", None)
    if isinstance(backbone, keras.layers.Layer):
        attributes["backbone"] = _describe_backbone(backbone, layers)
    preprocessor = getattr(model, "preprocessor", None)
    # What Keras can't load would make the whole file useless.
    if preprocessor is not None and is_serializable(preprocessor):
        attributes["preprocessor"] = keras.saving.serialize_keras_object(
            preprocessor
        )
    return {
        name: value
        for name, value in attributes.items()
        if name not in model_config
    }


def restore(model, attributes):
    """Sets on `model` what it lacks of what `serialize` returned."""
    layers = _named_layers(model)
    for name, value in attributes.items():
        if getattr(model, name, None) is not None:
            continue
        if name == "preprocessor":
            value = keras.saving.deserialize_keras_object(value)
        elif isinstance(value, dict):
            parts = {
                part: _find(layers, found)
                for part, found in value["parts"].items()
            }
            value = BackboneLayers(
                _find(layers, value["layers"]), parts, value["name"]
            )
        else:
            value = _find(layers, value)
        setattr(model, name, value)


def _named_layers(model):
    """The layers of `model` by name, as far as names are unique."""
    # Not those that are only attributes, which a file doesn't bring back.
    layers = {
        id(layer): layer
        for outer in model.layers
        for layer in keras_internals.sublayers(outer)
    }
    counts = collections.Counter(layer.name for layer in layers.values())
    unique = [x for x in layers.values() if counts[x.name] == 1]
    return {layer.name: layer for layer in [*unique, *model.layers]}


def _find(layers, names):
    if isinstance(names, str):
        return layers.get(names)
    return [layers[name] for name in names if name in layers]


def _describe_parts(owner, layers):
    """The names of the layers that `owner` has as its attributes."""
    described = {}
    for part in _PARTS:
        value = getattr(owner, part, None)
        flat = keras.tree.flatten(value)
        if value is None or any(x not in layers.values() for x in flat):
            continue
        is_layer = isinstance(value, keras.layers.Layer)
        described[part] = value.name if is_layer else [x.name for x in flat]
    return described


def _describe_backbone(backbone, layers):
    if layers.get(backbone.name) is backbone:
        return backbone.name
    inside = {id(layer) for layer in keras_internals.sublayers(backbone)}
    return {
        "name": backbone.name,
        "layers": [name for name, x in layers.items() if id(x) in inside],
        "parts": _describe_parts(backbone, layers),
    }
