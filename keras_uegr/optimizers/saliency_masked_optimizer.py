"""An optimizer that updates only the most salient parameters.

Algorithm. With the inner optimizer's step `inner(theta, g)`, for each masked
variable `theta` and the gradient `g` that is applied (averaged over
accumulated micro-batches, and clipped):

    s      = saliency(theta, g)                  (saliency.py)
    mask   = selection of s at `density`         (selection.py)
    new    = inner(theta, g)                     decay, momentum, schedule
    theta <- where(mask, new, theta)             the others: bit for bit

Masking gradients instead, as Child-Tuning's released code (arXiv:2109.05687)
does, lets weight decay and momentum move the masked weights. The inner
optimizer's own state sees every gradient: an entry that is selected later has
its moments ready.
"""

import copy
import math
import numbers
import re

import keras
from keras import ops

from keras_uegr import keras_internals
from keras_uegr.optimizers import saliency as saliencies
from keras_uegr.optimizers import selection
from keras_uegr.optimizers.conditional import run_if

_SCOPES = ("variable", "global")


@keras.saving.register_keras_serializable("keras_uegr")
class SaliencyMaskedOptimizer(keras.optimizers.Optimizer):
    """Wraps an optimizer so that only the most salient entries are updated.

    Unselected entries keep their value exactly, whatever the inner optimizer's
    weight decay, momentum or schedule. Variables of one axis (biases, layer
    normalization) are always updated in full, and so are those that
    `dense_variables` or `exclude_from_masking` name. `UEGRModel` names the
    variables outside the backbone.

    Args:
        inner_optimizer: A `keras.optimizers.Optimizer`, or its name.
        density: Float in `[0, 1]`, the share of the entries with a non-zero
            score that is updated. With `1` it is the inner optimizer. Defaults
            to `0.3`.
        saliency: `"taylor"` (default), `"gradient"`, `"fisher"`, or a callable
            `(variable, gradient) -> scores` of float32 tensors.
        scope: `"variable"` (default), the share is taken of each variable, or
            `"global"`, of all masked variables together.
        dense_variables: Optional list of regular expressions; a variable is
            updated in full if one is found in its `path`.
        gradient_accumulation_steps: Optional integer, at least 2: number of
            steps whose gradients are averaged before one update.
        fisher_decay: Float in `[0, 1)`, of the running mean of
            `saliency="fisher"`. Defaults to `0.99`.
        exact: Boolean. If `True`, sort all scores instead of a sample. Slow on
            large models. Defaults to `False`.
        name: Optional string.

    Raises:
        TypeError: If `inner_optimizer` is not an optimizer.
        ValueError: If an argument is out of its range, or belongs on the
            inner optimizer or around this one.

    Example:

    >>> optimizer = keras_uegr.SaliencyMaskedOptimizer(
    ...     keras.optimizers.AdamW(5e-5), density=0.3
    ... )

    Reference:
        - [Sun et al., 2025](https://arxiv.org/abs/2503.16550)
        - [Xu et al., 2021](https://arxiv.org/abs/2109.05687)
        - [Liang et al., 2022](https://arxiv.org/abs/2202.02664)
    """

    def __init__(
        self,
        inner_optimizer,
        density=0.3,
        saliency="taylor",
        scope="variable",
        dense_variables=None,
        gradient_accumulation_steps=None,
        fisher_decay=0.99,
        exact=False,
        name=None,
        **kwargs,
    ):
        if kwargs:
            raise ValueError(
                "`SaliencyMaskedOptimizer` does not accept the arguments "
                f"{sorted(kwargs)}. Pass them to the inner optimizer instead. "
                f"Received: {kwargs}"
            )
        inner_optimizer = keras.optimizers.get(inner_optimizer)
        _check_inner(inner_optimizer)
        _check_share("density", density, 1.0)
        _check_share("fisher_decay", fisher_decay, math.nextafter(1.0, 0.0))
        if scope not in _SCOPES:
            raise ValueError(
                '`scope` must be "variable" or "global". '
                f"Received: scope={scope}"
            )
        score = saliencies.get(saliency)
        super().__init__(
            learning_rate=0.0,
            gradient_accumulation_steps=gradient_accumulation_steps,
            name=name,
        )
        self.inner_optimizer = inner_optimizer
        self.density = density
        self.saliency = saliency
        self._score = score
        self.scope = scope
        self.dense_variables = list(dense_variables or [])
        self.fisher_decay = fisher_decay
        self.exact = exact
        self._dense_ids = set()
        self._mean_squares = {}

    def exclude_from_masking(self, var_list=None, var_names=None):
        """Updates variables in full; may be called before `build`.

        Args:
            var_list: Optional list of `keras.Variable`s.
            var_names: Optional list of regular expressions, as in
                `dense_variables`.
        """
        self._dense_ids |= {id(variable) for variable in var_list or []}
        self.dense_variables += var_names or []

    def is_masked(self, variable):
        """Whether only the salient entries of `variable` are updated."""
        return (
            len(variable.shape) > 1
            and id(variable) not in self._dense_ids
            and not any(re.search(x, variable.path) for x in self.dense_variables)
        )

    def build(self, variables):
        if self.built:
            return
        self.inner_optimizer.build(variables)
        super().build(variables)
        self.updated_fraction = self.add_variable(
            shape=(), dtype="float32", name="updated_fraction"
        )
        self._entries = sum(math.prod(x.shape) for x in variables)
        if self.saliency == "fisher":
            self._mean_squares = {
                id(variable): self.add_variable_from_reference(
                    variable, name="mean_square_gradient"
                )
                for variable in variables
                if self.is_masked(variable)
            }

    @property
    def variables(self):
        return self._variables[:] + self.inner_optimizer.variables

    @property
    def learning_rate(self):
        return self.inner_optimizer.learning_rate

    @learning_rate.setter
    def learning_rate(self, learning_rate):
        self.inner_optimizer.learning_rate = learning_rate

    @property
    def iterations(self):
        """Updates so far, as the inner optimizer counts them."""
        return self.inner_optimizer.iterations

    def apply(self, grads, trainable_variables=None):
        """Updates the variables according to their gradients.

        Args:
            grads: List of gradients, or `None` where there is none.
            trainable_variables: List of the `keras.Variable`s. Optional once
                the optimizer is built.
        """
        if len(grads) == 0:
            return
        if trainable_variables is not None:
            variables = list(trainable_variables)
            self.build(variables)
        elif self.built:
            variables = self._trainable_variables
        else:
            raise ValueError(
                "When passing `grads` without `trainable_variables`, the "
                "optimizer must be built first: call "
                "`optimizer.build(trainable_variables)`."
            )
        if self.gradient_accumulation_steps:
            self._accumulate(list(grads), variables)
        else:
            self._update(list(grads), variables)
        self._iterations.assign_add(1)

    def _accumulate(self, gradients, variables):
        steps = self.gradient_accumulation_steps
        sums = [
            self._accumulated_gradients[self._get_variable_index(variable)]
            for variable in variables
        ]
        for total, gradient in zip(sums, gradients, strict=True):
            if gradient is not None:
                total.assign(_dense(gradient, total) + total)

        def update():
            means = [
                None if gradient is None else total / steps
                for total, gradient in zip(sums, gradients, strict=True)
            ]
            self._update(means, variables)
            for total in sums:
                total.assign(ops.zeros(total.shape, total.dtype))

        is_update = ops.equal((self._iterations + 1) % steps, 0)
        run_if(is_update, update, variables + self.variables)

    def _update(self, gradients, variables):
        if self.density == 1:
            self.inner_optimizer.apply(gradients, variables)
            self.updated_fraction.assign(1.0)
            return
        masks = self._masks(gradients, variables)
        before = {
            index: ops.copy(variables[index].value) for index in masks
        }
        self.inner_optimizer.apply(gradients, variables)
        updated = 0.0
        for index, variable in enumerate(variables):
            if index in masks:
                mask = masks[index]
                variable.assign(ops.where(mask, variable.value, before[index]))
                updated = updated + ops.sum(ops.cast(mask, "float32"))
            elif gradients[index] is not None:
                updated = updated + float(math.prod(variable.shape))
        self.updated_fraction.assign(updated / self._entries)

    def _masks(self, gradients, variables):
        """The boolean mask of each masked variable, by its index."""
        gradients = keras_internals.clipped_gradients(
            self.inner_optimizer, gradients
        )
        scores = {
            index: self._scores(variable, gradient)
            for index, (variable, gradient) in enumerate(
                zip(variables, gradients, strict=True)
            )
            if gradient is not None and self.is_masked(variable)
        }
        if not scores:
            return {}
        thresholds = self._thresholds(list(scores.values()))
        return {
            index: selection.mask(score, thresholds[group])
            for group, (index, score) in enumerate(scores.items())
        }

    def _scores(self, variable, gradient):
        value = ops.cast(variable, "float32")
        gradient = ops.cast(_dense(gradient, variable), "float32")
        mean_square = self._mean_squares.get(id(variable))
        if mean_square is not None:
            decay = self.fisher_decay
            gradient = decay * ops.cast(mean_square, "float32") + (
                1.0 - decay
            ) * ops.square(gradient)
            mean_square.assign(gradient)
        return self._score(value, gradient)

    def _thresholds(self, scores):
        """One threshold for each of `scores`."""
        if self.scope == "global":
            stride = 1 if self.exact else selection.stride_for(scores)
            samples = [selection.strided_sample(x, stride) for x in scores]
            pooled = ops.concatenate(samples)[None]
            threshold = selection.thresholds(pooled, self.density)[0]
            return [threshold] * len(scores)
        if self.exact:
            samples = [selection.strided_sample(x, 1)[None] for x in scores]
            return [
                selection.thresholds(x, self.density)[0] for x in samples
            ]
        samples = ops.stack([selection.sample(x) for x in scores])
        return ops.unstack(selection.thresholds(samples, self.density))

    def exclude_from_weight_decay(self, var_list=None, var_names=None):
        self.inner_optimizer.exclude_from_weight_decay(var_list, var_names)

    def finalize_variable_values(self, var_list):
        self.inner_optimizer.finalize_variable_values(var_list)

    def get_config(self):
        return {
            "inner_optimizer": keras.optimizers.serialize(
                self.inner_optimizer
            ),
            "density": self.density,
            "saliency": saliencies.serialize(self.saliency),
            "scope": self.scope,
            "dense_variables": self.dense_variables,
            "gradient_accumulation_steps": self.gradient_accumulation_steps,
            "fisher_decay": self.fisher_decay,
            "exact": self.exact,
            "name": self.name,
        }

    @classmethod
    def from_config(cls, config, custom_objects=None):
        # Keras' `deserialize` changes what it is given.
        config = copy.deepcopy(config)
        config["inner_optimizer"] = keras.optimizers.deserialize(
            config["inner_optimizer"], custom_objects=custom_objects
        )
        config["saliency"] = saliencies.deserialize(config["saliency"])
        return cls(**config)


