"""Settings that every test shares, whichever backend is active."""

import os
import tempfile

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

# Parallel workers share the cores. PyTorch's threads wait for each other by
# spinning, which made the suite take three times as long.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# PyTorch crashes on some platforms when TensorFlow was loaded before it, and
# keras_hub loads TensorFlow on every backend.
if os.environ.get("KERAS_BACKEND") == "torch":
    import torch  # noqa: F401

# Many tests compile the same small models: JAX looks a program up by what it
# computes, also in the processes that tests start for serving and training.
# Parallel workers find the variable set, and share the folder.
if (
    os.environ.get("KERAS_BACKEND") == "jax"
    and "JAX_COMPILATION_CACHE_DIR" not in os.environ
):
    compiled = tempfile.TemporaryDirectory()  # deleted at exit
    os.environ["JAX_COMPILATION_CACHE_DIR"] = compiled.name
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.1")
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")
    # To optimize a tiny model takes longer than all that it saves.
    os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")

import keras
import pytest


@pytest.fixture(autouse=True)
def isolated_test():
    """Start each test from the same seed and with fresh layer names."""
    keras.utils.clear_session(free_memory=False)
    keras.utils.set_random_seed(1337)
    yield
    keras.config.set_floatx("float32")
    keras.config.set_dtype_policy("float32")


@pytest.fixture(autouse=True)
def optimized(request, monkeypatch):
    """Compile as users do where a test is marked `optimized`."""
    marked = request.node.get_closest_marker("optimized") is not None
    if not (marked and keras.backend.backend() == "jax"):
        yield
        return
    import jax

    # Not set where the user has a cache, of optimized programs.
    in_a_hurry = os.environ.get("JAX_DISABLE_MOST_OPTIMIZATIONS") == "1"
    monkeypatch.setenv("JAX_DISABLE_MOST_OPTIMIZATIONS", "0")
    jax.config.update("jax_disable_most_optimizations", False)
    yield
    jax.config.update("jax_disable_most_optimizations", in_a_hurry)
