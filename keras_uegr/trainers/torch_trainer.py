"""Gradients on PyTorch."""

import keras
import numpy as np
import torch
from keras import ops

from keras_uegr import keras_internals
from keras_uegr.training_step import training_step

# Entries per operation: the results of small ones stay in the cache, and need
# no new memory of the system.
_CHUNK_SIZE = 2**19


class Trainer:
    """The train step on PyTorch, with `torch.autograd`."""

    def train_step(self, data):
        with torch.no_grad():
            return training_step(self, data)

    def differentiate(self, function, variables, watch_embedding):
        watched = []

        def watch(embedding):
            if not embedding.requires_grad:
                embedding = embedding.detach().requires_grad_()
            watched.append(embedding)
            return embedding

        with torch.enable_grad():
            loss, auxiliary = function(watch if watch_embedding else None)
            scaled_loss = self.optimizer.scale_loss(loss)
        inputs = [*(variable.value for variable in variables), *watched]
        gradients = ()
        if inputs:
            gradients = torch.autograd.grad(
                scaled_loss, inputs, allow_unused=True
            )
        return (
            loss.detach(),
            keras.tree.map_structure(_detach, auxiliary),
            list(gradients[: len(variables)]),
            gradients[-1] if watch_embedding else None,
        )

    def add_gradients(self, gradient, other):
        return gradient + other

    def apply_gradients(self, gradients):
        self.optimizer.apply(gradients, self.trainable_variables)

    def compile_inference(self, function):
        return torch.no_grad()(function)

    def fetch_state(self):
        """Nothing: variables always hold their values."""

    def save_random_state(self, store):
        """Keras' unseeded dropout draws from torch's global generator."""
        store["torch_random_state"] = torch.get_rng_state().numpy()

    def load_random_state(self, store):
        if "torch_random_state" in store:
            state = np.asarray(store["torch_random_state"])
            torch.set_rng_state(torch.from_numpy(state))


def _detach(x):
    if not isinstance(x, torch.Tensor):
        return x
    return keras_internals.carry_mask(x, x.detach())


def restore(variable, previous, scores, threshold):
    """Keeps the new value where the scores reach the threshold."""
    rows = previous.shape[0]
    step = max(1, rows * _CHUNK_SIZE // previous.numel())
    for start in range(0, rows, step):
        chunk = slice(start, start + step)
        value = variable.value.detach()[chunk]
        mask = _reaches(scores.read(lambda x, at=chunk: x[at]), threshold)
        torch.where(mask, value, previous[chunk], out=value)


def _reaches(scores, threshold):
    # On a CPU comparisons take ten times as long as arithmetic.
    below = torch.nextafter(threshold, torch.zeros_like(threshold))
    finite = torch.nan_to_num(scores, nan=0.0, posinf=0.0)
    return finite.sub_(below).relu_().bool()


def run_either(condition, function, other_function, touched):
    """Runs one of two functions that assign variables."""
    del touched
    ops.cond(condition, function, other_function)
