"""Which variables are always updated in full."""

import re
import warnings


class DenseVariables:
    """The variables that are always updated in full.

    Args:
        patterns: List of regular expressions for the variables' paths.
        variables: List of further variables, and of functions that return
            lists of variables. They are called as late as in `match`: some
            variables don't exist yet when a model is compiled.
    """

    def __init__(self, patterns=None, variables=()):
        patterns = patterns or []
        if isinstance(patterns, str) or not all(map(_is_pattern, patterns)):
            raise ValueError(
                "`dense_variables` must be a list of regular expressions. "
                f"Received: dense_variables={patterns!r}"
            )
        self.patterns = list(patterns)
        self._variables = list(variables)

    def extended(self, variables, patterns):
        """A copy with further variables and patterns."""
        return DenseVariables(
            self.patterns + list(patterns), self._variables + list(variables)
        )

    def match(self, variables):
        """For each of `variables`, whether it is updated in full."""
        named = set()
        for item in self._variables:
            named.update(map(id, item() if callable(item) else [item]))
        return [self._matches(variable, named) for variable in variables]

    def warn_if_unused(self, variables):
        """Tells of patterns that match none of `variables`.

        It is no error: one file of settings may serve several models.
        """
        paths = [variable.path for variable in variables]
        unused = [
            pattern
            for pattern in self.patterns
            if not any(re.search(pattern, path) for path in paths)
        ]
        if unused:
            warnings.warn(
                "Patterns in `dense_variables` match the path of no trainable "
                f"variable: {unused}. They change nothing. The paths are like "
                f"{paths[:3]}.",
                stacklevel=3,
            )

    def _matches(self, variable, named):
        return (
            len(variable.shape) < 2
            # Attention layers have biases of two axes.
            or variable.name == "bias"
            # One of the two LoRA factors starts at zero: by its Taylor score
            # it would never be selected, and the other gets no gradient then.
            or variable.name.startswith("lora_")
            or is_overwritten(variable)
            # There is nothing to select from.
            or 0 in variable.shape
            or id(variable) in named
            or any(re.search(p, variable.path) for p in self.patterns)
        )


def _is_pattern(pattern):
    try:
        re.search(pattern, "")
    except (TypeError, re.error):
        return False
    return True


def is_overwritten(variable):
    """Whether its "gradient" is its new value, as of the scales of float8."""
    return getattr(variable, "overwrite_with_gradient", False)
