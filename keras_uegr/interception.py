"""For one forward pass: what the embedding gives, and what dropout drops.

The model is never rebuilt. Inside the context manager the `call` of the
embedding layer and of the dropout layers is overridden on the instance; on
exit, also after an error, each is the class's own again. Whatever was traced
meanwhile keeps what it saw. Other threads, such as one that serves the model
while it is trained, call the original.
"""

import contextlib
import functools
import threading

import keras
from keras import ops

from keras_uegr import keras_internals


class Seen:
    """What one pass saw at the embedding layer.

    Attributes:
        token_ids: What the layer was given: an integer tensor of shape
            `(B, T)`, but where it embeds no tokens. `None` as long as it has
            not been called.
        embedding: Float tensor of shape `(B, T, D)`, what the rest of the
            model was given.
    """

    def __init__(self):
        self.token_ids = None
        self.embedding = None


@contextlib.contextmanager
def intercept_embedding(layer, transform, token_ids=None):
    """Passes what the embedding `layer` gives through `transform`.

    Only one of its calls. A tied embedding that is called with `reverse=True`,
    to give logits, is left alone.

    Args:
        layer: `keras.layers.Layer`, or `None` for no interception at all.
        transform: Function of a tensor `(B, T, D)`, or `None` to look on.
        token_ids: The very tensor that the call is given. Defaults to `None`,
            the first call.

    Yields:
        A `Seen`, filled in by the pass.
    """
    seen = Seen()
    if layer is None:
        yield seen
        return

    def call(original, inputs, *args, **kwargs):
        outputs = original(inputs, *args, **kwargs)
        if is_reversed(args, kwargs) or seen.embedding is not None:
            return outputs
        if token_ids is not None and inputs is not token_ids:
            return outputs
        if transform is not None:
            outputs = keras_internals.carry_mask(outputs, transform(outputs))
        seen.token_ids = inputs
        seen.embedding = outputs
        return outputs

    with _override(layer, call):
        yield seen


@contextlib.contextmanager
def intercept_dropout(model, layers, rates, seed):
    """Drops at each of `layers` with a rate of its own for each row.

    A dropout layer's output is dropped with the given rate instead of its own,
    and so is any other layer's, but the logits of a tied embedding. What is
    called with `training=False` drops nothing.

    Args:
        model: The model that the layers belong to.
        layers: List of `keras.layers.Layer`.
        rates: Float tensor of shape `(rows,)`, each in `[0, 1)`; `rows` is
            the first axis of every layer's input.
        seed: `keras.random.SeedGenerator`.

    Yields:
        A set, to which the pass adds the id of each layer that it reached.
    """
    reached = set()

    def call(layer, original, inputs, *args, **kwargs):
        reached.add(id(layer))
        if kwargs.get("training") is False:
            return original(inputs, *args, **kwargs)
        if isinstance(layer, keras.layers.Dropout):
            _check_rows(layer, inputs, rates)
            with _rate_zero(layer):
                # A subclass may do more than to drop.
                outputs = original(inputs, *args, **kwargs)
            return drop(outputs, rates, _noise_shape(layer, outputs), seed)
        outputs = original(inputs, *args, **kwargs)
        if is_reversed(args, kwargs):
            return outputs
        return keras.tree.map_structure(
            functools.partial(_drop_floats, rates=rates, seed=seed), outputs
        )

    with contextlib.ExitStack() as stack:
        if layers:
            stack.enter_context(keras_internals.attention_dropout(model))
        for layer in layers:
            stack.enter_context(
                _override(layer, functools.partial(call, layer))
            )
        yield reached


@contextlib.contextmanager
def _rate_zero(layer):
    """Inside it, the dropout `layer` doesn't drop by itself."""
    rate = layer.rate
    layer.rate = 0.0
    try:
        yield
    finally:
        layer.rate = rate


def _noise_shape(layer, inputs):
    """The shape of the mask of a dropout layer, for as many rows as there are.

    Fixed ones are those of a batch, and the sub-models run as one of more.
    """
    rows, *others = keras_internals.noise_shape(layer, inputs)
    if isinstance(rows, int) and rows != 1:
        rows = ops.shape(inputs)[0]
    return (rows, *others)


def _check_rows(layer, inputs, rates):
    """A layer may also drop what has one row, and is broadcast later."""
    found, rows = inputs.shape[0], rates.shape[0]
    if None not in (found, rows) and found not in (1, rows):
        raise ValueError(
            "Each example of a sub-model has its own dropout rate, so that the "
            "first axis of what a dropout layer is given must be that of the "
            "batch. Set the argument `dropout_layers` of `UEGRModel` to "
            f"others. Received: the layer {layer.name} with inputs of shape "
            f"{tuple(inputs.shape)} for {rows} rows"
        )


def is_reversed(args, kwargs):
    """Whether a tied embedding is called to give logits."""
    return kwargs.get("reverse", args[0] if args else False) is True


@contextlib.contextmanager
def watch_calls(layers):
    """Yields a set, to which a pass adds the id of each layer it calls."""
    called = set()

    def call(layer, original, *args, **kwargs):
        called.add(id(layer))
        return original(*args, **kwargs)

    with contextlib.ExitStack() as stack:
        for layer in layers:
            stack.enter_context(
                _override(layer, functools.partial(call, layer))
            )
        yield called


def drop(inputs, rates, noise_shape, seed):
    """Inverted dropout with one rate per row.

    Args:
        inputs: Float tensor of shape `(rows, ...)`.
        rates: Float tensor of shape `(rows,)`.
        noise_shape: Shape of the mask, broadcast to that of `inputs`.
        seed: `keras.random.SeedGenerator`.

    Returns:
        A tensor of the shape and dtype of `inputs`.
    """
    rates = ops.reshape(rates, (-1,) + (1,) * (len(inputs.shape) - 1))
    # Half precision would round draws up to 1, and drop at rate 0.
    draw = keras.random.uniform(noise_shape, dtype="float32", seed=seed)
    scale = ops.where(draw >= rates, 1.0 / (1.0 - rates), 0.0)
    return inputs * ops.cast(scale, inputs.dtype)


def _drop_floats(x, rates, seed):
    """One of a layer's outputs, dropped unless it is a mask or nothing."""
    if x is None or not keras.backend.is_float_dtype(x.dtype):
        return x
    dropped = drop(x, rates, ops.shape(x), seed)
    return keras_internals.carry_mask(x, dropped)


@contextlib.contextmanager
def _override(layer, call):
    """Replaces `layer.call` by `call(original, ...)`, on the instance."""
    # A quantized layer is called through `quantized_call` instead.
    name = "quantized_call" if layer.quantization_mode else "call"
    previous = vars(layer).get(name)
    original = getattr(layer, name)
    here = threading.local()
    here.is_overridden = True

    @functools.wraps(original)
    def override(*args, **kwargs):
        if getattr(here, "is_overridden", False):
            return call(original, *args, **kwargs)
        return original(*args, **kwargs)

    setattr(layer, name, override)
    try:
        yield
    finally:
        if previous is None:
            delattr(layer, name)
        else:
            setattr(layer, name, previous)
