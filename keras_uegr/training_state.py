"""What the method remembers from step to step, and saves with the model."""

from keras import ops

from keras_uegr.adaptive_dropout import DropoutSignals


class TrainingState:
    """Step counter and the feedback of the adaptive dropout.

    Args:
        model: The `UEGRModel` that owns the variables.
        warmup_steps: Integer, see `UEGRModel`.
    """

    def __init__(self, model, warmup_steps):
        self.warmup_steps = warmup_steps
        self.step = _scalar(model, "step", "int32")
        self.divergence = _scalar(model, "divergence", "float32")
        self.fraction = _scalar(model, "dropout_fraction", "float32")

    @property
    def feedback(self):
        """The variables that `remember` writes."""
        return [self.fraction, self.divergence]

    def ramp(self):
        """Factor in `[0, 1]` on the radius and on both extra losses."""
        if not self.warmup_steps:
            return 1.0
        step = ops.cast(self.step, "float32")
        return ops.minimum(step / self.warmup_steps, 1.0)

    def signals(self, model, confidence):
        """The `DropoutSignals` of this step."""
        return DropoutSignals(
            sub_models=model.sub_models,
            confidence=confidence,
            step=ops.cast(self.step, "float32"),
            divergence=ops.convert_to_tensor(self.divergence),
            fraction=ops.convert_to_tensor(self.fraction),
            seed=model.seed_generator,
        )

    def remember(self, fraction, divergence):
        """Keeps what the policies see in the next step."""
        self.fraction.assign(fraction)
        self.divergence.assign(divergence)

    def advance(self):
        """Counts a step."""
        self.step.assign(self.step + 1)


def _scalar(model, name, dtype):
    return model.add_weight(
        shape=(), initializer="zeros", dtype=dtype, trainable=False, name=name
    )
