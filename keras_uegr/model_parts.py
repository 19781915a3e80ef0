"""Finds, inside the user's model, what the method works on."""

import functools
import re

import keras
from keras import ops

from keras_uegr import interception, keras_internals
from keras_uegr.optimizers.saliency_masked_optimizer import (
    SaliencyMaskedOptimizer,
)

BLOCK_LISTS = (
    "transformer_layers",
    "encoder_transformer_layers",
    "decoder_transformer_layers",
)
# Not the whole path, which holds the name of a subclassed model too.
EMBEDDINGS = r"embedding[^/]*(/[^/]+)?$"


def layer_names(layers):
    """The names of a layer or list of layers; names and `None` stay."""
    if layers is None or isinstance(layers, str):
        return layers
    if isinstance(layers, (list, tuple)):
        return [layer_names(layer) for layer in layers]
    if not isinstance(layers, keras.layers.Layer):
        raise ValueError(
            "Layers must be given as `keras.layers.Layer` or by name. "
            f"Received: {layers} (of type {type(layers).__name__})"
        )
    return layers.name


def find_layer(model, argument, name):
    """The layer of `model` with a name, which has to be unique."""
    layers = keras_internals.sublayers(model)
    chosen = [layer for layer in layers if layer.name == name]
    if len(chosen) == 1:
        return chosen[0]
    raise ValueError(
        f"`{argument}` must name layers of `model`, each by a name that only "
        f"one layer has. Received: {argument}={name}, the name of "
        f"{len(chosen)} layers."
    )


def find_embedding(model, name=None, required=True):
    """The token embedding layer of `model`.

    Args:
        model: `keras.Model`.
        name: Name of the layer, or `None` for KerasHub's
            `backbone.token_embedding`, else the only
            `keras.layers.Embedding` of the model.
        required: Boolean, whether to raise if there is none.

    Returns:
        A `keras.layers.Layer`, or `None`.

    Raises:
        ValueError: If there is none, or more than one to choose from.
    """
    if name is not None:
        return find_layer(model, "embedding", name)
    for owner in (getattr(model, "backbone", None), model):
        token_embedding = getattr(owner, "token_embedding", None)
        if token_embedding is not None:
            return token_embedding
    layers = keras_internals.sublayers(model)
    found = [x for x in layers if isinstance(x, keras.layers.Embedding)]
    if len(found) == 1:
        return found[0]
    if not required:
        return None
    raise ValueError(
        "`UEGRModel` perturbs the output of one token embedding layer and "
        f"found {len(found)} in the model: {[x.name for x in found]}. Set its "
        "argument `embedding` to the layer or its name, or `perturbation=None`."
    )


def takes_strings(model):
    """Whether an input of `model` holds strings, which it tokenizes itself."""
    inputs = getattr(model, "inputs", None) or []
    return any(x.dtype == "string" for x in inputs)


def embedded_input(model, embedding):
    """The name of the input that `embedding` is first called with.

    It is empty where the inputs have no names, or it isn't called with one.
    """
    inputs = inputs_by_name(model, symbolic_inputs(model))
    if embedding is None or not inputs:
        return ""
    try:
        tokens = embedding.input
    except (AttributeError, ValueError):
        # Only what was called with symbolic tensors knows them.
        return ""
    return next((name for name, x in inputs.items() if x is tokens), "")


def inputs_by_name(model, x):
    """The inputs `x` as a dict, which is empty where they have no names.

    Those in a list are named as the inputs that a functional model was made of.
    """
    if isinstance(x, dict):
        return x
    inputs = getattr(model, "inputs", None) or []
    if not isinstance(x, (list, tuple)) or len(x) != len(inputs):
        return {}
    return {tensor.name: value for tensor, value in zip(inputs, x, strict=True)}


def check_embedded_input(model, name):
    """`name` is that of an input, as far as the model knows its inputs."""
    inputs = symbolic_inputs(model)
    if name is not None and inputs is not None:
        _check_holds(inputs, name)


def named_input(model, x, name):
    """The input `name` of `x` as the very tensor that a layer will see.

    Args:
        model: `keras.Model`.
        x: Dict of inputs.
        name: The name of one.

    Returns:
        Tuple of `x` as tensors, and of that one.
    """
    _check_holds(x, name)
    inputs = symbolic_inputs(model)
    # A functional model would cast it, to another tensor. One inside of a
    # subclass is taken to be as KerasHub's are.
    dtype = "int32" if inputs is None else inputs[name].dtype
    tokens = ops.convert_to_tensor(x[name], dtype)
    x = keras.tree.map_structure(
        # An optional input may be left out.
        lambda value: None if value is None else ops.convert_to_tensor(value),
        x,
    )
    return {**x, name: tokens}, tokens


def symbolic_inputs(model):
    """The inputs that a functional model was made of, else `None`."""
    if not getattr(model, "inputs", None):
        return None
    if isinstance(model, keras.Sequential):
        # It has no `input` of its own.
        return model.inputs[0]
    return model.input


def _check_holds(inputs, name):
    names = sorted(inputs) if isinstance(inputs, dict) else []
    if name not in names:
        raise ValueError(
            "`embedded_input` must be the name of an input of a model whose "
            f"inputs are a dict, here one of {names}. "
            f"Received: embedded_input={name}"
        )


