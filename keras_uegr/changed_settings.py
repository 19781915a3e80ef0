"""Settings that are changed after the model was made, as between two fits.

A compiled step goes on with the settings that it was traced with, and one that
is not compiled takes the new ones: so that they mean the same on every backend,
a change is checked, and the step traced anew.
"""

import functools
import inspect
import numbers

from keras_uegr import argument_checks, sub_model_checks

_OBJECTIVE = (
    "sub_models",
    "adversarial_weight",
    "consistency_weight",
    "clean_weight",
    "divergence",
    "include_clean",
    "output_kind",
)
_NAMES = (
    *_OBJECTIVE,
    "token_share",
    "sharpness_radius",
    "warmup_steps",
    "sub_models_select",
    "skip_nonfinite",
    "consistency_outputs",
    "unperturbed_token_ids",
)


class ChangedSettings:
    """The part of `UEGRModel` that sees whether its settings changed."""

    _known_settings = None

    @property
    def warmup_steps(self):
        """The steps of the warm-up, or `None`, see `UEGRModel`."""
        return self.state.warmup_steps

    @warmup_steps.setter
    def warmup_steps(self, warmup_steps):
        argument_checks.check_warmup_steps(warmup_steps)
        self.state.warmup_steps = warmup_steps

    def note_settings(self):
        """The settings are checked; from here on, others are changes."""
        self._known_settings = _settings(self)

    def make_train_function(self, force=False):
        if _settings(self) != self._known_settings:
            self._check_settings()
            force = True
        super().make_train_function(force)

    def _check_settings(self):
        argument_checks.check_objective(
            **{name: getattr(self, name) for name in _OBJECTIVE}
        )
        sub_model_checks.get_token_share(self.token_share)
        self.perturbation = argument_checks.get_perturbation(self.perturbation)
        self.dropout = argument_checks.get_dropout(self.dropout)
        self.consistency_outputs = argument_checks.get_outputs(
            self.consistency_outputs
        )
        self.unperturbed_token_ids = argument_checks.get_token_ids(
            self.unperturbed_token_ids, self.preprocessor
        )
        self._check_parts()


def _settings(model):
    """What a step is traced with, to be compared."""
    parts = [
        model.perturbation,
        model.dropout,
        getattr(model.dropout, "policy", None),
    ]
    return (
        *(_plain(getattr(model, name)) for name in _NAMES),
        *parts,
        *(entry for part in parts for entry in _entries(part)),
    )


def _entries(part):
    """The settings of a perturbation, a dropout or a policy."""
    names = _arguments(type(part))
    values = [(name, getattr(part, name, None)) for name in names]
    return [x for x in values if isinstance(x[1], (numbers.Number, str))]


# `train_on_batch` asks in each step.
@functools.cache
def _arguments(part):
    """The names of the arguments that a class is made with.

    Not all attributes: one of the user's may count its calls in another.
    """
    return list(inspect.signature(part.__init__).parameters)


def _plain(value):
    return tuple(value) if isinstance(value, (list, tuple)) else value
