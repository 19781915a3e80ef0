"""The loss around a trained model: along its inputs and along its weights.

    input gradient norm   mean over i of ||dl_i / de_i||_2
    loss rise             L(theta + radius * g / ||g||_2) - L(theta)
    top eigenvalue        v . Hv,  after  v <- Hv / ||Hv||_2  again and again,
                          Hv = (g(theta + h * v) - g(theta - h * v)) / (2 * h)

where l_i is the loss of example i and e_i its embedding, L the loss of all
examples in inference, as of one batch, without regularization, g = dL/dtheta
and H the Hessian of L, which is never computed as a whole. A small gradient at
the inputs is robustness to first order; a small rise and a small eigenvalue
mean a flat minimum, which is said to generalize better. The Hessian's
eigenvalue depends on how the weights are scaled, so it compares models of one
architecture only.
"""

import functools
import operator
import warnings

import keras
import numpy as np
from keras import ops

from keras_uegr import (
    argument_checks,
    keras_internals,
    model_parts,
    objective,
    value_checks,
)
from keras_uegr.batches import batches
from keras_uegr.evaluation.counted_entries import counted_entries, shares
from keras_uegr.evaluation.finite_gradients import differentiate
from keras_uegr.evaluation.labelled_data import preprocessed
from keras_uegr.sharpness import moved_along, warn_if_rough

_MEANS = ("sum_over_batch_size", "mean", "mean_with_sample_weight")


class LossLandscape:
    """Measures the loss around a model, on the same examples each time.

    Each method reads the weights that the model has when it is called, so one
    object follows a training. What it needs is compiled once.

    Args:
        model: A compiled and built `keras_uegr.UEGRModel`, whose losses are
            means over the batch, or over what a mask or an ignored class
            leaves of it. No measurement changes it.
        x: List of strings, or arrays, of `N` examples, as for `predict`.
        y: Array of `N` labels; a list or dictionary of arrays for a model of
            several outputs; `None` where the preprocessor makes the labels,
            as those of language models do.
        batch_size: Positive integer, examples at once. Defaults to `32`.

    Raises:
        ValueError: If the model is not compiled and built, the `reduction` of
            a loss is no mean, `batch_size` is not as above, or `x` and `y`
            don't fit to each other or to the model.

    Example:

    >>> landscape = keras_uegr.evaluation.LossLandscape(model, texts, labels)
    >>> landscape.input_gradient_norm() > 0
    True
    >>> rise = landscape.loss_rise(radius=0.05)
    >>> sharpness = landscape.top_hessian_eigenvalue(tolerance=0.1)

    Reference:
        - [Ross & Doshi-Velez, 2018](https://arxiv.org/abs/1711.09404), the
          gradient at the inputs
        - [Foret et al., 2021](https://arxiv.org/abs/2010.01412), the rise
        - [Yao et al., 2020](https://arxiv.org/abs/1912.07145), the eigenvalue
    """

    def __init__(self, model, x, y, batch_size=32):
        argument_checks.check_compiled(model)
        argument_checks.check_built(model)
        value_checks.check_positive_integers(batch_size=batch_size)
        _check_reductions(model)
        self.model = model
        x, y, sample_weight = preprocessed(model, x, y)
        self._data = x, y, batch_size, sample_weight
        self._examples = len(keras.tree.flatten(x)[0])
        self._norms = model.compile_inference(
            functools.partial(_gradient_norms, model)
        )
        self._loss_and_gradients = model.compile_inference(
            functools.partial(_loss_and_gradients, model)
        )

    def input_gradient_norm(self):
        """The mean norm of the loss's gradient at the embeddings.

        Returns:
            Float: the L2 norm over all `(T, D)` of an example, in units of the
            loss per unit of the embedding, averaged over the examples.

        Raises:
            ValueError: If the model has no embedding, or the loss does not
                depend on it.
        """
        if self.model.embedding is None:
            # It tells what to set.
            model_parts.find_embedding(self.model.model)
        self.model.fetch_state()
        found = []
        for batch in batches(*self._data):
            norms, counts = map(ops.convert_to_numpy, self._norms(batch))
            share = shares(counts, batch_size=1)
            # Of the batch's mean loss, which is to be the example's own.
            found.append(norms / np.where(share > 0, share, np.inf))
        return float(np.mean(np.concatenate(found)))

    def loss_rise(self, radius=0.05):
        """How much the loss rises where the weights move along their gradient.

        Args:
            radius: Positive float, finite, the L2 distance of all trainable
                weights together. Defaults to `0.05`.

        Returns:
            Float, the difference of the mean losses. It is inexact, and a
            warning says so, where weights are of half precision.

        Raises:
            ValueError: If `radius` is not as above, or no weight is trainable.
        """
        value_checks.check_positive(radius=radius)
        variables = _movable_variables(self.model)
        self.model.fetch_state()
        loss, gradients = self._mean()
        with moved_along(variables, gradients, radius):
            moved_loss, _ = self._mean()
        return float(moved_loss - loss)

    def top_hessian_eigenvalue(
        self, iterations=20, step=0.01, seed=0, tolerance=0.01
    ):
        """The largest eigenvalue, in magnitude, of the Hessian of the loss.

        Args:
            iterations: Positive integer, the most that the power iteration
                takes. Each takes two gradients of all examples. Defaults to
                `20`.
            step: Positive float, finite, how far the weights move, in L2, for
                the differences of gradients. Defaults to `0.01`.
            seed: Integer, of the first direction. Defaults to `0`.
            tolerance: Positive float, finite. The iteration ends as soon as
                one changes the eigenvalue by no larger share of itself.
                Defaults to `0.01`.

        Returns:
            Float. It is inexact, and a warning says so, where the iteration
            had to end before, or weights are of half precision.

        Raises:
            ValueError: If `iterations`, `step` or `tolerance` is not as above,
                or no weight is trainable.
        """
        value_checks.check_positive_integers(iterations=iterations)
        value_checks.check_positive(step=step, tolerance=tolerance)
        variables = _movable_variables(self.model)
        self.model.fetch_state()
        # Keras takes no integer of NumPy.
        generator = keras.random.SeedGenerator(operator.index(seed))
        direction = [
            keras.random.normal(variable.shape, dtype="float32", seed=generator)
            for variable in variables
        ]
        eigenvalue = np.inf
        for _ in range(iterations):
            direction, previous = _unit(direction), eigenvalue
            product = self._hessian_times(variables, direction, step)
            eigenvalue = _dot(direction, product)
            direction = product
            if abs(eigenvalue - previous) <= tolerance * abs(eigenvalue):
                return eigenvalue
        warnings.warn(
            "The power iteration has not converged: before the last of "
            f"{iterations} iterations the eigenvalue was {previous:.4g}, after "
            f"it {eigenvalue:.4g}. Raise `iterations` or `tolerance`.",
            stacklevel=2,
        )
        return eigenvalue

    def _hessian_times(self, variables, direction, step):
        with moved_along(variables, direction, step):
            _, ahead = self._mean()
        with moved_along(variables, direction, -step):
            _, behind = self._mean()
        return [
            (a - b) / (2 * step) for a, b in zip(ahead, behind, strict=True)
        ]

    def _mean(self):
        """Loss and gradients of all examples."""
        loss, gradients, counted = 0.0, None, []
        for batch in batches(*self._data):
            value, counts, found = self._loss_and_gradients(batch)
            counted.append([float(count) for count in counts])
            weight = counted[-1][0]
            loss += weight * float(value)
            found = [weight * gradient for gradient in found]
            if gradients is not None:
                found = [a + b for a, b in zip(gradients, found, strict=True)]
            gradients = found
        counted = np.transpose(counted)
        shares(counted, batch_size=self._examples)
        total = sum(counted[0]) or 1.0
        return loss / total, [gradient / total for gradient in gradients]


