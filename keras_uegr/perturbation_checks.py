"""Checks of the arguments of perturbations."""

import math
import numbers


def check_size(name, value):
    """A radius, a step or a deviation is a length."""
    if (
        not isinstance(value, numbers.Real)
        or not math.isfinite(value)
        or value < 0
    ):
        raise ValueError(
            f"`{name}` must be a finite number, 0 or larger. "
            f"Received: {name}={value}"
        )


def check_choice(name, value, choices):
    """A word is one of those that are known."""
    if value not in choices:
        raise ValueError(
            f"`{name}` must be one of {list(choices)}. Received: {name}={value}"
        )


def check_steps(steps):
    """There is a gradient step."""
    if not isinstance(steps, numbers.Integral) or steps < 1:
        raise ValueError(
            f"`steps` must be a positive integer. Received: steps={steps}"
        )


def check_objective(objective, random_start, train_on_steps):
    """What the steps raise is known, and has a gradient."""
    check_choice("objective", objective, ("loss", "divergence"))
    if objective == "divergence" and not random_start:
        raise ValueError(
            'With `objective="divergence"` the first gradient is 0 unless '
            "`random_start=True`. Received: random_start=False"
        )
    if objective == "divergence" and train_on_steps:
        raise ValueError(
            "`train_on_steps=True` trains on the loss, so `objective` must "
            'be "loss". Received: objective=divergence'
        )
