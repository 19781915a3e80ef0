"""What the scores of an optimizer's variables need from step to step."""

import keras
from keras import ops

from keras_uegr.optimizers import saliency as scoring


class Scorer:
    """Scores variables, and keeps averages or the state of the random draws.

    Args:
        saliency: What `saliency.get` accepts.
        fisher_decay: Float between 0 and 1, the weight of the past in the
            average of `"fisher"`.
        seed_generator: `keras.random.SeedGenerator`, for `"random"`.
    """

    def __init__(self, saliency, fisher_decay, seed_generator=None):
        scoring.get(saliency)
        self.saliency = saliency
        self.fisher_decay = fisher_decay
        self.seed_generator = seed_generator
        self.averages = {}
        self.is_prepared = saliency != scoring.FISHER or fisher_decay < 1

    def build(self, optimizer, variables, whole=False):
        """Adds to `optimizer` what is kept about the masked `variables`.

        Args:
            optimizer: A Keras optimizer.
            variables: List of variables.
            whole: Boolean, whether each has one score as a whole.
        """
        if self.saliency == scoring.FISHER:
            self.averages = {
                id(variable): scoring.add_fisher_average(
                    optimizer, variable, whole
                )
                for variable in variables
            }

    def scores(self, variable, value, gradient):
        """The `Scores` of `variable`, which is `value` before the step."""
        if self.averages:
            average = self.averages[id(variable)]
            return scoring.averaged_scores(
                average, value, gradient, self.fisher_decay
            )
        if self.saliency == scoring.RANDOM:
            return scoring.random_scores(value, gradient, self.seed_generator)
        return scoring.scores(self.saliency, value, gradient)

    def set_averages(self, variables, values):
        """Sets the averages of the masked ones among `variables`."""
        for variable, value in zip(variables, values, strict=True):
            average = self.averages.get(id(variable))
            if average is not None:
                if tuple(average.shape) != tuple(value.shape):
                    # The square of the norm.
                    value = ops.sum(value)
                average.assign(ops.cast(value, average.dtype))
        self.is_prepared = True

    def set_restored(self):
        """The averages came with a file, if they had been set."""
        if self.averages and self.fisher_decay == 1:
            self.is_prepared = any_set(self.averages.values())

    def check_prepared(self):
        """Averages that never change are set."""
        if not self.is_prepared:
            raise ValueError(
                "With `fisher_decay=1` the averages of the squared gradients "
                "stay as they are, and they are still 0. Call "
                "`keras_uegr.prepare_saliency(model, x, y)` before `fit`."
            )

    def get_config(self):
        saliency = self.saliency
        if not isinstance(saliency, str):
            saliency = keras.saving.serialize_keras_object(saliency)
        return {
            "saliency": saliency,
            "fisher_decay": self.fisher_decay,
        }


def any_set(variables):
    """Whether an entry of `variables` isn't as they are created, 0 or False."""
    return any(
        ops.convert_to_numpy(ops.any(x != 0))
        for x in map(ops.convert_to_tensor, variables)
    )
