"""The private Keras interfaces that this package relies on, all of them.

Each function wraps one. `tests/test_keras_internals.py` fails when a new Keras
changes what it does.
"""

import contextlib

import keras
from keras.src.backend import (
    compute_output_spec,
    get_keras_mask,
    set_keras_mask,
)


def sublayers(layer):
    """All layers inside `layer`, private attributes included.

    Public `Model.layers` stops at the first level, and layers such as
    KerasHub's `TransformerEncoder` keep their own layers private.
    """
    return layer._flatten_layers(include_self=False, recursive=True)


def statistics(model):
    """The variables of `model` that passes may write to, such as running means.

    Those of the metrics that its layers have are among them. Public
    `non_trainable_weights` holds all frozen weights besides. Weights that are
    quantized to 8 bits or less are frozen too.
    """
    layers = [model, *sublayers(model)]
    metrics = [metric for layer in layers for metric in layer._metrics]
    found = {
        id(variable): variable
        for variables in (
            *(layer._non_trainable_variables for layer in layers),
            *(metric.variables for metric in metrics),
        )
        for variable in variables
        if variable.dtype not in ("int8", "uint8")
    }
    return list(found.values())


def rematerialized_layers(model):
    """The layers in `model`, itself included, that run again for gradients.

    Those that a `keras.RematScope` makes recompute more than activations.
    """
    found = []
    for layer in [model, *sublayers(model)]:
        settings = layer._remat_mode
        if settings is None or settings.mode in (None, "activations"):
            continue
        listed = layer.name in settings.layer_names
        if listed or settings.mode != "list_of_layers":
            found.append(layer)
    return found


def compiled_loss(model):
    """The callable `(y, y_pred, sample_weight) -> scalar` of `compile`.

    Unlike `model.compute_loss` it leaves out the regularization losses, which
    an objective of several passes has to count once.
    """
    return model._compile_loss


def compiled_output_losses(model):
    """One `(path, loss)` for each output that has a loss, once built."""
    return [(item.path, item.loss) for item in model._compile_loss._flat_losses]


def axis_of(loss):
    """The axis of the outputs along which a Keras loss reads them.

    Not all losses that take an `axis` have it as an attribute.
    """
    return getattr(loss, "_fn_kwargs", {}).get("axis", -1)


def labels_by_path(model, labels):
    """`labels` as the compiled loss arranges them, once built.

    Args:
        model: A compiled `keras.Model`.
        labels: A structure of labels, such as a list of those of a model
            whose outputs are a dictionary: in the order of its sorted names,
            of all outputs or of those that have a loss.

    Returns:
        The structure in which the paths of `compiled_output_losses` lead to
        the labels of an output.
    """
    arranged = model._compile_loss._y_true_build_structure
    found = keras.tree.flatten(labels)
    paths = [path for path, _ in keras.tree.flatten_with_path(arranged)]
    if len(found) < len(paths):
        trained = {path for path, _ in compiled_output_losses(model)}
        rest = iter(found)
        found = [next(rest) if path in trained else None for path in paths]
    return keras.tree.pack_sequence_as(arranged, found)


def build_for_training(model, data):
    """Creates what `model` lacks to train: metrics and optimizer slots.

    Args:
        model: A compiled `keras.Model`.
        data: A batch of `keras.KerasTensor`s: `x`, `(x, y)` or
            `(x, y, sample_weight)`.
    """
    model._symbolic_build(data_batch=data)


def trace(function, inputs):
    """Runs `function` on symbolic `inputs`, as a compiled step would.

    Args:
        function: Function of what `inputs` is.
        inputs: Structure of `keras.KerasTensor`s. Sizes that are not known
            are taken as 2.
    """

    def of_known_size(tensor):
        shape = [size or 2 for size in tensor.shape]
        return keras.KerasTensor(shape, dtype=tensor.dtype)

    compute_output_spec(
        function, keras.tree.map_structure(of_known_size, inputs)
    )


