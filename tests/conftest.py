"""Settings that every test shares, whichever backend is active."""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

# PyTorch crashes on some platforms when TensorFlow was loaded before it, and
# keras_hub loads TensorFlow on every backend.
if os.environ.get("KERAS_BACKEND") == "torch":
    import torch  # noqa: F401

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
