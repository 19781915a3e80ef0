"""An optimizer around any other, which updates the most salient entries only.

Algorithm of one step:

    theta_old <- theta
    g         <- the gradient that the inner optimizer applies, that is
                 accumulated, unscaled, clipped, summed over replicas
    s         <- saliency(theta_old, g)                         (saliency.py)
    mask      <- the `density` highest of the non-zero s        (selection.py),
                 or those of an earlier step                    (selector.py)
    theta     <- inner optimizer's step from theta_old, unchanged
    theta     <- where(mask, theta, theta_old)

The released codes of Child-Tuning (arXiv:2109.05687) and RoAST
(arXiv:2312.04032) mask the gradient instead. Weight decay and momentum then go
on moving the entries that are masked; here these keep every bit.
"""

import copy
import math

import keras
from keras import ops

from keras_uegr import keras_internals
from keras_uegr.optimizers import argument_checks
from keras_uegr.optimizers.dense_variables import DenseVariables, is_overwritten
from keras_uegr.optimizers.gradients import add_up, copy_of
from keras_uegr.optimizers.selector import Selector
from keras_uegr.optimizers.stored_state import StoredState
from keras_uegr.trainers import restore, run_either


@keras.saving.register_keras_serializable("keras_uegr")
class SaliencyMaskedOptimizer(StoredState, keras.optimizers.Optimizer):
    """Updates the most salient share of the weights, and no other.

    It wraps any Keras optimizer. In each step the inner optimizer computes its
    update from the full gradient; the entries that aren't selected then keep
    their old value bit for bit: weight decay, momentum, constraints and the
    overwriting of weights with a moving average in a step included. At the end
    of `fit` Keras overwrites all weights with their averages, those included
    that the mask had kept.

    Always updated in full are biases, other variables of less than two axes
    (the parameters of normalization layers), the factors of LoRA, those that
    `dense_variables` matches and those passed to `exclude_from_masking`.
    `keras_uegr.UEGRModel` passes the variables outside the backbone, such as a
    new classification head. An entry of zero saliency is never selected, such
    as the embedding of a token that isn't in the batch; but `"fisher"`
    remembers earlier batches, and `"inverse_gradient"` selects first what has
    no gradient. By the Taylor score a weight of zero is never selected either:
    name a matrix that starts at zero in `dense_variables`.

    The inner optimizer's state goes on as without a mask: its momentum also
    remembers steps that weren't taken, and a moving average (`use_ema`)
    averages the values that it proposed.

    Args:
        inner_optimizer: A `keras.optimizers.Optimizer`, or its name. Learning
            rate, weight decay, clipping and moving average belong to it. A
            `LossScaleOptimizer` goes around this optimizer, not inside.
        density: Float between 0 and 1, the share of the entries with non-zero
            saliency to update. 1 is the inner optimizer alone. Defaults to
            `0.8`.
        saliency: How entries are scored: `"taylor"`, the weight times its
            gradient; `"gradient"`; `"inverse_gradient"`, the least first;
            `"fisher"`, the squared gradient averaged over the steps;
            `"random"`, drawn for each selection; or a function
            `(value, gradient) -> scores` of `keras.ops`. Defaults to
            `"taylor"`.
        scope: `"variable"` to select the same share of each variable,
            `"global"` to let the entries of all masked variables compete, or
            `"tensor"` to select the share of the masked variables, each as a
            whole, scored by the norms of its value and its gradient. Defaults
            to `"variable"`.
        dense_variables: List of regular expressions, searched for in the paths
            of the variables, or `None`. What matches is updated in full. A
            warning tells of one that matches no variable. Defaults to `None`.
        gradient_accumulation_steps: Integer of at least 2, or `None`. The
            weights are updated once in so many steps, by the mean gradient,
            which the mask is made from as well. Set it here and not on the
            inner optimizer. Its learning rate schedule counts updates then.
            Defaults to `None`.
        exact: Boolean. If `True`, the threshold comes from all scores instead
            of a sample, which holds 8192 of a variable. Slow: for tests, small
            models, and small densities: from a sample 0.01 may come out as
            0.009 or 0.012, and 0.001 as half of it or half as much again.
            Defaults to `False`.
        fisher_decay: Float between 0 and 1, the weight of the past in the
            average of `saliency="fisher"`. With 1 the average stays what
            `prepare_saliency` made it. Defaults to `0.9`.
        seed: Integer or `None`, the seed of `saliency="random"` and of
            `rank_noise`. Defaults to `None`.
        rank_noise: Float, at least 0. If positive, entries are drawn: one of
            rank `r`, from 0 to 1, with the probability
            `sigmoid((r - c) / rank_noise)`, `c` such that `density` of them
            are expected; a positive `density` must be at least 1/1024 then.
            It takes a sort of the sample, and a random number for each entry,
            whenever it selects. Defaults to `0.0`, the highest ranks.
        refresh_steps: Positive integer, the number of updates from one
            selection to the next; in between it stays, kept as one boolean
            for each entry. `None` leaves it to `select`. Defaults to `1`.
        name: String or `None`, the optimizer's name. Defaults to `None`.
        **kwargs: None is supported; those of the inner optimizer are refused
            with a hint.

    Attributes:
        updated_fraction: Scalar variable: the share of all entries of the
            trainable variables that the last update selected. For variables
            of more than 8192 entries it is estimated from a sample.

    Example:

    ```python
    optimizer = keras_uegr.SaliencyMaskedOptimizer(
        keras.optimizers.AdamW(5e-5), density=0.8
    )
    layers = [keras.layers.Dense(4, activation="gelu"), keras.layers.Dense(1)]
    model = keras.Sequential(layers)
    model.compile(optimizer, loss="mean_squared_error")
    model.fit(np.ones((8, 3)), np.ones((8, 1)), verbose=0)
    ```

    Reference:
        - [Sun et al., 2025](https://arxiv.org/abs/2503.16550)
        - [Xu et al., 2021](https://arxiv.org/abs/2109.05687)
    """

    def __init__(
        self,
        inner_optimizer,
        density=0.8,
        saliency="taylor",
        scope="variable",
        dense_variables=None,
        gradient_accumulation_steps=None,
        exact=False,
        fisher_decay=0.9,
        seed=None,
        rank_noise=0.0,
        refresh_steps=1,
        name=None,
        **kwargs,
    ):
        argument_checks.refuse_arguments(kwargs)
        inner_optimizer = keras.optimizers.get(inner_optimizer)
        argument_checks.check_inner(inner_optimizer, SaliencyMaskedOptimizer)
        super().__init__(
            learning_rate=0.0,
            gradient_accumulation_steps=gradient_accumulation_steps,
            name=name,
        )
        self.inner_optimizer = inner_optimizer
        self._selector = Selector(
            saliency,
            density,
            scope,
            exact,
            fisher_decay,
            seed,
            rank_noise,
            refresh_steps,
        )
        self.updated_fraction = self.add_variable(
            shape=(),
            dtype="float32",
            aggregation="only_first_replica",
            name="updated_fraction",
        )
        self._dense = DenseVariables(dense_variables)
        if self._selector.seed_generator is not None:
            self._variables.append(self._selector.seed_generator.state)

    def build(self, variables):
        if self.built:
            return
        super().build(variables)
        if not self.inner_optimizer.built:
            self.inner_optimizer.build(variables)
        self._dense.warn_if_unused(variables)
        self._is_masked = [not dense for dense in self._dense.match(variables)]
        self._selector.build(self, self._masked(variables))

    def _masked(self, items):
        """Those of `items`, one for each variable, whose variable is masked."""
        return [
            item
            for item, is_masked in zip(items, self._is_masked, strict=True)
            if is_masked
        ]

    def exclude_from_masking(self, var_list=None, var_names=None):
        """Excludes variables from masking: they are updated in full.

        This must be done before the optimizer is built. Several calls add up.

        Args:
            var_list: A list of `Variable`s to exclude. Functions in it are
                called when the optimizer is built, and return such lists.
            var_names: A list of regular expressions, searched for in the
                variables' paths. They are saved with the optimizer, as a part
                of `dense_variables`.
        """
        dense = self._dense.extended(var_list or [], var_names or [])
        if self.built and any(
            dense.match(self._masked(self._trainable_variables))
        ):
            raise ValueError(
                "`exclude_from_masking()` can only be configured before the "
                "optimizer is built. Call it earlier, or create a new "
                "optimizer."
            )
        self._dense = dense

    def exclude_from_weight_decay(self, var_list=None, var_names=None):
        self.inner_optimizer.exclude_from_weight_decay(var_list, var_names)

    def apply(self, grads, trainable_variables=None):
        grads = list(grads)
        if not grads:
            return
        # Before anything is built: where a first step fails after that, Keras
        # on TensorFlow does nothing in the next ones.
        self._selector.check_selected()
        if trainable_variables is None:
            trainable_variables = self._built_variables(grads)
        variables = list(trainable_variables)
        self.build(variables)
        self._check_variables_are_known(variables)
        if self.gradient_accumulation_steps:
            self._accumulate(grads, variables)
        else:
            self._update(grads, variables)
        self._iterations.assign_add(1)

    def _built_variables(self, grads):
        if not self.built:
            raise ValueError(
                "When passing `grads` without `trainable_variables`, the "
                "optimizer must already be built on a list of variables. "
                "Call `optimizer.build(trainable_variables)` first."
            )
        if len(grads) != len(self._trainable_variables):
            raise ValueError(
                "`grads` must hold one gradient for each variable that the "
                f"optimizer was built with, {len(self._trainable_variables)}. "
                f"Received: {len(grads)} gradients"
            )
        return self._trainable_variables

    def _accumulate(self, gradients, variables):
        """Adds the gradients up, and updates in each last of the steps."""
        steps = self.gradient_accumulation_steps
        accumulators = [
            self._accumulated_gradients[self._get_variable_index(variable)]
            for variable in variables
        ]
        totals = [
            add_up(gradient, accumulator, variable)
            for gradient, accumulator, variable in zip(
                gradients, accumulators, variables, strict=True
            )
        ]

        def update():
            means = [
                total
                if total is None or is_overwritten(variable)
                # As the base class divides it, to agree with it to the bit.
                else total / steps
                for total, variable in zip(totals, variables, strict=True)
            ]
            self._update(means, variables)
            for accumulator in accumulators:
                accumulator.assign(
                    ops.zeros(accumulator.shape, accumulator.dtype)
                )

        def wait():
            for accumulator, total in zip(accumulators, totals, strict=True):
                if total is not None:
                    accumulator.assign(total)

        is_last = ops.equal((self._iterations + 1) % steps, 0)
        touched = self._trainable_variables + self.variables
        run_either(is_last, update, wait, touched)

    def _update(self, gradients, variables):
        """The inner optimizer's step, undone where the mask says so."""
        masked = [
            position
            for position, variable in enumerate(variables)
            if self._is_masked[self._get_variable_index(variable)]
        ]
        if self.density == 1:
            masked = []
        dense_entries = sum(
            math.prod(variable.shape)
            for position, variable in enumerate(variables)
            if position not in masked and gradients[position] is not None
        )
        previous = {i: copy_of(variables[i]) for i in masked}
        choices, selected = self._choices(gradients, variables, previous)
        self.inner_optimizer.apply(gradients, variables)
        for position, value in previous.items():
            if position in choices:
                restore(variables[position], value, *choices[position])
            else:
                variables[position].assign(value)
        entries = sum(math.prod(v.shape) for v in self._trainable_variables)
        self.updated_fraction.assign((selected + dense_entries) / entries)

    def _choices(self, gradients, variables, previous):
        """What is selected of the variables at the positions in `previous`.

        Returns:
            Tuple of a dict of positions, without those of which nothing is
            selected, and the number of selected entries.
        """
        scored = [i for i in previous if gradients[i] is not None]
        if self.density == 0 or not scored:
            return {}, 0.0
        applied = keras_internals.applied_gradients(
            self.inner_optimizer, gradients, variables
        )
        choices, selected = self._selector.choose(
            *([x[i] for i in scored] for x in (variables, previous, applied)),
            self._iterations // (self.gradient_accumulation_steps or 1),
        )
        return dict(zip(scored, choices, strict=True)), selected

    def select(self, gradients):
        """Selects what the next updates change, by the scores of `gradients`.

        With `refresh_steps=None` nothing else selects. The gradients may be
        those of another loss than the one that is trained on.

        Args:
            gradients: List of tensors, one for each variable that the
                optimizer was built with. `None` leaves the selection of a
                variable as it is.
        """
        self._selector.select(
            self._masked(self._trainable_variables), self._masked(gradients)
        )

    def set_fisher_averages(self, values):
        """Sets the averages of `saliency="fisher"`.

        Args:
            values: List of tensors, one for each variable that the optimizer
                was built with.
        """
        self._selector.scorer.set_averages(self._trainable_variables, values)

    @property
    def density(self):
        return self._selector.density

    @property
    def scope(self):
        return self._selector.scope

    @property
    def refresh_steps(self):
        return self._selector.refresh_steps

    @property
    def saliency(self):
        return self._selector.scorer.saliency

    def finalize_variable_values(self, var_list):
        self.inner_optimizer.finalize_variable_values(var_list)

    def scale_loss(self, loss):
        return self.inner_optimizer.scale_loss(loss)

    # `keras.callbacks.SwapEMAWeights` looks for it where losses are scaled.
    _model_variables_moving_average = property(keras_internals.moving_averages)

    @property
    def iterations(self):
        return self.inner_optimizer.iterations

    @property
    def learning_rate(self):
        return self.inner_optimizer.learning_rate

    @learning_rate.setter
    def learning_rate(self, learning_rate):
        self.inner_optimizer.learning_rate = learning_rate

    @property
    def loss_scale_factor(self):
        return self.inner_optimizer.loss_scale_factor

    @loss_scale_factor.setter
    def loss_scale_factor(self, loss_scale_factor):
        # The base class sets it before there is an inner optimizer.
        if hasattr(self, "inner_optimizer"):
            self.inner_optimizer.loss_scale_factor = loss_scale_factor

    def get_config(self):
        return {
            "name": self.name,
            "inner_optimizer": keras.saving.serialize_keras_object(
                self.inner_optimizer
            ),
            "dense_variables": self._dense.patterns,
            "gradient_accumulation_steps": self.gradient_accumulation_steps,
            **self._selector.get_config(),
        }

    @classmethod
    def from_config(cls, config, custom_objects=None):
        # Keras' `deserialize` changes what it is given.
        config = copy.deepcopy(config)
        # A torch optimizer's own module would import torch on any backend.
        config["inner_optimizer"] = keras.optimizers.deserialize(
            config["inner_optimizer"], custom_objects=custom_objects
        )
        if isinstance(config["saliency"], dict):
            config["saliency"] = keras.saving.deserialize_keras_object(
                config["saliency"], custom_objects=custom_objects
            )
        return cls(**config)
