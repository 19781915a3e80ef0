"""A step on several devices is the step on one with the whole batch."""

import json
import os
import subprocess
import sys

import keras
import numpy as np
import pytest

from tests import several_devices_process as process

pytestmark = pytest.mark.slow

BACKEND = keras.backend.backend()
SETUPS = {
    "tensorflow": ["mirrored"],
    "jax": ["data_parallel", "model_parallel"],
    "torch": ["torchrun"],
}[BACKEND]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """What several devices have trained: one process for each setup."""
    folder = tmp_path_factory.mktemp("several_devices")
    flags = (
        os.environ.get("XLA_FLAGS", "")
        + f" --xla_force_host_platform_device_count={process.DEVICES}"
    )
    environment = {**os.environ, "XLA_FLAGS": flags, "OMP_NUM_THREADS": "1"}
    for setup in SETUPS:
        command = [sys.executable]
        if setup == "torchrun":
            command += ["-m", "torch.distributed.run", "--standalone"]
            command += ["--local-addr=127.0.0.1"]
            command += [f"--nproc-per-node={process.DEVICES}"]
        command += ["-m", "tests.several_devices_process"]
        cases = ["everything"] if setup == "model_parallel" else process.CASES
        finished = subprocess.run(
            [*command, setup, str(folder), *cases],
            env=environment,
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert finished.returncode == 0, finished.stderr[-3000:]
    return folder


def replicas_of(folder, setup, case):
    """One dictionary of arrays for each replica."""
    paths = sorted(folder.glob(f"{setup}-{case}-*.npz"))
    if BACKEND == "jax":
        assert len(paths) == 1  # arrays are whole, wherever their parts lie
    else:
        assert len(paths) == process.DEVICES
    return [dict(np.load(path)) for path in paths]


def expect_same_as_on_one_device(folder, setup, case):
    model, metrics = process.train(case)
    (weights,) = process.weights_of_replicas(model)
    replicas = replicas_of(folder, setup, case)
    for replica in replicas:
        for position, weight in enumerate(weights):
            np.testing.assert_allclose(
                replica[f"arr_{position}"], weight, rtol=0, atol=1e-5
            )
    for name, value in metrics.items():
        # Each process has the metrics of its own examples.
        mean = np.mean([replica[name] for replica in replicas])
        np.testing.assert_allclose(mean, value, rtol=1e-5, err_msg=name)


@pytest.mark.parametrize("setup", SETUPS)
def test_step_on_several_devices_is_the_step_on_one(folder, setup):
    expect_same_as_on_one_device(folder, setup, "everything")


@pytest.mark.skipif(
    BACKEND == "tensorflow",
    reason="refused under a `tf.distribute` strategy of several replicas",
)
@pytest.mark.parametrize("case", ["accumulation", "skipping"])
def test_update_in_some_steps_only_is_the_same(folder, case):
    expect_same_as_on_one_device(folder, SETUPS[0], case)


@pytest.mark.skipif(
    BACKEND != "tensorflow", reason="only TensorFlow's strategies refuse it"
)
@pytest.mark.parametrize(
    ("case", "must", "received"),
    [
        (
            "accumulation",
            "`gradient_accumulation_steps` must be `None`",
            "gradient_accumulation_steps=2, 2 replicas",
        ),
        (
            "skipping",
            "`skip_nonfinite` must be `False`",
            "Received: skip_nonfinite=True, 2 replicas",
        ),
    ],
    ids=["accumulation", "skipping"],
)
def test_update_in_some_steps_only_is_refused(folder, case, must, received):
    error = (folder / f"{SETUPS[0]}-{case}.txt").read_text()
    assert must in error
    assert received in error


def test_replicas_agree_bit_for_bit_where_they_draw_at_random(folder):
    if BACKEND == "jax":
        # One stream of random numbers, whatever the number of devices.
        expect_same_as_on_one_device(folder, SETUPS[0], "randomness")
        return
    first, second = replicas_of(folder, SETUPS[0], "randomness")
    for name in (name for name in first if name.startswith("arr_")):
        np.testing.assert_array_equal(first[name], second[name])


@pytest.mark.skipif(
    BACKEND != "torch", reason="does not apply: others have one process"
)
def test_processes_draw_their_own_dropout(folder):
    first, second = replicas_of(folder, "torchrun", "randomness")
    assert first["js_divergence"] != second["js_divergence"]


def run_example(folder, *options):
    """Runs it with the backend from Keras' own file, as some users do."""
    (folder / "keras.json").write_text(json.dumps({"backend": BACKEND}))
    environment = {**os.environ, "PYTHONPATH": ".", "KERAS_HOME": str(folder)}
    environment.pop("KERAS_BACKEND", None)
    return subprocess.run(
        [sys.executable, "examples/multi_device.py", "--devices=2", *options],
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )


@pytest.mark.parametrize(
    "split", ["data", "model"] if BACKEND == "jax" else ["data"]
)
def test_example_says_that_the_weights_agree(tmp_path, split):
    finished = run_example(tmp_path, f"--split={split}")
    assert finished.returncode == 0, finished.stderr[-3000:]
    assert "on 2 devices agree with those on one" in finished.stdout


@pytest.mark.skipif(BACKEND == "jax", reason="JAX has `ModelParallel`")
def test_example_refuses_to_split_the_model_elsewhere(tmp_path):
    finished = run_example(tmp_path, "--split=model")
    assert finished.returncode == 2
    assert "is for JAX" in finished.stderr
