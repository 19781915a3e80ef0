"""How the backends compile the tests' models: in a hurry.

To optimize a tiny model takes longer than all that it saves. A test that is
marked `optimized` gets what users get, but for the kernels on JAX, which reads
its flags once.
"""

import atexit
import functools
import os
import subprocess
import sys
import tempfile

BACKEND = os.environ.get("KERAS_BACKEND")
# Better kernels take half of the time. JAX doesn't start with a flag that it
# doesn't know.
KERNELS = "--xla_cpu_use_fusion_emitters=false"


def prepare_jax():
    """Set what JAX reads when it is imported, here or in another process.

    Many tests compile the same small models: JAX looks a program up by what it
    computes.
    """
    folder = tempfile.TemporaryDirectory()
    atexit.register(folder.cleanup)
    os.environ["JAX_COMPILATION_CACHE_DIR"] = folder.name
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.1")
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")
    os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
    if BACKEND == "jax":
        flags = " ".join([*os.environ.get("XLA_FLAGS", "").split(), KERNELS])
        if _starts_with(flags):
            os.environ["XLA_FLAGS"] = flags


def _starts_with(flags):
    started = subprocess.run(
        [sys.executable, "-c", "import jax; jax.devices()"],
        env={**os.environ, "XLA_FLAGS": flags},
        capture_output=True,
        check=False,
    )
    return started.returncode == 0


def is_hasty():
    """Whether the backend compiles in a hurry, now that it is imported."""
    if BACKEND == "jax":
        return os.environ.get("JAX_DISABLE_MOST_OPTIMIZATIONS") == "1"
    return BACKEND == "tensorflow"


def set_hasty(hasty):
    """Choose how the backend compiles from here on."""
    if BACKEND == "jax":
        import jax

        os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] = str(int(hasty))
        jax.config.update("jax_disable_most_optimizations", hasty)
    elif BACKEND == "tensorflow":
        import tensorflow as tf

        tf.config.optimizer.set_experimental_options(
            {"disable_meta_optimizer": hasty}
        )
        _note_where_operations_are_created(not hasty)


def _note_where_operations_are_created(note):
    """Choose whether TensorFlow keeps the stack of each operation's creation.

    Below pytest it is deep: to walk it takes a fifth of the suite's time.
    """
    from tensorflow.python.util import tf_stack

    walk, stack = _walk_and_a_stack()
    tf_stack.extract_stack = walk if note else lambda stacklevel=1: stack


@functools.cache
def _walk_and_a_stack():
    from tensorflow.python.util import tf_stack

    return tf_stack.extract_stack, tf_stack.extract_stack()


def forget_graphs():
    """Drop what TensorFlow keeps for good of each training step's graph.

    Its sum over replicas registers a gradient under a new name each time, which
    holds the graph: the suite would take 10 GB.
    """
    if BACKEND == "tensorflow":
        from tensorflow.python.framework import ops

        registry = ops.gradient_registry._registry
        for name in [x for x in registry if x.startswith("CustomGradient-")]:
            del registry[name]
