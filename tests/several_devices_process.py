"""Trains on several devices, in a process of its own.

    python -m tests.several_devices_process SETUP FOLDER CASE...

The devices are CPUs: virtual ones on TensorFlow and JAX, one for each process
of `torchrun` on PyTorch. Of each case it writes what was trained to `FOLDER`,
one file for each replica, or the error.
"""

import contextlib
import os
import pathlib
import sys

if os.environ["KERAS_BACKEND"] == "torch":
    import torch

import keras
import numpy as np
from keras import ops

import keras_uegr
from tests.pooled_model import pooled_model

DEVICES = {"tensorflow": 2, "jax": 4, "torch": 2}[keras.backend.backend()]
EXAMPLES = 8
STEPS = 2

# What a case changes of the model, and of its optimizer.
CASES = {
    "everything": (
        {
            "clean_weight": 0.5,
            "sharpness_radius": 0.1,
            "dropout": keras_uegr.AdaptiveDropout(0, 0, policy="divergence"),
        },
        {},
    ),
    "accumulation": (
        {"dropout": keras_uegr.AdaptiveDropout(0, 0)},
        {"gradient_accumulation_steps": STEPS},
    ),
    "skipping": (
        {"dropout": keras_uegr.AdaptiveDropout(0, 0), "skip_nonfinite": True},
        {},
    ),
    "randomness": (
        {"dropout": keras_uegr.AdaptiveDropout(0.1, 0.5)},
        {"saliency": "random"},
    ),
}


def build(case, seed):
    """The `UEGRModel` of a case, compiled."""
    rng = np.random.default_rng(seed)
    inner = pooled_model(width=8, mask_zero=True)
    for weight in inner.weights:
        weight.assign(rng.normal(0.0, 0.5, weight.shape))
    inner.get_layer("hidden").kernel.regularizer = keras.regularizers.L2(0.1)
    of_model, of_optimizer = CASES[case]
    model = keras_uegr.UEGRModel(
        inner,
        perturbation=keras_uegr.FastGradient(0.3),
        token_share=1,
        include_clean=True,
        consistency_weight=5.0,
        warmup_steps=0,
        **of_model,
    )
    model.compile(
        keras_uegr.SaliencyMaskedOptimizer(
            keras.optimizers.SGD(0.1, momentum=0.9),
            density=0.4,
            exact=True,
            **of_optimizer,
        ),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    return model


def train(case, replica=0, replicas=1):
    """Trains on the replica's own part of each batch.

    Returns:
        Tuple of the model and of its metrics, by name.
    """
    rng = np.random.default_rng(0)
    data = (
        rng.integers(1, 20, (STEPS, EXAMPLES, 7)).astype("int32"),
        rng.integers(0, 3, (STEPS, EXAMPLES)),
        # The same for neighbors: each process weighs its examples as much.
        rng.uniform(0.5, 1.5, (STEPS, EXAMPLES // 2)).repeat(2, axis=1),
    )
    x, y, sample_weight = (
        np.concatenate(part[:, replica::replicas]) for part in data
    )
    # A process that isn't told otherwise starts from its own values.
    keras.utils.set_random_seed(replica)
    model = build(case, seed=replica)
    history = model.fit(
        x,
        y,
        sample_weight=sample_weight,
        batch_size=EXAMPLES // replicas,
        shuffle=False,
        verbose=0,
    ).history
    return model, {name: values[0] for name, values in history.items()}


def weights_of_replicas(model):
    """The weights, and what the method remembers, of each replica here."""
    variables = [*model.model.trainable_variables, *model.state.feedback]
    if keras.backend.backend() != "tensorflow":
        return [[ops.convert_to_numpy(variable) for variable in variables]]
    local_results = model.distribute_strategy.experimental_local_results
    values = [local_results(variable.value) for variable in variables]
    return [
        [np.asarray(value) for value in replica]
        for replica in zip(*values, strict=True)
    ]


def several_devices(setup):
    """The context in which a model is made and trained on all devices."""
    if setup == "mirrored":
        import tensorflow as tf

        names = [f"CPU:{number}" for number in range(DEVICES)]
        return tf.distribute.MirroredStrategy(names).scope()
    if setup == "torchrun":
        return contextlib.nullcontext()
    devices = keras.distribution.list_devices("cpu")
    assert len(devices) == DEVICES
    if setup == "data_parallel":
        return keras.distribution.DataParallel(devices=devices).scope()
    mesh = keras.distribution.DeviceMesh((2, 2), ["batch", "model"], devices)
    layout = keras.distribution.LayoutMap(mesh)
    layout["embedding/embeddings"] = (None, "model")
    layout["hidden/kernel"] = ("model", None)
    return keras.distribution.ModelParallel(layout_map=layout).scope()


def assert_is_distributed(setup, model):
    """On JAX, that the model or the batch lies on the devices in parts."""
    if setup == "model_parallel":
        embedding = model.model.get_layer("embedding").embeddings
        assert not embedding.value.sharding.is_fully_replicated
    elif setup == "data_parallel":
        distribution = keras.distribution.distribution()
        assert isinstance(distribution, keras.distribution.DataParallel)
        batch = np.zeros((EXAMPLES, 7))
        layout = distribution.get_data_layout(batch.shape)
        batch = keras.distribution.distribute_tensor(batch, layout)
        (part, *_) = batch.addressable_shards
        assert part.data.shape == (EXAMPLES // DEVICES, 7)


def main(setup, folder, cases):
    """Trains each case, and writes weights and metrics, or the error."""
    replica, replicas = 0, 1
    if setup == "mirrored":
        import tensorflow as tf

        tf.config.set_logical_device_configuration(
            tf.config.list_physical_devices("CPU")[0],
            [tf.config.LogicalDeviceConfiguration()] * DEVICES,
        )
    if setup == "torchrun":
        torch.distributed.init_process_group("gloo")
        replica = torch.distributed.get_rank()
        replicas = torch.distributed.get_world_size()
    with several_devices(setup):
        for case in cases:
            path = folder / f"{setup}-{case}"
            try:
                model, metrics = train(case, replica, replicas)
            except ValueError as error:
                path.with_suffix(".txt").write_text(str(error))
                continue
            assert_is_distributed(setup, model)
            weights = weights_of_replicas(model)
            for number, values in enumerate(weights, start=replica):
                np.savez(f"{path}-{number}.npz", *values, **metrics)
    if setup == "torchrun":
        torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1], pathlib.Path(sys.argv[2]), sys.argv[3:])