def find_dropout_layers(model, embedding=None, names=None):
    """The layers at which a sub-model drops.

    Args:
        model: `keras.Model`.
        embedding: The token embedding layer, or `None`.
        names: Optional list of names of the layers to drop at.

    Returns:
        The dropout layers of the model. If its backbone calls none, the
        embedding layer and the transformer blocks too, whose outputs are
        dropped then.

    Raises:
        ValueError: If there is nothing to drop.
    """
    if names is not None:
        names = [names] if isinstance(names, str) else names
        if not names:
            raise ValueError(
                "`dropout_layers` must name at least one layer. Set "
                "`dropout=None` for the model's own rates. "
                f"Received: dropout_layers={names}"
            )
        return [find_layer(model, "dropout_layers", name) for name in names]
    backbone = getattr(model, "backbone", model)
    dropouts = _called_dropouts(model)
    inside = {id(layer) for layer in keras_internals.sublayers(backbone)}
    if any(id(layer) in inside for layer in dropouts):
        return dropouts
    blocks = [
        layer
        for name in BLOCK_LISTS
        for layer in keras.tree.flatten(getattr(backbone, name, []))
    ]
    if blocks:
        return [x for x in [embedding, *blocks] if x is not None] + dropouts
    if dropouts:
        return dropouts
    raise ValueError(
        "`UEGRModel` found no dropout layer and no transformer block in the "
        "model, so the sub-models would all be the same. Set its argument "
        "`dropout_layers` to the layers whose outputs are to be dropped, or "
        "`dropout=None`."
    )


def _called_dropouts(model):
    """The dropout layers of `model`, without those it doesn't call.

    Some KerasHub decoders hold dropout layers that they never call.
    """
    layers = keras_internals.sublayers(model)
    layers = [x for x in layers if isinstance(x, keras.layers.Dropout)]
    is_functional = bool(getattr(model, "inputs", None))
    if not (is_functional and hasattr(model, "backbone")):
        return layers
    if all(layer.rate > 0 for layer in layers):
        return layers
    with (
        keras_internals.attention_dropout(model),
        interception.watch_calls(layers) as called,
    ):
        keras_internals.trace(
            functools.partial(model, training=True), symbolic_inputs(model)
        )
    return [layer for layer in layers if id(layer) in called]


def check_rematerialization(model, layers):
    """Refuses to change the outputs of `layers` that are computed twice.

    Raises:
        ValueError: If one of `layers` is in a rematerialized layer of `model`.
    """
    changed = {id(layer) for layer in layers}
    found = {
        outer.name
        for outer in keras_internals.rematerialized_layers(model)
        for layer in [outer, *keras_internals.sublayers(outer)]
        if id(layer) in changed
    }
    if found:
        raise ValueError(
            "`UEGRModel` changes the outputs of the embedding and of the "
            "dropout layers for the length of a pass. Layers that compute "
            "them again for the gradient would do so without the change. "
            "Create the model outside of `keras.RematScope`, or use the modes "
            '`"activations"` or `"list_of_layers"` with layers that hold '
            f"none of them. Received: layers {sorted(found)}"
        )


def variables_outside_backbone(model):
    """The trainable variables of `model` that are not its backbone's."""
    backbone = getattr(model, "backbone", None)
    if backbone is None:
        return []
    inside = {id(variable) for variable in backbone.trainable_variables}
    return [x for x in model.trainable_variables if id(x) not in inside]


def embedding_patterns(model):
    """Patterns of the paths of embeddings, none if all there are are frozen."""
    trainable = (variable.path for variable in model.trainable_variables)
    are_frozen = model.weights and not any(
        re.search(EMBEDDINGS, path) for path in trainable
    )
    return [] if are_frozen else [EMBEDDINGS]


def find_masked_optimizer(optimizer):
    """The `SaliencyMaskedOptimizer` in `optimizer`, or `None`.

    Raises:
        ValueError: If it is one of several in a `MultiOptimizer`.
    """
    while optimizer is not None:
        if isinstance(optimizer, SaliencyMaskedOptimizer):
            return optimizer
        for part in getattr(optimizer, "optimizers", []):
            if isinstance(part, SaliencyMaskedOptimizer):
                raise ValueError(
                    "`SaliencyMaskedOptimizer` goes around a `MultiOptimizer`, "
                    "not inside: "
                    "`SaliencyMaskedOptimizer(MultiOptimizer(...))`. Name what "
                    "the mask is to leave out in its `dense_variables`. "
                    f"Received: optimizer={optimizer.name}, around {part.name}"
                )
        optimizer = getattr(optimizer, "inner_optimizer", None)
    return None


def special_token_ids(preprocessor):
    """The special token ids of the preprocessor's tokenizer.

    Raises:
        ValueError: If there is no tokenizer that knows them.
    """
    tokenizer = getattr(preprocessor, "tokenizer", None)
    token_ids = getattr(tokenizer, "special_token_ids", None)
    if token_ids is None:
        raise ValueError(
            '`unperturbed_token_ids="special"` needs a preprocessor with a '
            "tokenizer that lists its special tokens. Pass the token ids "
            f"themselves. Received: preprocessor={preprocessor}"
        )
    return [int(token_id) for token_id in token_ids]
