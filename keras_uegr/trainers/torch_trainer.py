"""Gradients on PyTorch."""

import keras
import numpy as np
import torch
from keras import ops

from keras_uegr import keras_internals

# Entries per operation on a CPU: the results of small ones stay in the cache,
# and need no new memory of the system.
_CHUNK_SIZE = 2**19
# Integers as long as a float, by its length in bytes.
_BITS = {2: torch.int16, 4: torch.int32, 8: torch.int64}


class Trainer:
    """The train step on PyTorch, with `torch.autograd`."""

    traces_each_shape = False
    # What `load_random_state` found, until the training goes on from it, and
    # what torch's global generator was then.
    restored_random_states = None
    random_state_at_loading = None
    is_fitting = False

    def fit(self, *args, **kwargs):
        known = self.random_state_at_loading
        if known is not None and not known.equal(torch.get_rng_state()):
            # It was seeded since.
            self.restored_random_states = None
        self.is_fitting = True
        try:
            return super().fit(*args, **kwargs)
        finally:
            self.is_fitting = False

    def make_train_function(self, force=False):
        if self.restored_random_states is not None:
            # To build a loaded model, `fit` looks at a batch, and draws.
            _set_random_states(self.restored_random_states)
            self.restored_random_states = None
        known = self.train_function
        super().make_train_function(force)
        if self.train_function is not known and _processes() > 1:
            self._copy_from_first_process()

    def _copy_from_first_process(self):
        """All processes begin with the same values, each with its own seeds.

        What the optimizer draws decides on the mask: its seeds are copied.
        """
        own = {id(v) for v in keras_internals.seed_generator_states(self)}
        variables = [v for v in self.variables if id(v) not in own]
        for variable in [*variables, *self.optimizer.variables]:
            torch.distributed.broadcast(variable.value.detach(), src=0)

    def train_step(self, data):
        with torch.no_grad():
            return self.training_step(data)

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
        self.optimizer.apply(
            self.mean_over_replicas(gradients), self.trainable_variables
        )

    @property
    def replicas(self):
        """One: it is the mean of the processes' gradients that is applied."""
        return 1

    def mean_over_replicas(self, tensors):
        processes = _processes()
        if processes == 1:
            return tensors
        # Copies, as the reduction works in place.
        means = [None if x is None else x / processes for x in tensors]
        for mean in means:
            if mean is not None:
                torch.distributed.all_reduce(mean)
        return means

    def compile_inference(self, function):
        return torch.no_grad()(function)

    def fetch_state(self):
        """Nothing: variables always hold their values."""

    def save_random_state(self, store):
        """Keras' unseeded dropout draws from torch's global generators."""
        store["torch_random_state"] = torch.get_rng_state().numpy()
        if torch.cuda.is_available():
            store["torch_cuda_random_states"] = np.stack(
                [state.numpy() for state in torch.cuda.get_rng_state_all()]
            )

    def load_random_state(self, store):
        if "torch_random_state" in store:
            states = [np.asarray(store["torch_random_state"])]
            if "torch_cuda_random_states" in store:
                states += list(np.asarray(store["torch_cuda_random_states"]))
            states = [torch.from_numpy(state) for state in states]
            if self.is_fitting:
                _set_random_states(states)
                return
            # Other models draw from them too, so only training may set them.
            self.restored_random_states = states
            self.random_state_at_loading = torch.get_rng_state()


def _set_random_states(states):
    """Sets torch's generator of the processor, then those of GPUs."""
    torch.set_rng_state(states[0])
    # The file may be of a machine with more of them.
    for device, state in enumerate(states[1:][: torch.cuda.device_count()]):
        torch.cuda.set_rng_state(state, device)


def _processes():
    """The number of processes that train together, as under `torchrun`."""
    distributed = torch.distributed
    if distributed.is_available() and distributed.is_initialized():
        return distributed.get_world_size()
    return 1


def _detach(x):
    if not isinstance(x, torch.Tensor):
        return x
    return keras_internals.carry_mask(x, x.detach())


def restore(variable, previous, scores, threshold):
    """Keeps the new value where the scores reach the threshold."""
    rows = previous.shape[0]
    step = rows
    if previous.device.type == "cpu":
        step = max(1, rows * _CHUNK_SIZE // previous.numel())
    bits = _BITS[previous.element_size()]
    for start in range(0, rows, step):
        chunk = slice(start, start + step)
        # On a CPU `where` and comparisons take ten times as long as these.
        kept = _reaches(scores.read(lambda x, at=chunk: x[at]), threshold)
        old = previous[chunk].view(bits)
        new = variable.value.detach()[chunk].view(bits)
        new.bitwise_xor_(old).bitwise_and_(kept.to(bits)).bitwise_xor_(old)


def _reaches(scores, threshold):
    """Integers of nothing but ones where finite scores reach the threshold.

    Floats that aren't negative are ordered as the integers of the same bits.
    """
    scores = torch.nan_to_num(scores, nan=0.0, posinf=0.0).relu_()
    below = threshold.view(torch.int32) - 1
    return torch.sub(below, scores.view(torch.int32)).bitwise_right_shift_(31)


def run_either(condition, function, other_function, touched):
    """Runs one of two functions that assign variables."""
    del touched
    ops.cond(condition, function, other_function)
