import numpy as np
import pytest

from text_datasets import TASKS
from text_datasets.metrics import METRICS, score


def logits_of(answers, classes=2):
    return np.eye(classes)[answers]


# By hand: tp 2, tn 1, fp 1, fn 1.
ANSWERS, LABELS = [1, 1, 1, 0, 0], np.array([1, 1, 0, 0, 1])


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("accuracy", 3 / 5),
        ("matthews", (2 * 1 - 1 * 1) / np.sqrt(3 * 3 * 2 * 2)),
        ("f1", 4 / 6),
        # Class 0: tp 1, fp 1, fn 1.
        ("macro_f1", (4 / 6 + 2 / 4) / 2),
    ],
)
def test_metrics_of_classes(name, expected):
    score = METRICS[name](logits_of(ANSWERS), LABELS)
    assert score == pytest.approx(expected)


def test_roc_auc_is_the_share_of_pairs_in_the_right_order():
    logits = np.array([[0.0, 3.0], [1.0, 1.0], [0.0, 1.0], [2.0, 2.0]])
    # Margins 3 and 0 of class 1, 1 and 0 of class 0: of 4 pairs 2 are right,
    # and one is a tie.
    score = METRICS["roc_auc"](logits, np.array([1, 1, 0, 0]))
    assert score == pytest.approx(2.5 / 4)
    # Where the line is drawn has no influence.
    moved = METRICS["roc_auc"](logits + [0.0, 9.0], np.array([1, 1, 0, 0]))
    assert moved == score


def test_roc_auc_of_one_answer_for_all_is_one_half():
    assert METRICS["roc_auc"](np.ones((3, 2)), np.array([0, 1, 1])) == 0.5


def test_roc_auc_of_one_class_is_zero():
    assert METRICS["roc_auc"](logits_of([0, 1]), np.array([1, 1])) == 0.0


def test_correlations():
    outputs, labels = np.array([[1.0], [2.0], [4.0]]), np.array([0.0, 1.0, 9.0])
    # Deviations -4/3, -1/3, 5/3 and -10/3, -7/3, 17/3.
    expected = 132 / 9 / np.sqrt(42 / 9 * 438 / 9)
    assert METRICS["pearson"](outputs, labels) == pytest.approx(expected)
    assert METRICS["spearman"](outputs, labels) == pytest.approx(1.0)
    assert METRICS["spearman"](-outputs, labels) == pytest.approx(-1.0)


@pytest.mark.parametrize("name", ["matthews", "f1"])
def test_one_answer_for_all_scores_zero(name):
    assert METRICS[name](logits_of([0, 0, 0]), np.array([0, 1, 0])) == 0


@pytest.mark.parametrize("name", ["pearson", "spearman"])
def test_one_value_for_all_scores_zero(name):
    assert METRICS[name](np.ones((3, 1)), np.array([1.0, 2.0, 3.0])) == 0


@pytest.mark.parametrize("name", METRICS)
def test_a_model_that_has_diverged_has_no_score(name):
    outputs, labels = logits_of([0, 1, 0]), np.array([0, 1, 1])
    if name in ("pearson", "spearman"):
        outputs = outputs[:, 1:]
    assert score(name, outputs, labels) == METRICS[name](outputs, labels)
    assert np.isnan(score(name, outputs * np.nan, labels))


def test_every_task_has_metrics_of_its_kind():
    for task in TASKS.values():
        assert set(task.metrics) <= set(METRICS)
        assert task.is_regression == (task.metrics == ("pearson", "spearman"))
