"""Black- and white-box attacks on texts, run by TextAttack.

Morris et al., 2020 (https://arxiv.org/abs/2005.05909). Of each text only the
words change; how many may, and to what, is the attack's.
"""

import collections
import dataclasses
import json
import math

import numpy as np

from keras_uegr.evaluation import attack_checks, attack_recipes, random_state
from keras_uegr.evaluation.model_wrapper import (
    NotFiniteError,
    TextAttackModelWrapper,
)
from keras_uegr.evaluation.optional_import import import_optional
from keras_uegr.evaluation.textattack_import import import_textattack


@dataclasses.dataclass(frozen=True)
class AttackedExample:
    """What an attack did to one text.

    Args:
        index: Integer, the place of the text in what was passed.
        original_text: String, or tuple of strings, as it was passed.
        perturbed_text: The same, the original one if it was skipped; where an
            output isn't finite, the text that has it.
        label: Integer, the true class.
        original_prediction: Integer, the class before the attack, `None` if
            the output isn't finite.
        perturbed_prediction: Integer, the class after it, or `None`.
        original_probability: Float, that of the true class before, or `None`.
        perturbed_probability: Float, that of the true class after, or `None`.
        words_changed: Integer, the number of words that were replaced,
            removed or inserted.
        queries: Integer, how often the attack asked the model.
        outcome: `"successful"`, `"failed"`, `"skipped"` (it was wrong before),
            `"maximized"` (by an attack that keeps the class) or `"not finite"`
            (the attack met an output that isn't, which is no right answer).
    """

    index: int
    original_text: str | tuple[str, ...]
    perturbed_text: str | tuple[str, ...]
    label: int
    original_prediction: int | None
    perturbed_prediction: int | None
    original_probability: float | None
    perturbed_probability: float | None
    words_changed: int
    queries: int
    outcome: str


@dataclasses.dataclass(frozen=True)
class TextAttackResult:
    """What an attack did to a sample of texts.

    Args:
        attack: String, the name of the attack.
        examples: List of `AttackedExample`.
    """

    attack: str
    examples: list

    @property
    def clean_accuracy(self):
        """The share of the texts that were right before the attack."""
        return self._mean(x.original_prediction == x.label for x in self)

    @property
    def robust_accuracy(self):
        """The share of the texts that are right after the attack."""
        return self._mean(x.perturbed_prediction == x.label for x in self)

    def accuracy_within(self, words):
        """The share of the texts that are right while few words may change.

        Exact for greedy attacks alone, which change one word after another
        and never go back, such as `"deepwordbug"` and `"pwws"`: a bound only
        makes them stop earlier. Others, such as `"hotflip"` and `"genetic"`,
        might find other texts if they were bound.

        Args:
            words: Integer, at least 0, the number of words that may change.
        """
        return self._mean(self.right_within(words))

    def right_within(self, words):
        """Whether each text is right while few words may change, as a list.

        Exact for greedy attacks alone, as `accuracy_within`.

        Args:
            words: Integer, at least 0, the number of words that may change.
        """
        return [
            x.perturbed_prediction == x.label
            or (x.original_prediction == x.label and x.words_changed > words)
            for x in self
        ]

    @property
    def mean_queries(self):
        """Queries per text that was attacked, NaN if none was."""
        return self._mean(x.queries for x in self if x.outcome != "skipped")

    def by_class(self):
        """A dictionary of the `TextAttackResult` of each true class.

        An attack that leaves no evidence in a text leaves what the model
        answers then: the texts of that class alone may be what stays right.
        """
        return {
            label: TextAttackResult(
                self.attack, [x for x in self if x.label == label]
            )
            for label in sorted({x.label for x in self})
        }

    def __iter__(self):
        return iter(self.examples)

    def __len__(self):
        return len(self.examples)

    def to_pandas(self):
        """A `pandas.DataFrame` with a row for each example."""
        pandas = import_optional("pandas", "Tables")
        return pandas.DataFrame([dataclasses.asdict(x) for x in self])

    def to_json(self):
        """A JSON string with the accuracies and every example."""
        queries = self.mean_queries
        content = {
            "attack": self.attack,
            "clean_accuracy": self.clean_accuracy,
            "robust_accuracy": self.robust_accuracy,
            "mean_queries": None if math.isnan(queries) else queries,
            "examples": [dataclasses.asdict(x) for x in self],
        }
        return json.dumps(content, indent=2)

    @staticmethod
    def _mean(values):
        values = list(values)
        return float(np.mean(values)) if values else math.nan


