"""How long the adversary takes to grow, where the user doesn't say.

    warm-up = share * (steps of the first `fit`)

A strong adversary from the first step on can keep a pretrained model from
learning; see examples/benchmarks/RESULTS.md.
"""

import keras

SHARE = 0.1


class WarmUp(keras.callbacks.Callback):
    """Tells a `UEGRModel`, as `fit` begins, how many steps there will be.

    Args:
        initial_epoch: Integer, the epochs that `fit` leaves out.

    Raises:
        ValueError: In `fit`, if Keras can't tell the number of steps.
    """

    def __init__(self, initial_epoch=0):
        super().__init__()
        self.initial_epoch = initial_epoch

    def on_train_begin(self, logs=None):
        steps = (self.params or {}).get("steps")
        if steps is None:
            raise ValueError(
                "`fit` can't tell how many steps there are, and so not how "
                "long to warm up. Pass `steps_per_epoch` to `fit`, or "
                "`warmup_steps` to `UEGRModel`. Received: warmup_steps=None"
            )
        total = steps * (self.params["epochs"] - self.initial_epoch)
        self.model.state.plan_warm_up(max(1, round(SHARE * total)))
