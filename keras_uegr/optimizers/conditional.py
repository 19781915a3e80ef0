"""Runs a function with side effects on variables only if a condition holds."""

import keras
from keras import ops


def run_if(condition, function, variables):
    """Calls `function`, which assigns to `variables`, if `condition` is true.

    Args:
        condition: Scalar boolean tensor.
        function: Function without arguments or result.
        variables: List of all `keras.Variable`s that it may assign to.
    """
    if keras.backend.backend() != "jax":
        ops.cond(condition, function, lambda: None)
        return

    # JAX traces both branches: an assignment must leave its branch as a value.
    def assigned():
        mapping = [(variable, variable.value) for variable in variables]
        with keras.StatelessScope(mapping) as scope:
            function()
        return [scope.get_current_value(variable) for variable in variables]

    values = ops.cond(
        condition,
        assigned,
        lambda: [ops.convert_to_tensor(variable) for variable in variables],
    )
    for variable, value in zip(variables, values, strict=True):
        variable.assign(value)
