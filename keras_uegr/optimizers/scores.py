"""The scores of a variable, read where they are needed."""

import math

from keras import ops


class Scores:
    """The scores of a variable, to be read in whole or in part.

    A part is computed from the same part of the variable: the whole is never
    kept, as the scores of a model take as much memory as its weights.

    Args:
        function: Function of `tensors` to float32 scores, entry by entry.
        tensors: List of tensors of the variable's shape.
    """

    def __init__(self, function, tensors):
        self.function = function
        self.tensors = tensors
        self.shape = tuple(tensors[0].shape)
        self.size = math.prod(self.shape)

    def read(self, part):
        """The scores of `part(x)`, `x` standing for the variable."""
        return self.function(*[part(tensor) for tensor in self.tensors])

    def flat(self):
        """All scores, as a tensor of shape `(size,)`."""
        return self.read(lambda x: ops.reshape(x, (-1,)))


def read_all(scores, part):
    """The scores of a part of several variables.

    Args:
        scores: List of `Scores`.
        part: Function of a tensor and of its position in the list to the part
            of the tensor to read, which has the same shape for all.

    Returns:
        Float32 tensor, the parts stacked along a new first axis.
    """
    return ops.stack(
        [
            each.read(lambda x, at=position: part(x, at))
            for position, each in enumerate(scores)
        ]
    )
