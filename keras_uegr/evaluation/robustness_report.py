"""Everything that is measured of one model's robustness, in one object.

A model answers the same examples several times: as they are, as someone changed
them, after attacks on the text, and while an adversary moves the embeddings. A
`Condition` is one such time, and keeps which answers were right.
"""

import dataclasses
import json

import numpy as np

from keras_uegr.evaluation import (
    model_wrapper,
    report_figure,
    text_attacks,
    white_box,
)
from keras_uegr.evaluation.calibration import expected_calibration_error
from keras_uegr.evaluation.optional_import import import_optional
from keras_uegr.evaluation.statistics import bootstrap_interval
from keras_uegr.perturbations import ProjectedGradient

CLEAN = "clean"
VARIANT = "variant"
TEXT_ATTACK = "text attack"
EMBEDDING_ATTACK = "embedding attack"
# An attack that may change every word leaves no evidence in a short text.
FEW_WORDS = 2


@dataclasses.dataclass(frozen=True)
class Condition:
    """Which answers of a model were right under one condition.

    Args:
        kind: `"clean"`, `"variant"`, `"text attack"` or
            `"embedding attack"`.
        name: String.
        epsilon: Float, the radius of an attack on the embeddings, or `None`.
        right: List of booleans, one for each example.
    """

    kind: str
    name: str
    epsilon: float | None
    right: list

    @property
    def accuracy(self):
        """The share of right answers."""
        return float(np.mean(self.right))

    def interval(self):
        """The accuracy's 95 % bootstrap interval, an `Interval`."""
        return bootstrap_interval(self.right)


@dataclasses.dataclass(frozen=True)
class RobustnessReport:
    """How right a model is, as it is asked in different ways.

    Args:
        name: String, what the table and the figure call the model.
        conditions: List of `Condition`.
        calibration_error: Float between 0 and 1, on the unchanged examples.
    """

    name: str
    conditions: list
    calibration_error: float

    def to_pandas(self):
        """A `pandas.DataFrame`: a row per condition, with its interval."""
        pandas = import_optional("pandas", "Tables")
        return pandas.DataFrame([_row(x) for x in self.conditions])

    def to_json(self):
        """A JSON string with every condition and every example's answer."""
        conditions = [
            {**_row(x), "right": [bool(hit) for hit in x.right]}
            for x in self.conditions
        ]
        content = {
            "name": self.name,
            "calibration_error": self.calibration_error,
            "conditions": conditions,
        }
        return json.dumps(content)

    def figure(self, *others):
        """A `matplotlib.figure.Figure` of this report, beside others.

        Args:
            *others: `RobustnessReport`s of other models.
        """
        return report_figure.draw([self, *others])


def robustness_report(
    model,
    x,
    y,
    epsilons=(0.01, 0.02, 0.05),
    steps=5,
    variants=None,
    attacks=(),
    sample_size=200,
    batch_size=32,
    seed=0,
    name=None,
):
    """Measures a classifier's accuracy under attack, and reports it.

    Args:
        model: A compiled `keras_uegr.UEGRModel`. Wrap any other model in one:
            its predictions stay the same.
        x: List of strings, or arrays, of `N` examples, as for `predict`.
        y: Array of `N` integers, the true classes.
        epsilons: List of floats, at least 0: radii of a projected-gradient
            attack on the embeddings, relative to their norm. Defaults to
            `(0.01, 0.02, 0.05)`.
        steps: Positive integer, gradient steps of that attack. Defaults to
            `5`.
        variants: Optional dictionary by name, of the same `N` examples in
            other words: what `add_noise` returns, or paraphrases. Defaults to
            `None`.
        attacks: List of strings, attacks on texts that `attack_texts` knows.
            `x` must be strings then, or a tuple of lists of strings. Each is
            reported with any number of words changed, and with two at most.
            Defaults to none.
        sample_size: Positive integer, the number of texts that these attack.
            Defaults to `200`.
        batch_size: Positive integer, examples at once. Defaults to `32`.
        seed: Integer, of the samples and what the attacks draw. Defaults to
            `0`.
        name: Optional string. Defaults to `None`, the model's name.

    Returns:
        A `RobustnessReport` with `to_pandas()`, `to_json()` and `figure()`.

    Raises:
        ImportError: If an attack needs TextAttack, and it is missing.
        ValueError: If `y` is no array of classes, a variant has other than
            `N` examples, or the model is not compiled.

    Example:

    >>> report = keras_uegr.evaluation.robustness_report(
    ...     model, texts, labels, epsilons=[0.02], name="UEGR"
    ... )
    >>> list(report.to_pandas()["name"])
    ['as it is', 'projected gradient']
    >>> report.figure().savefig("robustness.png")

    Reference:
        - [Morris et al., 2020](https://arxiv.org/abs/2005.05909), on texts
        - [Madry et al., 2018](https://arxiv.org/abs/1706.06083), on embeddings
    """
    y = np.asarray(y)
    _check(y, variants or {})
    outputs = model.predict(x, batch_size=batch_size, verbose=0)
    from_logits = model_wrapper.gives_logits(model, outputs)
    texts = list(zip(*x, strict=True)) if isinstance(x, tuple) else x

    def conditions():
        yield CLEAN, "as it is", None, right(outputs)
        for variant, changed in (variants or {}).items():
            answers = model.predict(changed, batch_size=batch_size, verbose=0)
            yield VARIANT, variant, None, right(answers)
        for attack in attacks:
            result = text_attacks.attack_texts(
                model, texts, y, attack, None, sample_size, seed, batch_size
            )
            survived = [z.perturbed_prediction == z.label for z in result]
            yield TEXT_ATTACK, attack, None, survived
            few = result.right_within(FEW_WORDS)
            yield TEXT_ATTACK, f"{attack}, {FEW_WORDS} words", None, few
        attack = ProjectedGradient(steps=steps)
        curve = white_box.attacked_curve(
            model, x, y, attack, epsilons, batch_size, seed
        )
        for epsilon, answers in curve.items():
            yield (
                EMBEDDING_ATTACK,
                "projected gradient",
                epsilon,
                right(answers),
            )

    def probabilities(outputs):
        return model_wrapper.probabilities(outputs, from_logits)

    def right(outputs):
        return list(probabilities(outputs).argmax(axis=-1) == y)

    return RobustnessReport(
        name or model.name,
        [Condition(*condition) for condition in conditions()],
        expected_calibration_error(probabilities(outputs), y),
    )


def _row(condition):
    interval = condition.interval()
    return {
        "kind": condition.kind,
        "name": condition.name,
        "epsilon": condition.epsilon,
        "accuracy": condition.accuracy,
        "low": interval.low,
        "high": interval.high,
        "examples": len(condition.right),
    }


def _check(y, variants):
    if y.ndim != 1 or not np.issubdtype(y.dtype, np.integer):
        raise ValueError(
            "`y` must be integers, the index of each example's class. "
            f"Received: y of dtype {y.dtype}, shape {y.shape}"
        )
    for name, examples in variants.items():
        if hasattr(examples, "__len__") and len(examples) != len(y):
            raise ValueError(
                "Each of `variants` must hold the same examples as `x`, in the "
                f"same order. Received: {len(examples)} examples in "
                f'variants["{name}"], and {len(y)} labels'
            )
