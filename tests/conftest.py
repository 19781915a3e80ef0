"""Settings that every test shares, whichever backend is active."""

import gc
import os

import pytest

from tests import compilers

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

# Parallel workers share the cores. PyTorch's threads wait for each other by
# spinning, which made the suite take three times as long.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# Parallel workers find the folder set. A user's own is left alone, for its
# programs are optimized.
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    compilers.prepare_jax()


def pytest_configure(config):
    """Import the backend where tests run, not where workers are started."""
    starts_workers = config.getoption("numprocesses", None)
    if starts_workers and not hasattr(config, "workerinput"):
        return
    # PyTorch crashes on some platforms when TensorFlow was loaded before it,
    # and keras_hub loads TensorFlow on every backend.
    if os.environ.get("KERAS_BACKEND") == "torch":
        import torch  # noqa: F401

    compilers.set_hasty(compilers.is_hasty())


def pytest_collection_finish():
    """Let the garbage collector pass over what is imported by now.

    Keras' `quantize` collects after every layer.
    """
    gc.freeze()


@pytest.fixture(autouse=True)
def isolated_test():
    """Start each test from the same seed and with fresh layer names."""
    import keras

    keras.utils.clear_session(free_memory=False)
    keras.utils.set_random_seed(1337)
    yield
    keras.config.set_floatx("float32")
    keras.config.set_dtype_policy("float32")
    compilers.forget_graphs()


@pytest.fixture(autouse=True)
def optimized(request):
    """Compile as users do where a test is marked `optimized`."""
    if request.node.get_closest_marker("optimized") is None:
        yield
        return
    hasty = compilers.is_hasty()
    compilers.set_hasty(False)
    yield
    compilers.set_hasty(hasty)
