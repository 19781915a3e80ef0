"""Which layers of a model are frozen, kept in its file.

The configuration of many models, KerasHub's among them, holds only the sizes of
the layers that they are made of. Made from it, they would train what was
frozen, and their optimizer, of other variables, would lose its state.
"""

from keras_uegr import keras_internals


def serialize(model):
    """What `restore` needs.

    Args:
        model: `keras.Model`.

    Returns:
        A list of positions, empty where nothing is frozen.
    """
    return [
        position for position, layer in _positions(model) if not layer.trainable
    ]


def restore(model, frozen):
    """Freezes the layers that `serialize` found, and no other."""
    layers = {
        id(layer): (layer, position not in frozen)
        for position, layer in _positions(model)
    }
    # Setting it spreads to all layers inside, which have fewer inside.
    for layer, trainable in sorted(
        layers.values(),
        key=lambda item: len(keras_internals.sublayers(item[0])),
        reverse=True,
    ):
        # Where it needn't be set, variables keep their own setting.
        if layer.trainable != trainable:
            layer.trainable = trainable


def _positions(model):
    """Pairs of a position, as JSON holds it, and the layer there.

    Not of layers that are only attributes, which a file doesn't bring back.
    """
    groups = [
        [model],
        *([outer, *keras_internals.sublayers(outer)] for outer in model.layers),
    ]
    # A layer that lacks its sublayers until it is built shifts no other's.
    return [
        ([i, j], layer)
        for i, group in enumerate(groups)
        for j, layer in enumerate(group)
    ]
