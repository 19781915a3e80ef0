"""How exactly matrices are multiplied, where the backend lets one choose.

`"bfloat16"` rounds the factors of float32 products, and sums in float32. On
processors with units for it (AMX) a training step takes two thirds of its time;
on others it changes nothing. All else, weights and logits included, stays
float32.
"""

import contextlib

import keras

PRECISIONS = ("float32", "bfloat16")


@contextlib.contextmanager
def matmul_precision(precision):
    """Set it for a while.

    Args:
        precision: string. One of `PRECISIONS`.
    """
    if keras.backend.backend() == "torch":
        import torch

        names = {"float32": "highest", "bfloat16": "medium"}
        previous = torch.get_float32_matmul_precision()
        torch.set_float32_matmul_precision(names[precision])
        try:
            yield
        finally:
            torch.set_float32_matmul_precision(previous)
    elif precision == "float32":
        yield
    else:
        raise ValueError(
            "`matmul_precision` must be 'float32' on the backend "
            f"{keras.backend.backend()}: set KERAS_BACKEND=torch for another "
            f"one. Received: matmul_precision={precision}"
        )
