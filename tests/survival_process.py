"""Trains in processes that are killed, and resumes.

    python -m tests.survival_process --kills 10

Each process ends by SIGKILL after a random number of steps, and the next one
goes on from the backup of `BackupAndRestore`. Prints what each did, and how far
the last one's weights, optimizer and random state are from those of a process
that was left alone.
"""

import argparse
import os
import pathlib
import signal
import subprocess
import sys
import tempfile

if os.environ["KERAS_BACKEND"] == "torch":
    import torch  # noqa: F401

import keras
import numpy as np
from keras import ops

import keras_uegr
from tests.backbones import tiny_bert, tiny_inputs

BATCH_SIZE = 4
STEPS_PER_EPOCH = 4
# Less than two epochs, so that ten processes don't reach the end.
LONGEST_RUN = 2 * STEPS_PER_EPOCH - 1


class Kill(keras.callbacks.Callback):
    """Ends the process after so many steps, without any cleaning up."""

    def __init__(self, steps):
        super().__init__()
        self.steps = steps

    def on_train_batch_end(self, batch, logs=None):
        self.steps -= 1
        if self.steps == 0:
            os.kill(os.getpid(), signal.SIGKILL)


def create(seed=3):
    """A `UEGRModel` in which all that can be remembered is."""
    keras.utils.set_random_seed(seed)
    model = keras_uegr.UEGRModel(
        tiny_bert(),
        perturbation=keras_uegr.ProjectedGradient(steps=1, random_start=True),
        dropout=keras_uegr.AdaptiveDropout(0.1, 0.5, "divergence"),
    )
    model.compile(
        keras_uegr.SaliencyMaskedOptimizer(
            keras.optimizers.AdamW(1e-2),
            density=0.4,
            saliency="fisher",
            gradient_accumulation_steps=3,
        ),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    )
    return model


def state(model):
    """All that training changes, as arrays."""
    variables = model.variables + model.optimizer.variables
    return [ops.convert_to_numpy(variable) for variable in variables]


def train(folder, epochs, kill_after=0):
    """Fit, from the backup in `folder` on if there is one."""
    backup = folder / "backup"
    # Only a backup that holds everything makes up for another seed.
    model = create(seed=77 if backup.exists() else 3)
    x, y = tiny_inputs(BATCH_SIZE * STEPS_PER_EPOCH)
    model.fit(
        x,
        y,
        BATCH_SIZE,
        epochs,
        verbose=0,
        shuffle=False,
        callbacks=[keras.callbacks.BackupAndRestore(backup), Kill(kill_after)],
    )
    np.savez(folder / "trained.npz", *state(model))


def in_new_process(folder, epochs, kill_after=0):
    """Run `train` in a new process; return its exit status."""
    command = [sys.executable, "-m", "tests.survival_process"]
    command += [f"--folder={folder}", f"--epochs={epochs}"]
    finished = subprocess.run(
        [*command, f"--kill-after={kill_after}"],
        capture_output=True,
        text=True,
        timeout=1200,
    )
    if finished.returncode not in (0, -signal.SIGKILL):
        raise RuntimeError(finished.stderr[-3000:])
    return finished.returncode


def difference_after_kills(kills, seed=0):
    """Train through so many kills; return the largest difference they made."""
    steps = np.random.default_rng(seed).integers(1, LONGEST_RUN + 1, kills)
    # One epoch more than all processes together can complete.
    epochs = int(sum(steps // STEPS_PER_EPOCH)) + 1
    with (
        tempfile.TemporaryDirectory() as left_alone,
        tempfile.TemporaryDirectory() as killed,
    ):
        in_new_process(left_alone, epochs)
        for kill, after in enumerate(steps, start=1):
            status = in_new_process(killed, epochs, after)
            if status != -signal.SIGKILL:
                raise RuntimeError(f"Process {kill} ended before it was killed")
            print(f"kill {kill}: after {after} steps", flush=True)
        in_new_process(killed, epochs)
        print(f"finished {epochs} epochs of {STEPS_PER_EPOCH} steps")
        one, other = (
            np.load(pathlib.Path(folder) / "trained.npz")
            for folder in (left_alone, killed)
        )
        if one.files != other.files:
            raise RuntimeError("One has more variables than the other")
        return max(np.abs(one[name] - other[name]).max() for name in one.files)


def main():
    """Train, or kill those that do."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--folder", type=pathlib.Path, help=argparse.SUPPRESS)
    parser.add_argument("--epochs", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--kill-after", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.folder:
        train(arguments.folder, arguments.epochs, arguments.kill_after)
        return
    difference = difference_after_kills(arguments.kills)
    print(f"{keras.backend.backend()}: largest difference {difference}")


if __name__ == "__main__":
    main()
