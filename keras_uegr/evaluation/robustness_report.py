"""Everything that is measured of one model's robustness, in one object.

A model answers the same examples several times: as they are, as someone changed
them, after attacks on the text, and while an adversary moves the embeddings.
Those of other domains it answers as they are. A `Condition` is one such time,
and keeps which answers were right.
"""

import dataclasses
import functools
import json

import numpy as np

from keras_uegr import argument_checks
from keras_uegr.evaluation import (
    attack_checks,
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
OUT_OF_DOMAIN = "out of domain"
TEXT_ATTACK = "text attack"
EMBEDDING_ATTACK = "embedding attack"
# An attack that may change every word leaves no evidence in a short text.
FEW_WORDS = 2


@dataclasses.dataclass(frozen=True)
class Condition:
    """Which answers of a model were right under one condition.

    Args:
        kind: `"clean"`, `"variant"`, `"out of domain"`, `"text attack"` or
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
class _Question:
    """Examples that a model is asked about as they are.

    Args:
        kind: As that of a `Condition`.
        name: String.
        x: What `predict` takes.
        classes: Integer array of shape `(N,)`, the true classes.
        examples: String, what the user calls `x`.
        labels: String, what the user calls `classes`.
    """

    kind: str
    name: str
    x: object
    classes: object
    examples: str
    labels: str

    def answered(self, right):
        """The `Condition` of the answers that were right."""
        return Condition(self.kind, self.name, None, right)


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
            *others: `RobustnessReport`s of other models, on as many examples.
        """
        return report_figure.draw([self, *others])


def robustness_report(
    model,
    x,
    y,
    epsilons=(0.01, 0.02, 0.05),
    steps=5,
    variants=None,
    out_of_domain=None,
    attacks=(),
    sample_size=200,
    batch_size=32,
    seed=0,
    name=None,
    from_logits=None,
):
    """Measures a classifier's accuracy under attack, and reports it.

    Args:
        model: A classifier of one output, as a `keras_uegr.UEGRModel` that is
            compiled with a loss. Wrap any other model in one: its predictions
            stay the same.
        x: List of strings, or arrays, of `N` examples, as for `predict`. A
            tuple of lists holds pairs.
        y: Array of `N` integers, the true classes, or of `N` one-hot rows. A
            loss of Keras gets those that it takes, one of your own gets `y`.
        epsilons: List of floats, at least 0: radii of a projected-gradient
            attack on the embeddings, relative to their norm. Defaults to
            `(0.01, 0.02, 0.05)`.
        steps: Positive integer, gradient steps of that attack. Defaults to
            `5`.
        variants: Optional dictionary by name, of the same `N` examples in
            other words: what `add_noise` returns, or paraphrases. Defaults to
            `None`.
        out_of_domain: Optional dictionary by name, of pairs `(x, y)`:
            examples of the same classes from elsewhere, such as reviews of
            products where the model learnt from those of films. They are
            asked as they are. Defaults to `None`.
        attacks: List of strings, attacks on texts that `attack_texts` knows,
            but for `"input_reduction"`, which keeps the class. `x` must be
            strings then, or a tuple of lists of strings. Each is reported
            with any number of words changed, and with two at most. The latter
            is exact for greedy attacks alone, see `accuracy_within` of a
            `TextAttackResult`. Defaults to none.
        sample_size: Positive integer, the number of texts that these attack.
            Defaults to `200`.
        batch_size: Positive integer, examples at once. Defaults to `32`.
        seed: Integer, at least 0, of the samples and what the attacks draw.
            Defaults to `0`.
        name: Optional string. Defaults to `None`, the model's name.
        from_logits: Boolean, whether the outputs of `model` are logits.
            Defaults to `None`, as in `attack_texts`.

    Returns:
        A `RobustnessReport` with `to_pandas()`, `to_json()` and `figure()`.
        An answer that isn't finite, under any condition but the clean one, is
        wrong.

    Raises:
        FileNotFoundError: If a resource that an attack needs is missing.
        ImportError: If an attack needs TextAttack, and it is missing.
        ValueError: If an argument is not as above. All is checked before
            anything is attacked.

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
    attack = ProjectedGradient(steps=steps)
    epsilons = attack_checks.get_radii(epsilons)
    classes = attack_checks.get_classes("y", y)
    batch_size = attack_checks.get_count("batch_size", batch_size)
    seed = attack_checks.get_seed(seed)
    first, *others = _questions(x, classes, variants, out_of_domain)
    attack_checks.check_attacks(attacks)
    _check_model(model, attack, epsilons)
    prepared = _prepare(
        model, x, classes, attacks, sample_size, seed, batch_size, from_logits
    )
    ask = functools.partial(model.predict, batch_size=batch_size, verbose=0)
    outputs = ask(x)
    from_logits = model_wrapper.get_from_logits(from_logits, model, outputs)
    probabilities = model_wrapper.probabilities(outputs, from_logits)
    for question in (first, *others):
        attack_checks.check_range(
            question.labels, question.classes, probabilities.shape[-1]
        )
    calibration_error = expected_calibration_error(probabilities, classes)
    labels = model_wrapper.labels_for_loss(model, y, classes, outputs.shape[-1])
    right = functools.partial(_right, from_logits)
    conditions = [first.answered(right(outputs, classes))]
    for question in others:
        hits = right(ask(question.x), question.classes)
        conditions.append(question.answered(hits))
    # Before the attacks on texts, which take longest: the labels may not fit
    # a loss of the user's own.
    curve = white_box.attacked_curve(
        model, x, labels, attack, epsilons, batch_size, seed
    )
    for text_attack, run in prepared.items():
        conditions += _text_conditions(text_attack, run())
    for epsilon, answers in curve.items():
        hits = right(answers, classes)
        conditions.append(
            Condition(EMBEDDING_ATTACK, "projected gradient", epsilon, hits)
        )
    return RobustnessReport(name or model.name, conditions, calibration_error)


def _questions(x, classes, variants, out_of_domain):
    """What the model is asked without an attack, first `x` as it is."""
    attack_checks.check_dictionaries(
        variants=variants, out_of_domain=out_of_domain
    )
    questions = [_Question(CLEAN, "as it is", x, classes, "x", "y")]
    for name, changed in (variants or {}).items():
        place = f'variants["{name}"]'
        questions.append(_Question(VARIANT, name, changed, classes, place, "y"))
    for name, examples in (out_of_domain or {}).items():
        questions.append(_elsewhere(name, examples))
    for question in questions:
        attack_checks.check_examples(
            question.examples, question.x, question.classes
        )
    return questions


def _elsewhere(name, examples):
    """What the model is asked of another domain, a pair `(x, y)`."""
    place = f'out_of_domain["{name}"]'
    if not isinstance(examples, (tuple, list)) or len(examples) != 2:
        raise ValueError(
            "`out_of_domain` must be a dictionary of pairs `(x, y)` by name. "
            f"Received: {place} of type {type(examples).__name__}"
        )
    x, y = examples
    classes = attack_checks.get_classes(f"{place}[1]", y)
    return _Question(
        OUT_OF_DOMAIN, name, x, classes, f"{place}[0]", f"{place}[1]"
    )


def _right(from_logits, outputs, classes):
    """Which outputs are of the true class, as a list of booleans."""
    # The largest of numbers that are none is the first class.
    outputs = np.asarray(outputs, "float64")
    finite = np.isfinite(outputs).all(axis=-1)
    outputs = np.where(finite[:, None], outputs, 1.0)
    chosen = model_wrapper.probabilities(outputs, from_logits)
    return list(finite & (chosen.argmax(axis=-1) == classes))


def _prepare(model, x, y, attacks, *settings):
    """What runs each of the attacks on texts, by its name."""
    if not attacks:
        return {}
    texts = attack_checks.get_parts(x)
    return {
        attack: text_attacks.prepare_attack(
            model, texts, y, attack, None, *settings
        )
        for attack in attacks
    }


def _text_conditions(attack, result):
    survived = [x.perturbed_prediction == x.label for x in result]
    few = result.right_within(FEW_WORDS)
    named = {attack: survived, f"{attack}, {FEW_WORDS} words": few}
    return [Condition(TEXT_ATTACK, name, None, x) for name, x in named.items()]


def _check_model(model, attack, epsilons):
    argument_checks.check_compiled(model)
    argument_checks.check_attack(model, attack)
    argument_checks.check_epsilons(attack, epsilons)
    model_wrapper.check_classifies(model)


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
