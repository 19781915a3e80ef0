"""Trains in processes that are killed, and resumes.

Each process ends by SIGKILL after a random number of steps, and the next one
goes on from what `BackupAndRestore` or `ModelCheckpoint` left. Compares the
last one's weights, optimizer and random state with those of a process that was
left alone.
"""

import dataclasses
import json
import multiprocessing
import os
import pathlib
import re
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
# Less than two epochs: some processes finish one, and some finish none.
LONGEST_RUN = 2 * STEPS_PER_EPOCH - 1
# What a process prints before the number of its first epoch.
BEGAN = "began at epoch "
# Of the final weights, optimizer and random state.
TOLERANCE = 1e-6 if keras.backend.backend() == "torch" else 0


class Kill(keras.callbacks.Callback):
    """Ends the process after so many steps, without any cleaning up."""

    def __init__(self, steps):
        super().__init__()
        self.steps = steps

    def on_train_batch_end(self, batch, logs=None):
        self.steps -= 1
        if self.steps == 0:
            os.kill(os.getpid(), signal.SIGKILL)


def create(seed=3, build=tiny_bert):
    """A `UEGRModel` in which all that can be remembered is."""
    keras.utils.set_random_seed(seed)
    model = keras_uegr.UEGRModel(
        build(),
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


class Report(keras.callbacks.Callback):
    """Says at which epoch the process began."""

    def on_train_begin(self, logs=None):
        self.began = False

    def on_epoch_begin(self, epoch, logs=None):
        if not self.began:
            print(f"{BEGAN}{epoch}", flush=True)
        self.began = True


def from_backup(folder):
    """A model that the callback will fill from its backup, if there is one."""
    backup = folder / "backup"
    # Only a backup that holds everything makes up for another seed.
    model = create(seed=77 if backup.exists() else 3)
    return model, keras.callbacks.BackupAndRestore(backup), 0


def from_newest_file(folder):
    """The model of the newest `.keras` file, if there is one."""
    checkpoint = keras.callbacks.ModelCheckpoint(folder / "{epoch:03d}.keras")
    paths = sorted(folder.glob("*.keras"))
    if not paths:
        return create(), checkpoint, 0
    keras.utils.set_random_seed(77)
    newest = paths[-1]
    return keras.saving.load_model(newest), checkpoint, int(newest.stem)


# Each gives the model, the callback that saves it, and `initial_epoch`.
WAYS = {
    "BackupAndRestore": from_backup,
    "ModelCheckpoint": from_newest_file,
}


def train(folder, way, epochs, kill_after):
    """Fit, from what is in `folder` on if there is something."""
    model, saves, initial_epoch = WAYS[way](folder)
    x, y = tiny_inputs(BATCH_SIZE * STEPS_PER_EPOCH)
    model.fit(
        x,
        y,
        BATCH_SIZE,
        epochs,
        verbose=0,
        shuffle=False,
        initial_epoch=initial_epoch,
        callbacks=[saves, Report(), Kill(kill_after)],
    )
    np.savez(folder / "trained.npz", *state(model))


def in_new_processes(runs):
    """Run `train` in a process for each of `runs`, its arguments.

    Returns:
        List of ints, the epoch at which each began.
    """
    finished = subprocess.run(
        [sys.executable, "-m", "tests.survival_process", json.dumps(runs)],
        capture_output=True,
        text=True,
        timeout=1200,
    )
    if finished.returncode:
        raise RuntimeError(finished.stderr[-3000:])
    return [int(epoch) for epoch in re.findall(f"{BEGAN}(.*)", finished.stdout)]


def in_forks(runs):
    """Run `train` in a fork for each of `runs`.

    To import the backend takes longest, so all share that. A backend starts
    when it is first used, so they share nothing else.
    """
    for folder, way, epochs, kill_after in runs:
        process = multiprocessing.get_context("fork").Process(
            target=train, args=(pathlib.Path(folder), way, epochs, kill_after)
        )
        process.start()
        process.join()
        if process.exitcode != (-signal.SIGKILL if kill_after else 0):
            raise RuntimeError(
                f"A process to be killed after {kill_after} steps ended with "
                f"{process.exitcode}"
            )


@dataclasses.dataclass
class Outcome:
    """What became of a training that was killed.

    Attributes:
        steps: List of ints, after how many of its steps each was killed.
        began: List of ints, the epoch at which each process began, and after
            them the one that finished.
        difference: Float, the largest one to the training left alone.
    """

    steps: list
    began: list
    difference: float

    @property
    def expected_epochs(self):
        """The epochs at which the processes begin if no finished one is lost.

        A process that dies at the last step of an epoch has not finished it.
        """
        finished = [(steps - 1) // STEPS_PER_EPOCH for steps in self.steps]
        return [0, *np.cumsum(finished).tolist()]


def train_through_kills(kills, seed=0):
    """Train through so many kills; return an `Outcome` for each way to resume.

    Args:
        kills: int, how many.
        seed: int, of the steps at which they happen. Defaults to `0`.
    """
    rng = np.random.default_rng(seed)
    steps = rng.integers(1, LONGEST_RUN + 1, kills).tolist()
    # One epoch more than all killed processes together complete.
    epochs = sum((after - 1) // STEPS_PER_EPOCH for after in steps) + 1
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        for name in ("left alone", *WAYS):
            (folder / name).mkdir()
        runs = [(str(folder / "left alone"), next(iter(WAYS)), epochs, 0)]
        runs += [
            (str(folder / way), way, epochs, after)
            for way in WAYS
            for after in (*steps, 0)
        ]
        _, *began = in_new_processes(runs)
        return {
            way: Outcome(
                steps,
                began[index * (kills + 1) :][: kills + 1],
                largest_difference(folder / "left alone", folder / way),
            )
            for index, way in enumerate(WAYS)
        }


def largest_difference(folder, other_folder):
    """Between what was trained in one folder and in the other."""
    one, other = (
        np.load(path / "trained.npz") for path in (folder, other_folder)
    )
    if one.files != other.files:
        raise RuntimeError("One has more variables than the other")
    return max(float(np.abs(one[k] - other[k]).max()) for k in one.files)


if __name__ == "__main__":
    in_forks(json.loads(sys.argv[1]))
