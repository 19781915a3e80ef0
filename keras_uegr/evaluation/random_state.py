"""Draws of libraries that use Python's and NumPy's global generators."""

import contextlib
import random

import numpy as np


@contextlib.contextmanager
def seeded(*seeds):
    """Seeds the global generators, and puts them back on exit.

    Args:
        *seeds: Integers; together they decide what is drawn.
    """
    python_state = random.getstate()
    numpy_state = np.random.get_state()
    try:
        # NumPy's integers are written in another way than Python's.
        random.seed(repr(tuple(map(int, seeds))))
        np.random.seed(np.random.SeedSequence(seeds).generate_state(4))
        yield
    finally:
        random.setstate(python_state)
        np.random.set_state(numpy_state)