def _check_reductions(model):
    if model.loss is None:
        raise ValueError(
            "The model must be compiled with a loss to measure: call "
            f"`compile(loss=...)`. Received: loss=None, in model={model.name}"
        )
    for loss in keras.tree.flatten(model.loss):
        # Names and functions have none: Keras makes means of them.
        reduction = getattr(loss, "reduction", _MEANS[0])
        if reduction not in _MEANS:
            raise ValueError(
                "Each compiled loss must be a mean over the batch: its "
                f"`reduction` must be one of {list(_MEANS)}. "
                f"Received: reduction={reduction}"
            )


def _movable_variables(model):
    """The trainable weights, which a measurement is about to move."""
    variables = model.trainable_variables
    if not variables:
        raise ValueError(
            "There must be a trainable weight to move. Set `trainable=True` "
            "for the model or one of its layers, and compile it again. "
            f"Received: model={model.name}"
        )
    warn_if_rough(
        [variable.dtype for variable in variables],
        "what is measured by moving them is inexact. Measure the model in "
        "float32: build it so, and load its weights.",
        stacklevel=3,
    )
    return variables


def _gradient_norms(model, data):
    """The norm of each example's gradient, `(B,)`, and what is counted."""
    batch = objective.Batch(*data)

    def loss(watch):
        value, outputs = objective.perturbed_pass(
            model, batch, 0.0, watch, training=False
        )
        return value, counted_entries(model, batch, outputs)

    _, counts, [gradient] = differentiate(model, loss, [], watch_embedding=True)
    argument_checks.check_embedding_gradient(model, gradient)
    return ops.sqrt(ops.sum(ops.square(gradient), axis=(1, 2))), counts


def _loss_and_gradients(model, data):
    """The loss of a batch, what it counts, and the weights' gradients."""
    batch = objective.Batch(*data)

    def loss(transform):
        del transform
        outputs = model(batch.x, training=False)
        loss_of = keras_internals.compiled_loss(model)
        with objective.metrics_untouched(model):
            value = loss_of(batch.y, outputs, batch.weights())
        counts = counted_entries(model, batch, outputs)
        return value, ops.sum(counts, axis=1)

    variables = model.trainable_variables
    value, counts, gradients = differentiate(
        model, loss, variables, watch_embedding=False
    )
    gradients = [
        ops.zeros(variable.shape, dtype="float32") if x is None else x
        for variable, x in zip(variables, gradients, strict=True)
    ]
    return value, counts, gradients


def _unit(tensors):
    length = _dot(tensors, tensors) ** 0.5
    # With no curvature at all every direction is as good.
    return [tensor / length if length else tensor for tensor in tensors]


def _dot(tensors, others):
    return sum(
        float(ops.sum(a * b)) for a, b in zip(tensors, others, strict=True)
    )
