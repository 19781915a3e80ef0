"""The metrics of the tasks, from a model's outputs.

    accuracy    share of right answers
    matthews    (tp tn - fp fn) / sqrt((tp+fp) (tp+fn) (tn+fp) (tn+fn))
    f1          2 tp / (2 tp + fp + fn), for class 1
    macro_f1    the mean of each class's F1
    roc_auc     probability that an example of class 1 is ranked above one of 0
    pearson     correlation of the values
    spearman    correlation of their ranks

What is divided by may be 0, as when a model gives one answer only. Such a
score is 0. `score` of a model that has diverged is NaN.
"""

import numpy as np


def _answers(outputs):
    return np.argmax(outputs, axis=-1)


def accuracy(outputs, labels):
    """Return the share of right answers."""
    return float(np.mean(_answers(outputs) == labels))


def matthews(outputs, labels):
    """Return the correlation coefficient of Matthews, for two classes."""
    return _correlation(_answers(outputs), labels)


def f1(outputs, labels):
    """Return the F1 score of class 1, for two classes."""
    return _f1_of(_answers(outputs) == 1, np.asarray(labels) == 1)


def macro_f1(outputs, labels):
    """Return the mean over the classes of each one's F1 score."""
    answers, labels = _answers(outputs), np.asarray(labels)
    classes = range(np.shape(outputs)[-1])
    return float(
        np.mean(
            [_f1_of(answers == index, labels == index) for index in classes]
        )
    )


def _f1_of(answered, true):
    found = np.sum(answered) + np.sum(true)
    return float(2 * np.sum(answered & true) / found) if found else 0.0


def roc_auc(outputs, labels):
    """Return the area under the ROC curve, for two classes.

    It judges how a model ranks the examples, wherever it draws the line.
    """
    from scipy import stats

    margins, positive = outputs[:, 1] - outputs[:, 0], labels == 1
    groups = margins[positive], margins[~positive]
    pairs = len(groups[0]) * len(groups[1])
    if not pairs:
        return 0.0
    return float(stats.mannwhitneyu(*groups).statistic / pairs)


def pearson(outputs, labels):
    """Return the linear correlation of the outputs with the labels."""
    return _correlation(np.reshape(outputs, -1), labels)


def spearman(outputs, labels):
    """Return the correlation of the outputs' ranks with the labels'."""
    from scipy import stats

    return _correlation(
        stats.rankdata(np.reshape(outputs, -1)), stats.rankdata(labels)
    )


def _correlation(first, second):
    if np.ptp(first) == 0 or np.ptp(second) == 0:
        return 0.0
    return float(np.corrcoef(first, second)[0, 1])


METRICS = {
    metric.__name__: metric
    for metric in (
        accuracy,
        matthews,
        f1,
        macro_f1,
        roc_auc,
        pearson,
        spearman,
    )
}


def score(name, outputs, labels):
    """Return the metric of that name, NaN if an output isn't finite.

    The largest of numbers that are none would be the first class.
    """
    if not np.isfinite(outputs).all():
        return float("nan")
    return METRICS[name](outputs, labels)
