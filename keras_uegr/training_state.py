"""What the method remembers from step to step, and saves with the model."""

from keras import ops

from keras_uegr import argument_checks
from keras_uegr.adaptive_dropout import DropoutSignals
from keras_uegr.optimizers.gradients import copy_of


class TrainingState:
    """Step counter and the feedback of the adaptive dropout.

    Args:
        model: The `UEGRModel` that owns the variables.
        warmup_steps: Integer or `None`, see `UEGRModel`.
    """

    def __init__(self, model, warmup_steps):
        argument_checks.check_warmup_steps(warmup_steps)
        self.warmup_steps = warmup_steps
        # Also where it isn't planned: files must not depend on that.
        self.warmup_end = _scalar(model, "warmup_end", "int32")
        self.step = _scalar(model, "step", "int32")
        self.divergence = _scalar(model, "divergence", "float32")
        self.fraction = _scalar(model, "dropout_fraction", "float32")
        self.warmup_start = _scalar(model, "warmup_start", "int32")

    @staticmethod
    def completed(values):
        """The values of a file, with what those of earlier versions lack."""
        if len(values) == 3:
            # They held no end of a warm-up whose steps were given.
            values = [0, *values]
        if len(values) == 4:
            # Their warm-up began with the first step.
            values = [*values, 0]
        return values

    @property
    def feedback(self):
        """The variables that `remember` writes."""
        return [self.fraction, self.divergence]

    def ramp(self):
        """Factor in `[0, 1]` on the radius and on both extra losses."""
        if self.warmup_steps == 0:
            return 1.0
        step = ops.cast(self.step, "float32")
        if self.warmup_steps is not None:
            return ops.minimum(step / self.warmup_steps, 1.0)
        start = ops.cast(self.warmup_start, "float32")
        length = ops.cast(self.warmup_end, "float32") - start
        ramp = (step - start) / ops.maximum(length, 1.0)
        # Without `fit` nothing is planned, and there is no warm-up.
        return ops.where(length > 0, ops.clip(ramp, 0.0, 1.0), 1.0)

    @property
    def needs_plan(self):
        """Whether the length of the warm-up is still open."""
        return self.warmup_steps is None and int(self.warmup_end) == 0

    def plan_warm_up(self, steps):
        """Lets the warm-up end after so many steps from here."""
        # JAX can't give up two variables' values that are one array.
        self.warmup_start.assign(copy_of(self.step))
        self.warmup_end.assign(self.step + steps)

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
        """Keeps what the policies see in the next step.

        What isn't finite, as after an overflow, would spoil all that follow.
        """
        finite = ops.isfinite(ops.add(fraction, divergence))
        for variable, value in zip(
            self.feedback, (fraction, divergence), strict=True
        ):
            past = ops.convert_to_tensor(variable)
            value = ops.cast(value, past.dtype)
            variable.assign(ops.where(finite, value, past))

    def advance(self):
        """Counts a step."""
        self.step.assign(self.step + 1)


def _scalar(model, name, dtype):
    return model.add_weight(
        shape=(), initializer="zeros", dtype=dtype, trainable=False, name=name
    )
