"""Checks of numbers and words, whatever argument they are."""

import math
import numbers


def check_sizes(**sizes):
    """Radii, steps, deviations and weights are finite and not negative."""
    for name, size in sizes.items():
        if (
            not isinstance(size, numbers.Real)
            or not math.isfinite(size)
            or size < 0
        ):
            raise ValueError(
                f"`{name}` must be a finite number, 0 or larger. "
                f"Received: {name}={size}"
            )


def check_positive(**divisors):
    """What is divided by is finite and above 0."""
    for name, divisor in divisors.items():
        if (
            not isinstance(divisor, numbers.Real)
            or not math.isfinite(divisor)
            or divisor <= 0
        ):
            raise ValueError(
                f"`{name}` must be a finite number above 0. "
                f"Received: {name}={divisor}"
            )


def check_positive_integers(**integers):
    """Sizes and numbers of steps are whole, and at least 1."""
    for name, integer in integers.items():
        if (
            not isinstance(integer, numbers.Integral)
            or isinstance(integer, bool)
            or integer < 1
        ):
            raise ValueError(
                f"`{name}` must be a positive integer. "
                f"Received: {name}={integer}"
            )


def check_choice(name, value, choices):
    """A word is one of those that are known."""
    if value not in choices:
        raise ValueError(
            f"`{name}` must be one of {list(choices)}. Received: {name}={value}"
        )
