"""Measures a trained model: every column of the table, as one dictionary.

A score is that of the first metric of the task, unless its column says another.
`worst class` is the smallest share of right answers among the classes. Of a
model that has diverged every score is NaN.
"""

import math

import keras
import numpy as np

import keras_uegr
import movie_reviews
from method_comparison import requirements
from text_datasets.dataset import map_texts, model_inputs
from text_datasets.metrics import score

# What follows the name of a text attack.
ATTACK_COLUMNS = ("", ", worst class", ", 2 words", ", 2 words, worst class")


def measure(model, data, settings):
    """Return the scores of a model by the names of their columns.

    Args:
        model: compiled `keras_uegr.UEGRModel`.
        data: `text_datasets.Dataset`.
        settings: `cells.Settings`.
    """
    examples = getattr(data, settings.split)
    scores = {
        **_on_clean_texts(model, data.task, examples),
        "letters swapped": _score(
            model,
            data.task,
            movie_reviews.Sentences(
                map_texts(movie_reviews.swap_letters, examples.texts),
                examples.labels,
            ),
        ),
    }
    attacked = examples.head(settings.white_box_size)
    for radius, outputs in _white_box(model, attacked, settings).items():
        scores[f"attacked at {radius}"] = score(
            data.task.metrics[0], outputs, attacked.labels
        )
    diverged = math.isnan(scores["clean"])
    for name in settings.attacks:
        if diverged:
            scores |= {name + ending: math.nan for ending in ATTACK_COLUMNS}
        else:
            scores |= _text_attack(model, data.task, examples, name, settings)
    for name in data.task.out_of_domain:
        scores |= _out_of_domain(model, name, settings)
    rewritten = requirements.load_adversarial_glue(data.task, settings)
    if rewritten:
        scores["on AdvGLUE"] = _score(model, data.task, rewritten)
    return scores


def _outputs(model, texts):
    return model.predict(model_inputs(texts), verbose=0)


def _score(model, task, examples):
    outputs = _outputs(model, examples.texts)
    return score(task.metrics[0], outputs, examples.labels)


def _on_clean_texts(model, task, examples):
    outputs = _outputs(model, examples.texts)
    scores = {"clean": score(task.metrics[0], outputs, examples.labels)}
    for name in task.metrics[1:]:
        scores[f"clean {name}"] = score(name, outputs, examples.labels)
    scores["loss"] = float(model.loss(examples.labels, outputs))
    if not task.is_regression:
        scores["calibration error"] = _calibration_error(outputs, examples)
    return scores


def _calibration_error(outputs, examples):
    probabilities = keras.ops.convert_to_numpy(keras.ops.softmax(outputs))
    if not np.isfinite(probabilities).all():
        return math.nan
    return keras_uegr.evaluation.expected_calibration_error(
        probabilities, examples.labels
    )


def _out_of_domain(model, name, settings):
    data = requirements.load_out_of_domain(name, settings)
    examples = getattr(data, settings.split)
    outputs = _outputs(model, examples.texts)
    first, *others = data.task.metrics
    scores = {f"on {name}": score(first, outputs, examples.labels)}
    for metric in others:
        scores[f"on {name}, {metric}"] = score(metric, outputs, examples.labels)
    return scores


def _white_box(model, examples, settings):
    return keras_uegr.evaluation.attacked_curve(
        model,
        model_inputs(examples.texts),
        examples.labels,
        keras_uegr.ProjectedGradient(steps=settings.attack_steps),
        settings.radii,
        batch_size=settings.batch_size,
    )


def _text_attack(model, task, examples, name, settings):
    # Only where text attacks are asked for, for they need packages.
    from keras_uegr.evaluation import text_attacks

    result = text_attacks.attack_texts(
        model,
        examples.texts,
        examples.labels,
        attack=name,
        sample_size=min(settings.attack_size, len(examples)),
    )
    classes = result.by_class().values()
    values = (
        _attacked_score(task, result),
        min(x.robust_accuracy for x in classes),
        _attacked_score(task, result, words=2),
        min(x.accuracy_within(2) for x in classes),
    )
    columns = [name + ending for ending in ATTACK_COLUMNS]
    return dict(zip(columns, values, strict=True))


def _attacked_score(task, result, words=math.inf):
    """Return the score of the answers while so many words may change."""
    answers = [
        x.original_prediction
        if x.words_changed > words
        else x.perturbed_prediction
        for x in result
    ]
    labels = np.array([x.label for x in result])
    # An output that isn't finite is of no class, and so of a wrong one.
    answers = [
        (label + 1) % task.outputs if answer is None else answer
        for answer, label in zip(answers, labels, strict=True)
    ]
    return score(task.metrics[0], np.eye(task.outputs)[answers], labels)
