"""Trains on several devices, and compares the weights with those of one.

    KERAS_BACKEND=jax python examples/multi_device.py --devices 2
    KERAS_BACKEND=jax python examples/multi_device.py --devices 2 --split model

Each backend has its own way, and all of them are in `on_devices`:

- TensorFlow: a `tf.distribute.MirroredStrategy`; `fit` splits each batch.
- JAX: `keras.distribution.DataParallel`; `fit` splits each batch. Or
  `ModelParallel`, which splits the weights, with `--split model`.
- PyTorch: `torchrun` starts one process for each device; each passes its own
  part of the data to `fit`, and the gradients are averaged.

The devices here are CPUs, virtual ones on TensorFlow and JAX, so that it runs
anywhere. Nothing is drawn at random, or the weights could not be compared.
"""

import argparse
import contextlib
import os
import pathlib
import subprocess
import sys
import tempfile

import keras
import numpy as np

import keras_uegr

BATCH_SIZE = 16
STEPS = 4
BACKEND = keras.backend.backend()


def main():
    """Train on one device and on several, and compare."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--devices",
        type=int,
        default=2,
        help="how many are compared with one (default: %(default)s)",
    )
    parser.add_argument(
        "--split",
        choices=["data", "model"],
        default="data",
        help="what is split over them (default: %(default)s)",
    )
    parser.add_argument("--save", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.save:
        train_and_save(arguments.devices, arguments.split, arguments.save)
        return
    if arguments.split == "model" and BACKEND != "jax":
        parser.error("--split=model is for JAX, which alone has ModelParallel")
    if arguments.devices < 1 or BATCH_SIZE % arguments.devices:
        parser.error(f"--devices must divide the batch of {BATCH_SIZE}")
    with tempfile.TemporaryDirectory() as folder:
        one = weights_after_training(1, "data", folder)
        several = weights_after_training(
            arguments.devices, arguments.split, folder
        )
    difference = max(
        np.abs(a - b).max() for a, b in zip(one, several, strict=True)
    )
    agree = difference < 1e-5
    print(
        f"{BACKEND}: the weights after {STEPS} steps on {arguments.devices} "
        f"devices {'agree' if agree else 'DISAGREE'} with those on one, "
        f"largest difference {difference:.1e}"
    )
    sys.exit(not agree)


def weights_after_training(devices, split, folder):
    """Train in a new process; return its weights, a list of arrays."""
    path = pathlib.Path(folder) / f"{devices}.npz"
    command = [sys.executable]
    if BACKEND == "torch" and devices > 1:
        command += ["-m", "torch.distributed.run", "--standalone"]
        command += ["--local-addr=127.0.0.1", f"--nproc-per-node={devices}"]
    flag = f"--xla_force_host_platform_device_count={devices}"
    finished = subprocess.run(
        [
            *command,
            __file__,
            f"--devices={devices}",
            f"--split={split}",
            f"--save={path}",
        ],
        env={**os.environ, "XLA_FLAGS": flag, "OMP_NUM_THREADS": "1"},
    )
    if finished.returncode:
        sys.exit(f"The training with --devices={devices} failed, see above.")
    with np.load(path) as weights:
        return [weights[name] for name in weights.files]


def train_and_save(devices, split, path):
    """Train on so many devices, and save the weights."""
    x, y = data()
    with on_devices(devices, split) as rank:
        if BACKEND == "torch":
            # Every so-manyth example: a part of each batch.
            x, y = x[rank::devices], y[rank::devices]
        model = build()
        model.fit(
            x,
            y,
            batch_size=len(x) // STEPS,
            shuffle=False,
            verbose=0,
        )
    if split == "model":
        expect_split_weights(model.model)
    if rank == 0:
        weights = [keras.ops.convert_to_numpy(w) for w in model.model.weights]
        np.savez(path, *weights)


@contextlib.contextmanager
def on_devices(devices, split):
    """What is built inside is trained on so many devices.

    Gives the number of this process: 0 if there is only one.
    """
    if devices == 1:
        yield 0
    elif BACKEND == "tensorflow":
        import tensorflow as tf

        cpu = tf.config.list_physical_devices("CPU")[0]
        tf.config.set_logical_device_configuration(
            cpu, [tf.config.LogicalDeviceConfiguration()] * devices
        )
        names = [f"CPU:{number}" for number in range(devices)]
        with tf.distribute.MirroredStrategy(names).scope():
            yield 0
    elif BACKEND == "jax":
        with jax_distribution(devices, split).scope():
            yield 0
    else:
        import torch

        torch.distributed.init_process_group("gloo")
        yield torch.distributed.get_rank()
        torch.distributed.destroy_process_group()


def jax_distribution(devices, split):
    """Return what splits each batch, or the weights, over the devices."""
    if split == "data":
        return keras.distribution.DataParallel()
    mesh = keras.distribution.DeviceMesh((1, devices), ["batch", "model"])
    layout = keras.distribution.LayoutMap(mesh)
    # Each has to match the whole path, which begins with the model's name.
    layout[".*embedding/embeddings"] = (None, "model")
    layout[".*hidden/kernel"] = (None, "model")
    return keras.distribution.ModelParallel(layout_map=layout)


def expect_split_weights(model):
    """Exit unless both matrices of the layout lie on the devices in parts."""
    for name in ("embedding", "hidden"):
        matrix = model.get_layer(name).weights[0]
        if matrix.value.sharding.is_fully_replicated:
            sys.exit(
                f"{matrix.path} must be split over the devices, but each holds "
                f"all of it. Received: sharding={matrix.value.sharding}"
            )


def data():
    """Return random tokens, and as labels whether the first is a high one."""
    rng = np.random.default_rng(0)
    x = rng.integers(1, 50, (BATCH_SIZE * STEPS, 8)).astype("int32")
    return x, (x[:, 0] > 25).astype("int32")


def build():
    """Return a small text classifier that trains without randomness."""
    keras.utils.set_random_seed(0)
    classifier = keras.Sequential(
        [
            keras.layers.Embedding(
                50, 16, embeddings_initializer="normal", name="embedding"
            ),
            keras.layers.Flatten(),
            keras.layers.Dense(16, activation="tanh", name="hidden"),
            keras.layers.Dropout(0.0),
            keras.layers.Dense(2),
        ]
    )
    classifier.build((None, 8))
    model = keras_uegr.UEGRModel(
        classifier,
        dropout=keras_uegr.AdaptiveDropout(low=0.0, high=0.0),
        token_share=1,
        include_clean=True,
        warmup_steps=0,
    )
    model.compile(
        optimizer=keras_uegr.SaliencyMaskedOptimizer(
            keras.optimizers.SGD(0.1, momentum=0.9), density=0.3
        ),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    )
    return model


if __name__ == "__main__":
    main()
