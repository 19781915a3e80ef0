"""Serves an exported model with TensorFlow alone.

    python examples/serve.py SAVED_MODEL TOKENS.npz LOGITS.npy

Neither Keras nor this package is imported: this is what a server does that
knows nothing of how the model was trained.
"""

import sys

import numpy as np
import tensorflow as tf


def main():
    """Read tokens, run the serving signature, write its logits."""
    folder, tokens, logits = sys.argv[1:]
    signature = tf.saved_model.load(folder).signatures["serving_default"]
    with np.load(tokens) as inputs:
        (outputs,) = signature(
            **{name: tf.constant(inputs[name]) for name in inputs}
        ).values()
    np.save(logits, outputs.numpy())


if __name__ == "__main__":
    main()
