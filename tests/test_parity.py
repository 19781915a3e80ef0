"""The backends are one product: the same step gives the same update."""

import os
import subprocess
import sys

import keras
import numpy as np
import pytest
from keras import ops

import keras_uegr
from tests.backbones import tiny_bert, tiny_inputs

pytestmark = pytest.mark.slow

OTHERS = {"tensorflow": "jax", "jax": "torch", "torch": "tensorflow"}

STEP = """
import os, sys
if os.environ["KERAS_BACKEND"] == "torch":
    import torch
import numpy as np
from tests.test_parity import weights_after_three_steps
np.savez(sys.argv[1], *weights_after_three_steps())
"""


def weights_after_three_steps():
    """A step without randomness: masks, JS and perturbation all at work."""
    x, y = tiny_inputs(12)
    bert = tiny_bert(dropout=0.0, preprocessor=False, num_layers=2)
    model = keras_uegr.UEGRModel(
        bert,
        perturbation=keras_uegr.ProjectedGradient(0.2, steps=2, norm="linf"),
        dropout=keras_uegr.AdaptiveDropout(0.0, 0.0),
        token_share=1,
        include_clean=True,
        consistency_weight=5.0,
    )
    model.compile(
        keras_uegr.SaliencyMaskedOptimizer(
            keras.optimizers.SGD(0.1, momentum=0.9), density=0.4, exact=True
        ),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    )
    for step in range(3):
        rows = slice(4 * step, 4 * step + 4)
        model.train_on_batch({k: v[rows] for k, v in x.items()}, y[rows])
    return [ops.convert_to_numpy(weight) for weight in bert.weights]


def test_another_backend_gives_the_same_update(tmp_path):
    path = tmp_path / "weights.npz"
    process = subprocess.run(
        [sys.executable, "-c", STEP, str(path)],
        env={**os.environ, "KERAS_BACKEND": OTHERS[keras.backend.backend()]},
        capture_output=True,
        text=True,
    )
    assert process.returncode == 0, process.stderr[-3000:]
    ours = weights_after_three_steps()
    with np.load(path) as theirs:
        differing = [
            (np.abs(one - theirs[name]) > 2e-5).mean()
            for one, name in zip(ours, theirs.files, strict=True)
        ]
    # An entry whose score ties with the threshold to rounding may fall on
    # either side of it.
    assert max(differing) < 0.01
