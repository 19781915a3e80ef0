"""Gradients on JAX."""

import itertools
import math

import jax
import keras
from jax import numpy as jnp
from keras import ops


class Trainer:
    """The train step on JAX, with `jax.value_and_grad`.

    Keras hands the state in and takes it back. In between, a
    `keras.StatelessScope` lets the shared code read and assign variables as on
    the other backends.
    """

    traces_each_shape = True

    def make_train_function(self, force=False):
        known = self.train_function
        super().make_train_function(force)
        if self.train_function is known:
            return
        function = self.train_function

        def check_and_train(state, iterator):
            try:
                return function(state, self._checked(iterator))
            except StopIteration:
                raise
            except Exception:
                self._give_back(state)
                raise

        self.train_function = check_and_train

    def _checked(self, iterator):
        """The next batches of `iterator`, whose labels are in range.

        JAX alone trains on labels that are out of range as if they were not.
        """
        # All of an execution at once: its first step gives up the state.
        batches = list(itertools.islice(iterator, self.steps_per_execution))
        for batch in batches:
            _, y, _ = keras.utils.unpack_x_y_sample_weight(batch)
            # Of a batch on several machines each holds a part.
            if getattr(y, "is_fully_addressable", True):
                self.check_batch(y)
        return iter(batches)

    def _give_back(self, state):
        """Fills the variables, which Keras has emptied, after an error."""
        for variable, value in self._by_variable(state):
            if not value.is_deleted():
                variable.assign(value)

    def _state_variables(self):
        return (
            self.trainable_variables,
            self.non_trainable_variables,
            self.optimizer.variables,
            self.metrics_variables,
        )

    def _by_variable(self, state):
        """Pairs of a variable and of its value in Keras' `state`."""
        return [
            pair
            for variables, values in zip(
                self._state_variables(), state, strict=True
            )
            for pair in zip(variables, values, strict=True)
        ]

    def train_step(self, state, data):
        with keras.StatelessScope(self._by_variable(state)) as scope:
            logs = self.training_step(data)
        state = tuple(
            [scope.get_current_value(variable) for variable in variables]
            for variables in self._state_variables()
        )
        return logs, state

    def differentiate(self, function, variables, watch_embedding):
        written = self.non_trainable_variables + self.metrics_variables
        read = self.trainable_variables + self.optimizer.variables + written
        mapping = [(variable, variable.value) for variable in read]
        embedding_shapes, reached = [], []

        def scaled_loss(values, offset):
            def watch(embedding):
                if offset is None:
                    embedding_shapes.append((embedding.shape, embedding.dtype))
                    return embedding
                return _noting(reached, embedding + offset)

            with keras.StatelessScope(
                [*mapping, *zip(variables, values, strict=True)],
                collect_losses=True,
            ) as scope:
                loss, auxiliary = function(watch if watch_embedding else None)
                scaled = self.optimizer.scale_loss(loss)
            updates = [scope.get_current_value(v) for v in written]
            return scaled, (loss, auxiliary, updates)

        values = [variable.value for variable in variables]
        offset = None
        if watch_embedding:
            jax.eval_shape(scaled_loss, values, None)
            offset = jnp.zeros(*embedding_shapes[0])
        (_, (loss, auxiliary, updates)), (gradients, embedding_gradient) = (
            jax.value_and_grad(scaled_loss, argnums=(0, 1), has_aux=True)(
                values, offset
            )
        )
        for variable, value in zip(written, updates, strict=True):
            variable.assign(value)
        if not reached:
            # JAX gives zeros where the loss doesn't depend on the embedding.
            embedding_gradient = None
        return loss, auxiliary, gradients, embedding_gradient

    def add_gradients(self, gradient, other):
        return gradient + other

    def apply_gradients(self, gradients):
        # Not `apply`: Keras' loss scaling is stateless on JAX only here.
        variables = self.trainable_variables
        state = self.optimizer.variables
        new_values, new_state = self.optimizer.stateless_apply(
            [variable.value for variable in state],
            gradients,
            [variable.value for variable in variables],
        )
        for variable, value in zip(
            [*variables, *state], [*new_values, *new_state], strict=True
        ):
            variable.assign(value)

    @property
    def replicas(self):
        """One: a batch on several devices is still one array."""
        return 1

    def mean_over_replicas(self, tensors):
        return tensors

    def compile_inference(self, function):
        variables = self.variables

        @jax.jit
        def stateless(values, data):
            mapping = zip(variables, values, strict=True)
            with keras.StatelessScope(mapping):
                return function(data)

        return lambda data: stateless([v.value for v in variables], data)

    def fetch_state(self):
        """Within `fit` Keras holds the values, and the variables are empty."""
        self.jax_state_sync()

    def save_random_state(self, store):
        """Nothing: every draw comes from a seed generator."""

    def load_random_state(self, store):
        """Nothing: every draw comes from a seed generator."""


def _noting(reached, x):
    """`x`; `reached` gets an entry where a gradient of it is traced."""

    @jax.custom_vjp
    def identity(x):
        return x

    def forward(x):
        return x, None

    def backward(_, gradient):
        reached.append(True)
        return (gradient,)

    identity.defvjp(forward, backward)
    return identity(x)


def restore(variable, previous, scores, threshold):
    """Keeps the new value where the scores reach the threshold."""
    scores = scores.read(lambda x: x)
    mask = ops.logical_and(scores >= threshold, scores < math.inf)
    value = ops.convert_to_tensor(variable)
    variable.assign(ops.where(mask, value, previous))


def run_either(condition, function, other_function, touched):
    """Runs one of two functions that assign variables."""
    # Both branches are traced: what they assign has to be their result.
    mapping = [(variable, variable.value) for variable in touched]

    def stateless(branch):
        def call():
            with keras.StatelessScope(mapping) as scope:
                branch()
            return [scope.get_current_value(variable) for variable in touched]

        return call

    values = ops.cond(condition, stateless(function), stateless(other_function))
    for variable, value in zip(touched, values, strict=True):
        variable.assign(value)
