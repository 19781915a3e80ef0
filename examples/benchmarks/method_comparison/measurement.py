"""Measures a trained model: every column of the table, as one dictionary.

A score is that of the first metric of the task, unless its column says another.
"""

import keras

import keras_uegr
import movie_reviews
import text_datasets
from text_datasets.dataset import map_texts, model_inputs
from text_datasets.metrics import METRICS


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
        scores[f"attacked at {radius}"] = METRICS[data.task.metrics[0]](
            outputs, attacked.labels
        )
    for name in settings.attacks:
        scores |= _text_attack(model, examples, name, settings)
    for name in data.task.out_of_domain:
        scores |= _out_of_domain(model, name, settings)
    return scores


def _outputs(model, texts):
    return model.predict(model_inputs(texts), verbose=0)


def _score(model, task, examples):
    outputs = _outputs(model, examples.texts)
    return METRICS[task.metrics[0]](outputs, examples.labels)


def _on_clean_texts(model, task, examples):
    outputs = _outputs(model, examples.texts)
    scores = {"clean": METRICS[task.metrics[0]](outputs, examples.labels)}
    for name in task.metrics[1:]:
        scores[f"clean {name}"] = METRICS[name](outputs, examples.labels)
    scores["loss"] = float(model.loss(examples.labels, outputs))
    if not task.is_regression:
        probabilities = keras.ops.convert_to_numpy(keras.ops.softmax(outputs))
        scores["calibration error"] = (
            keras_uegr.evaluation.expected_calibration_error(
                probabilities, examples.labels
            )
        )
    return scores


def _out_of_domain(model, name, settings):
    sizes = (0, settings.test_size, settings.test_size)
    data = text_datasets.load(name, sizes)
    examples = getattr(data, settings.split)
    outputs = _outputs(model, examples.texts)
    first, *others = data.task.metrics
    scores = {f"on {name}": METRICS[first](outputs, examples.labels)}
    for metric in others:
        scores[f"on {name}, {metric}"] = METRICS[metric](
            outputs, examples.labels
        )
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


def _text_attack(model, examples, name, settings):
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
    return {
        name: result.robust_accuracy,
        f"{name}, worst class": min(x.robust_accuracy for x in classes),
        f"{name}, 2 words": result.accuracy_within(2),
        f"{name}, 2 words, worst class": min(
            x.accuracy_within(2) for x in classes
        ),
    }