def attack_texts(
    model,
    texts,
    labels,
    attack="deepwordbug",
    query_budget=None,
    sample_size=None,
    seed=0,
    batch_size=32,
    from_logits=None,
    wordnet_folder=None,
):
    """Attacks a text classifier, text by text.

    Args:
        model: A `keras_uegr.UEGRModel` or KerasHub task with a preprocessor,
            or the path of a SavedModel that takes strings.
        texts: List, array or series of `N` strings, or of tuples of strings
            for texts of several parts, such as a premise and a hypothesis.
            Words of all parts may change. None holds `<SPLIT>`, which is
            TextAttack's own; for `"input_reduction"`, each holds a word.
        labels: Array of `N` integers, the true classes, or of `N` one-hot
            rows.
        attack: String. Offline: `"deepwordbug"`, `"pruthi"`, `"pwws"`,
            `"input_reduction"`, `"hotflip"`. Others, such as `"textfooler"`,
            where what they need is present. Defaults to `"deepwordbug"`.
        query_budget: Optional positive integer, the most queries per text.
            A low one makes attacks such as PWWS look weak. Defaults to
            `None`, no limit.
        sample_size: Optional positive integer, the number of texts that are
            drawn. Defaults to `None`, all.
        seed: Integer, at least 0, decides the sample and what the attack
            draws. Defaults to `0`.
        batch_size: Positive integer, texts at once. Defaults to `32`.
        from_logits: Boolean, whether the outputs of `model` are logits.
            Defaults to `None`: they are not if they look like
            probabilities; for a single output the compiled loss tells, or a
            value outside of `[0, 1]`. If neither does, it has to be set, as
            for several outputs of a loss of independent ones, such as
            `BinaryCrossentropy`: `False` divides each row by its sum.
        wordnet_folder: Optional path of WordNet's files, for `"pwws"`.
            Defaults to `None`: where NLTK or Debian has them.

    Returns:
        A `TextAttackResult` with `clean_accuracy`, `robust_accuracy`,
        `accuracy_within(words)`, `by_class()`, `mean_queries`, and every
        example. The model is as it was.

    Raises:
        FileNotFoundError: If a resource that the attack needs is missing.
        ImportError: If TextAttack, or something that it imports, is missing.
        ValueError: If an argument is not as above.

    Example:

    >>> result = keras_uegr.evaluation.attack_texts(
    ...     model, texts, labels, attack="deepwordbug", sample_size=3
    ... )
    >>> len(result)
    3
    >>> result.robust_accuracy <= result.clean_accuracy
    True

    Reference:
        - [Morris et al., 2020](https://arxiv.org/abs/2005.05909)
    """
    attack = prepare_attack(
        model,
        texts,
        labels,
        attack,
        query_budget,
        sample_size,
        seed,
        batch_size,
        from_logits,
        wordnet_folder,
    )
    return attack()


