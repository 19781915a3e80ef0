"""Runs one of two functions with side effects on variables."""

import keras
from keras import ops


def run_either(condition, function, other_function, touched):
    """Runs one of two functions that assign variables.

    Args:
        condition: Scalar boolean tensor.
        function: Function without arguments or result, run if `condition`.
        other_function: Such a function, run otherwise.
        touched: List of all variables that either reads or assigns.
    """
    if keras.backend.backend() != "jax":
        ops.cond(condition, function, other_function)
        return
    # Branches are traced on JAX: what they assign has to be their result.
    mapping = [(variable, variable.value) for variable in touched]

    def stateless(branch):
        def call():
            with keras.StatelessScope(mapping) as scope:
                branch()
            return [scope.get_current_value(variable) for variable in touched]

        return call

    values = ops.cond(condition, stateless(function), stateless(other_function))
    for variable, value in zip(touched, values, strict=True):
        variable.assign(value)