def _dense(gradient, like):
    """`gradient` as one dense tensor, rows that occur twice added up."""
    if hasattr(gradient, "indices"):
        return ops.add(ops.zeros(like.shape, like.dtype), gradient)
    return gradient


def _check_share(name, value, highest):
    if not isinstance(value, numbers.Real) or not 0 <= value <= highest:
        interval = "[0, 1]" if highest == 1.0 else "[0, 1)"
        raise ValueError(
            f"`{name}` must be a number in {interval}. "
            f"Received: {name}={value}"
        )


def _check_inner(optimizer):
    wrappers = (keras.optimizers.LossScaleOptimizer, SaliencyMaskedOptimizer)
    if isinstance(optimizer, wrappers):
        raise ValueError(
            f"`inner_optimizer` must not be a {type(optimizer).__name__}. Put "
            "a LossScaleOptimizer around the SaliencyMaskedOptimizer, and use "
            "one SaliencyMaskedOptimizer only. "
            f"Received: inner_optimizer={optimizer}"
        )
    if getattr(optimizer, "gradient_accumulation_steps", None):
        raise ValueError(
            "Set `gradient_accumulation_steps` on the SaliencyMaskedOptimizer "
            "instead of on the inner optimizer, since the mask comes from the "
            "accumulated gradient. Received: inner_optimizer with "
            f"gradient_accumulation_steps="
            f"{optimizer.gradient_accumulation_steps}"
        )
