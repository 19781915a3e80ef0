"""Gradients of a model in inference, whatever its precision.

    g = grad(s * loss) / s,  with the largest s for which an entry is finite

In float16 small gradients vanish unless the loss is scaled, and large ones
overflow if it is. The scale of the optimizer was found for the batches of
training; a smaller batch, or an example that is far off, has larger gradients.
"""

from keras import ops

from keras_uegr import keras_internals, objective
from keras_uegr.optimizers.gradients import all_finite, densify

# Entries of float16 are between 2**-24 and 2**16: what is too large with one of
# these has bits to spare with the next.
_SCALES = (2.0**15, 2.0**4, 2.0**-8)


def differentiate(model, function, variables, watch_embedding):
    """As `model.differentiate`, but in float32 and of the loss itself.

    Where nothing is computed in float16 it takes one pass.

    Args:
        model: A compiled `UEGRModel`.
        function: Function of `watch` that gives `(loss, auxiliary)`.
        variables: List of variables.
        watch_embedding: Boolean.

    Returns:
        Tuple `(loss, auxiliary, gradients)`. The gradients are a list, one for
        each variable and then, if it is watched, that of the embedding; `None`
        where the loss does not depend on it.
    """

    def differentiate_at(scale):
        def scaled_loss(watch):
            loss, auxiliary = function(watch)
            # The optimizer's own scale, which is about to be applied.
            factor = scale / model.optimizer.scale_loss(ops.ones(()))
            scaled = ops.cast(loss, "float32") * ops.cast(factor, "float32")
            return scaled, (loss, auxiliary)

        _, results, gradients, of_embedding = model.differentiate(
            scaled_loss, variables, watch_embedding
        )
        if watch_embedding:
            gradients = [*gradients, of_embedding]
        return results, [
            None if x is None else ops.cast(densify(x), "float32") / scale
            for x in gradients
        ]

    first, *others = _SCALES if _uses_float16(model.model) else (1.0,)
    (loss, auxiliary), gradients = differentiate_at(first)
    for scale in others:
        gradients = _repaired(model, gradients, differentiate_at, scale)
    return loss, auxiliary, gradients


def _uses_float16(model):
    layers = [model, *keras_internals.sublayers(model)]
    return any(layer.compute_dtype == "float16" for layer in layers)


def _repaired(model, gradients, differentiate_at, scale):
    """The gradients, with those at `scale` where they aren't finite."""
    found = [x for x in gradients if x is not None]

    def repair():
        # What a pass assigns can't leave a branch on JAX.
        with objective.metrics_untouched(model):
            _, others = differentiate_at(scale)
        others = [x for x in others if x is not None]
        return [
            ops.where(ops.isfinite(x), x, other)
            for x, other in zip(found, others, strict=True)
        ]

    finite = iter(ops.cond(all_finite(found), lambda: found, repair))
    return [None if x is None else next(finite) for x in gradients]
