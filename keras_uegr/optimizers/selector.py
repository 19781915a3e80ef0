"""What a step updates: chosen in every step, or once for several.

    score each entry, or each variable as a whole      (scorer.py)
    choose by the scores                               (selection.py,
                                                        noisy_selection.py)
    keep the choice for `refresh_steps` updates        (here)

A choice that is kept is a boolean mask, a variable of the optimizer. With
`scope="tensor"` a variable is scored as one entry, by the norms of its value
and of its gradient, and its mask is one boolean.
"""

import math

import keras
from keras import ops

from keras_uegr.optimizers import argument_checks, selection
from keras_uegr.optimizers import saliency as scoring
from keras_uegr.optimizers.gradients import all_finite, densify
from keras_uegr.optimizers.noisy_selection import draw_masks
from keras_uegr.optimizers.scorer import Scorer, any_set
from keras_uegr.optimizers.scores import Scores
from keras_uegr.trainers import run_either


class Selector:
    """Chooses what is updated. Its arguments are the optimizer's.

    Args:
        saliency: What `saliency.get` accepts.
        density: Float between 0 and 1.
        scope: One of `selection.SCOPES`.
        exact: Boolean.
        fisher_decay: Float between 0 and 1.
        seed: Integer or `None`.
        rank_noise: Float, at least 0.
        refresh_steps: Positive integer, or `None`.
    """

    def __init__(
        self,
        saliency,
        density,
        scope,
        exact,
        fisher_decay,
        seed,
        rank_noise,
        refresh_steps,
    ):
        argument_checks.check_settings(
            density, scope, exact, fisher_decay, seed, rank_noise, refresh_steps
        )
        self.seed_generator = None
        if saliency == scoring.RANDOM or rank_noise:
            self.seed_generator = keras.random.SeedGenerator(seed)
        self.scorer = Scorer(saliency, fisher_decay, self.seed_generator)
        self.density = density
        self.scope = scope
        self.exact = exact
        # The scores of a function may all be nearly the same.
        self.lowest_bit = (
            0 if callable(saliency) else selection.SAMPLE_LOWEST_BIT
        )
        self.rank_noise = rank_noise
        self.refresh_steps = refresh_steps
        self.seed = seed
        self.is_selected = refresh_steps is not None or density in (0, 1)
        self._masks = {}

    def build(self, optimizer, variables):
        """Adds to `optimizer` what is kept about the masked `variables`."""
        whole = self.scope == selection.TENSOR
        self.scorer.build(optimizer, variables, whole)
        if self.refresh_steps == 1 or self.density in (0, 1):
            return
        self._masks = {
            id(variable): optimizer.add_variable(
                shape=() if whole else variable.shape,
                dtype="bool",
                name=f"{variable.path.replace('/', '_')}_mask",
            )
            for variable in variables
        }

    def choose(self, variables, values, gradients, updates):
        """What the update number `updates` selects.

        Args:
            variables: List of masked variables.
            values: List of tensors, what they are before the step.
            gradients: List of their gradients, as they are applied.
            updates: Scalar integer tensor, how many updates went before.

        Returns:
            Tuple of a list of pairs `(Scores, threshold)`, one for each
            variable, whose entries are selected from the threshold on, and
            the number of selected entries, a scalar.
        """

        def score():
            return self._scores(variables, values, gradients)

        if self._masks:
            self._refresh(variables, score, updates)
            masks = [self._masks[id(variable)] for variable in variables]
        elif self.rank_noise or self.scope == selection.TENSOR:
            masks = self._new_masks(score())
        else:
            scores = score()
            thresholds, selected = selection.find_thresholds(
                scores, self.density, self.scope, self.exact, self.lowest_bit
            )
            return list(zip(scores, thresholds, strict=True)), selected
        masks = [
            ops.broadcast_to(mask, value.shape)
            for mask, value in zip(masks, values, strict=True)
        ]
        selected = sum(ops.sum(ops.cast(mask, "float32")) for mask in masks)
        return [
            (Scores(_as_float, [mask]), ops.ones((), "float32"))
            for mask in masks
        ], selected

    def select(self, variables, gradients):
        """Chooses by other gradients than those that are applied.

        A gradient that isn't finite, as of an overflow, chooses nothing new.
        """
        self.is_selected = True
        known = [
            (variable, ops.convert_to_tensor(variable), gradient)
            for variable, gradient in zip(variables, gradients, strict=True)
            if gradient is not None
        ]
        if known and self._masks:
            variables, values, gradients = zip(*known, strict=True)
            scores = self._scores(variables, values, gradients)
            finite = all_finite(gradients)
            masks = [
                ops.where(finite, new, ops.convert_to_tensor(old))
                for new, old in zip(
                    self._new_masks(scores),
                    [self._masks[id(variable)] for variable in variables],
                    strict=True,
                )
            ]
            self._keep(variables, masks)

    def _refresh(self, variables, score, updates):
        """Chooses anew, if it is time to, by what `score` returns."""
        if self.refresh_steps is None:
            return
        # Only averages need the scores of every step.
        scores = score() if self.scorer.averages else None
        touched = list(self._masks.values())
        if self.seed_generator is not None:
            touched.append(self.seed_generator.state)
        run_either(
            ops.equal(updates % self.refresh_steps, 0),
            lambda: self._keep(variables, self._new_masks(scores or score())),
            lambda: None,
            touched,
        )

    def _keep(self, variables, masks):
        for variable, mask in zip(variables, masks, strict=True):
            self._masks[id(variable)].assign(mask)

    def _scores(self, variables, values, gradients):
        """`Scores` of each variable, or of each as a whole."""
        gradients = [densify(gradient) for gradient in gradients]
        if self.scope == selection.TENSOR:
            values = [_norm(value) for value in values]
            gradients = [_norm(gradient) for gradient in gradients]
        return [
            self.scorer.scores(*item)
            for item in zip(variables, values, gradients, strict=True)
        ]

    def _new_masks(self, scores):
        scope, exact = self.scope, self.exact
        if scope == selection.TENSOR:
            # Few numbers, one for each variable, that compete.
            scope, exact = "global", True
        if self.rank_noise:
            return draw_masks(
                scores,
                self.density,
                self.rank_noise,
                self.seed_generator,
                scope,
                exact,
            )
        thresholds, _ = selection.find_thresholds(
            scores, self.density, scope, exact, self.lowest_bit
        )
        return [
            _mask(score.read(lambda x: x), threshold)
            for score, threshold in zip(scores, thresholds, strict=True)
        ]

    def check_selected(self):
        """What is never chosen by itself was chosen."""
        self.scorer.check_prepared()
        if not self.is_selected:
            raise ValueError(
                "With `refresh_steps=None` the optimizer doesn't select what "
                "it updates. Call its method `select(gradients)` before the "
                "first step, or train a `UEGRModel` of "
                "`sub_models_select=True`. Received: refresh_steps=None"
            )

    def set_restored(self):
        """What was kept came with a file, if anything had been."""
        self.scorer.set_restored()
        if self._masks and self.refresh_steps is None:
            self.is_selected = any_set(self._masks.values())

    def get_config(self):
        return {
            "density": self.density,
            "scope": self.scope,
            "exact": self.exact,
            "rank_noise": self.rank_noise,
            "refresh_steps": self.refresh_steps,
            "seed": self.seed,
            **self.scorer.get_config(),
        }


def _mask(scores, threshold):
    return ops.logical_and(scores >= threshold, scores < math.inf)


def _norm(tensor):
    return ops.sqrt(ops.sum(ops.square(ops.cast(tensor, "float32"))))


def _as_float(mask):
    return ops.cast(mask, "float32")
