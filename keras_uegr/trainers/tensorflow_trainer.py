"""Gradients on TensorFlow."""

import math

import keras
import tensorflow as tf
from keras import ops

from keras_uegr import keras_internals


class Trainer:
    """The train step on TensorFlow, with `tf.GradientTape`."""

    traces_each_shape = True

    def make_train_function(self, force=False):
        known = self.train_function
        super().make_train_function(force)
        if self.train_function is known:
            return
        function = self.train_function

        def build_and_train(iterator):
            if not self.optimizer.built:
                _build(self, getattr(iterator, "element_spec", None))
            return function(iterator)

        self.train_function = build_and_train

    def train_on_batch(self, x, y=None, sample_weight=None, *args, **kwargs):
        if self.compiled and not self.optimizer.built:
            batch = keras.utils.pack_x_y_sample_weight(x, y, sample_weight)
            _build(
                self, keras.tree.map_structure(tf.type_spec_from_value, batch)
            )
        return super().train_on_batch(x, y, sample_weight, *args, **kwargs)

    def train_step(self, data):
        return self.training_step(data)

    def differentiate(self, function, variables, watch_embedding):
        watched = []

        def watch(embedding):
            tape.watch(embedding)
            watched.append(embedding)
            return embedding

        with tf.GradientTape() as tape:
            loss, auxiliary = function(watch if watch_embedding else None)
            scaled_loss = self.optimizer.scale_loss(loss)
        gradients = tape.gradient(scaled_loss, [*variables, *watched])
        return (
            loss,
            auxiliary,
            gradients[: len(variables)],
            gradients[-1] if watch_embedding else None,
        )

    def add_gradients(self, gradient, other):
        are_rows = [isinstance(g, tf.IndexedSlices) for g in (gradient, other)]
        if all(are_rows):
            # An embedding table's gradient may hold a row several times, and
            # Keras' optimizers would square each occurrence on its own.
            values = tf.concat([gradient.values, other.values], axis=0)
            indices = tf.concat([gradient.indices, other.indices], axis=0)
            return tf.convert_to_tensor(
                tf.IndexedSlices(values, indices, gradient.dense_shape)
            )
        if any(are_rows):
            return tf.convert_to_tensor(gradient) + tf.convert_to_tensor(other)
        return gradient + other

    def apply_gradients(self, gradients):
        self.optimizer.apply(gradients, self.trainable_variables)

    @property
    def replicas(self):
        return self.distribute_strategy.num_replicas_in_sync

    def mean_over_replicas(self, tensors):
        if self.replicas == 1:
            return tensors
        given = [tensor for tensor in tensors if tensor is not None]
        means = iter(
            tf.distribute.get_replica_context().all_reduce(
                tf.distribute.ReduceOp.MEAN, given
            )
        )
        return [None if x is None else next(means) for x in tensors]

    def compile_inference(self, function):
        return tf.function(function, reduce_retracing=True)

    def fetch_state(self):
        """Nothing: variables always hold their values."""

    def save_random_state(self, store):
        """Nothing: every draw comes from a seed generator."""

    def load_random_state(self, store):
        """Nothing: every draw comes from a seed generator."""


def _build(model, specs):
    """Builds metrics and optimizer, if the shapes of a batch are known.

    A graph that creates variables is traced twice, and what it creates in the
    first pass would have no gradient in it. Numbers are no batch: a step says
    so better.
    """
    flat = keras.tree.flatten(specs)
    if flat and all(
        isinstance(spec, tf.TensorSpec) and spec.shape.rank != 0
        for spec in flat
    ):
        batch = keras.tree.map_structure(
            lambda spec: keras.KerasTensor(spec.shape, spec.dtype), specs
        )
        keras_internals.build_for_training(model, batch)


def restore(variable, previous, scores, threshold):
    """Keeps the new value where the scores reach the threshold."""
    value = tf.convert_to_tensor(variable.value)
    variable.assign(
        _select(scores.function, scores.tensors, threshold, value, previous)
    )


# Compiled on its own it reads and writes each tensor once, where the whole step
# isn't compiled.
@tf.function(jit_compile=True)
def _select(score, tensors, threshold, value, previous):
    scores = score(*tensors)
    mask = ops.logical_and(scores >= threshold, scores < math.inf)
    return ops.where(mask, value, previous)


def run_either(condition, function, other_function, touched):
    """Runs one of two functions that assign variables."""
    del touched
    ops.cond(condition, function, other_function)