def prepare_attack(
    model,
    texts,
    labels,
    attack,
    query_budget,
    sample_size,
    seed,
    batch_size,
    from_logits,
    wordnet_folder=None,
):
    """Checks all that `attack_texts` takes, and attacks nothing yet.

    Only an attack that needs resources is tried on one text, to load them.

    The arguments, and what is raised, are those of `attack_texts`.

    Returns:
        A function without arguments that returns what `attack_texts` does.
    """
    texts = attack_checks.get_texts(texts)
    labels = attack_checks.get_classes("labels", labels)
    _check_counts(texts, labels)
    attack_checks.check_can_be_changed(texts, attack)
    budget = attack_checks.get_count("query_budget", query_budget, True)
    size = attack_checks.get_count("sample_size", sample_size, True)
    seed = attack_checks.get_seed(seed)
    parts = len(texts[0]) if isinstance(texts[0], tuple) else None
    wrapper = TextAttackModelWrapper(model, batch_size, from_logits, parts)
    attack_checks.check_range("labels", labels, wrapper.classes)
    built = attack_recipes.build_attack(attack, wrapper, wordnet_folder)
    if budget is not None:
        built.goal_function.query_budget = budget
    built.goal_function.batch_size = wrapper.batch_size
    if attack_recipes.needed(attack) is not None:
        # Some resources are loaded as the first text is attacked, which may
        # be after others' hours of work. One of median length has words.
        text = sorted(texts, key=lambda x: len("".join(x)))[len(texts) // 2]
        right = int(wrapper([text])[0].argmax())
        _attack_one(built, attack, 0, text, right, seed)

    def run():
        return TextAttackResult(
            attack,
            [
                _attack_one(built, attack, i, texts[i], int(labels[i]), seed)
                for i in _sample(len(labels), size, seed)
            ],
        )

    return run


def _attack_one(built, name, index, text, label, seed):
    attacked_text = import_textattack("shared").AttackedText(_by_part(text))
    try:
        # By the text's own index: others in the sample change nothing.
        with random_state.seeded(seed, index):
            result = built.attack(attacked_text, label)
    except NotFiniteError as error:
        return _without_answer(built, index, text, label, error.text)
    except (LookupError, OSError, ImportError) as error:
        mistake = isinstance(error, (KeyError, IndexError))
        if mistake or attack_recipes.needed(name) is None:
            raise
        raise attack_recipes.missing_resource(name, error) from error
    before, after = result.original_result, result.perturbed_result
    return AttackedExample(
        index=int(index),
        original_text=text,
        perturbed_text=after.attacked_text.tokenizer_input,
        label=label,
        original_prediction=int(before.raw_output.argmax()),
        perturbed_prediction=int(after.raw_output.argmax()),
        original_probability=float(before.raw_output[label]),
        perturbed_probability=float(after.raw_output[label]),
        words_changed=_words_changed(before.attacked_text, after.attacked_text),
        queries=int(after.num_queries),
        outcome=type(result).__name__.removesuffix("AttackResult").lower(),
    )


def _without_answer(built, index, text, label, changed):
    """What is kept of a text where the output for `changed` isn't finite."""
    queries = int(built.goal_function.num_queries)
    prediction = probability = None
    if changed != text:
        (row,) = built.goal_function.model([text])
        prediction, probability = int(row.argmax()), float(row[label])
    attacked_text = import_textattack("shared").AttackedText
    before, after = map(attacked_text, map(_by_part, (text, changed)))
    return AttackedExample(
        index=int(index),
        original_text=text,
        perturbed_text=changed,
        label=label,
        original_prediction=prediction,
        perturbed_prediction=None,
        original_probability=probability,
        perturbed_probability=None,
        words_changed=before.words_diff_num(after),
        queries=queries,
        outcome="not finite",
    )


def _words_changed(before, after):
    # TextAttack marks no word that was removed, and a comparison sees none
    # that differs in punctuation alone.
    marked = len(after.attack_attrs["modified_indices"])
    return max(marked, before.words_diff_num(after))


def _by_part(text):
    if isinstance(text, str):
        return text
    return collections.OrderedDict(
        (f"part {number}", part) for number, part in enumerate(text, start=1)
    )


def _sample(count, sample_size, seed):
    if sample_size is None:
        return range(count)
    drawn = np.random.default_rng(seed).choice(
        count, min(sample_size, count), replace=False
    )
    return sorted(drawn.tolist())


def _check_counts(texts, labels):
    if len(texts) != len(labels):
        raise ValueError(
            "`texts` must be a list of strings, and `labels` as many integers. "
            f"Received: {len(texts)} texts and {len(labels)} labels"
        )