def noise_shape(dropout, inputs):
    """The shape of the mask that the layer `dropout` draws for `inputs`."""
    shape = dropout.noise_shape
    if isinstance(
        dropout,
        (
            keras.layers.SpatialDropout1D,
            keras.layers.SpatialDropout2D,
            keras.layers.SpatialDropout3D,
        ),
    ):
        shape = dropout._get_noise_shape(inputs)
    full_shape = keras.ops.shape(inputs)
    if shape is None:
        return full_shape
    return tuple(
        full if size is None else size
        for size, full in zip(shape, full_shape, strict=True)
    )


def _is_rate_zero(value):
    return isinstance(value, (int, float)) and value == 0


def _switches_dropout(layer):
    attention = (
        keras.layers.MultiHeadAttention,
        keras.layers.GroupQueryAttention,
    )
    is_hub = type(layer).__module__.partition(".")[0] == "keras_hub"
    return (isinstance(layer, attention) or is_hub) and any(
        isinstance(inner, keras.layers.Dropout) for inner in layer._layers
    )


@contextlib.contextmanager
def attention_dropout(model):
    """Lets layers call the dropout layers that they hold, also at rate 0.

    At rate 0 attention takes a fused path that leaves them out. Layers of Keras
    and KerasHub only compare the rate with 0; others may compute with it.
    """
    changed = [
        (layer, name, vars(layer)[name])
        for layer in sublayers(model)
        for name in ("dropout", "_dropout")
        if _is_rate_zero(vars(layer).get(name)) and _switches_dropout(layer)
    ]
    for layer, name, _ in changed:
        setattr(layer, name, 1.0)
    try:
        yield
    finally:
        for layer, name, rate in changed:
            setattr(layer, name, rate)


def carry_mask(source, target, transform=None):
    """Gives `target` the Keras mask of `source`; returns `target`.

    Args:
        source: Tensor, with or without a mask.
        target: Tensor.
        transform: Optional function of the mask.
    """
    mask = get_keras_mask(source)
    if mask is not None and target is not source:
        set_keras_mask(target, transform(mask) if transform else mask)
    return target


def seed_generator_states(model):
    """The state variables of every seed generator inside `model`.

    Keras leaves them out of saved files.
    """
    return [
        variable
        for variable in model.non_trainable_variables
        if variable.name == "seed_generator_state"
    ]


def moving_averages(optimizer):
    """What the inner optimizer of `optimizer` averages with `use_ema=True`.

    Raises:
        AttributeError: If it averages nothing, or isn't built.
    """
    return optimizer.inner_optimizer._model_variables_moving_average


def applied_gradients(optimizer, gradients, variables):
    """The gradients as the update rule of `optimizer` receives them.

    Args:
        optimizer: A built Keras optimizer.
        gradients: List of gradients passed to its `apply`, some may be `None`.
        variables: List of their variables.

    Returns:
        List of gradients: unscaled, clipped, summed over replicas.
    """
    # In the order of Keras' own `apply`.
    applied = list(gradients)
    for part in getattr(optimizer, "optimizers", [optimizer]):
        known = {id(variable) for variable in part._trainable_variables}
        positions = [
            position
            for position, variable in enumerate(variables)
            if id(variable) in known and gradients[position] is not None
        ]
        if not positions:
            continue
        chosen = [gradients[position] for position in positions]
        if part.loss_scale_factor is not None:
            chosen = [gradient / part.loss_scale_factor for gradient in chosen]
        chosen = part._clip_gradients(chosen)
        if hasattr(part, "_all_reduce_sum_gradients"):
            owners = [variables[position] for position in positions]
            chosen = [
                gradient
                for gradient, _ in part._all_reduce_sum_gradients(
                    list(zip(chosen, owners, strict=True))
                )
            ]
        for position, gradient in zip(positions, chosen, strict=True):
            applied[position] = gradient
    return applied
