import importlib.util
import json

import numpy as np
import pytest

import keras_uegr
from keras_uegr.evaluation import robustness_report, text_attacks
from keras_uegr.evaluation.optional_import import import_optional
from tests.backbones import tiny_bert, tiny_texts
from tests.evaluation.test_white_box import (
    attack,
    compiled,
    opinions,
    trained_model,
)

pytestmark = pytest.mark.slow


def report_of(model, **arguments):
    token_ids, labels = opinions()
    settings = {"epsilons": [0.5], "steps": 4, **arguments}
    return robustness_report(model, token_ids, labels, **settings)


def accuracies(report):
    return {(x.name, x.epsilon): x.accuracy for x in report.conditions}


def test_accuracies_are_those_of_predict_and_of_the_attack():
    model = trained_model()
    token_ids, labels = opinions()
    other_ids, _ = opinions(seed=1)
    report = report_of(model, variants={"others": other_ids})
    clean = model.predict(token_ids, verbose=0).argmax(-1)
    others = model.predict(other_ids, verbose=0).argmax(-1)
    attacked = keras_uegr.evaluation.attacked_predictions(
        model, token_ids, labels, attack(0.5)
    ).argmax(-1)
    assert accuracies(report) == {
        ("as it is", None): (clean == labels).mean(),
        ("others", None): (others == labels).mean(),
        ("projected gradient", 0.5): (attacked == labels).mean(),
    }
    assert report.conditions[0].right == list(clean == labels)


def test_calibration_error_is_that_of_the_unchanged_examples():
    model = trained_model()
    token_ids, labels = opinions()
    logits = model.predict(token_ids, verbose=0).astype("float64")
    probabilities = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    expected = keras_uegr.evaluation.expected_calibration_error(
        probabilities, labels
    )
    assert report_of(model).calibration_error == pytest.approx(expected)


def test_more_steps_find_stronger_attacks():
    model = trained_model()
    one, many = (
        accuracies(report_of(model, epsilons=[0.6], steps=steps))
        for steps in (1, 8)
    )
    key = ("projected gradient", 0.6)
    assert many[key] < one[key]


def test_table_has_intervals_around_the_accuracy():
    table = report_of(trained_model(), epsilons=[0.3, 0.8]).to_pandas()
    assert list(table["kind"]) == ["clean", *["embedding attack"] * 2]
    assert list(table["epsilon"][1:]) == [0.3, 0.8]
    assert (table["low"] <= table["accuracy"]).all()
    assert (table["accuracy"] <= table["high"]).all()
    assert (table["low"] < table["high"]).any()
    assert list(table["examples"]) == [90] * 3


def test_json_keeps_every_answer():
    report = report_of(trained_model(), name="mine")
    content = json.loads(report.to_json())
    assert content["name"] == "mine"
    assert content["calibration_error"] == report.calibration_error
    kept = [one["right"] for one in content["conditions"]]
    assert kept == [one.right for one in report.conditions]


def test_figure_shows_each_model_and_condition(tmp_path):
    model = trained_model()
    first = report_of(model, epsilons=[0.8, 0.3], name="first")
    second = report_of(model, epsilons=[0.8, 0.3], name="second")
    figure = first.figure(second)
    bars, curves = figure.axes
    (legend,) = figure.legends
    assert [x.get_text() for x in legend.texts] == ["first", "second"]
    heights = [bar.get_height() for bar in bars.patches]
    assert heights == [first.conditions[0].accuracy] * 2
    clean, strong, weak = (x.accuracy for x in first.conditions)
    np.testing.assert_allclose(
        curves.lines[0].get_xydata(), [[0, clean], [0.3, weak], [0.8, strong]]
    )
    figure.savefig(tmp_path / "report.png")


def test_label_of_a_low_bar_is_not_white_on_white():
    model = trained_model()
    token_ids, labels = opinions()
    logits = model.predict(token_ids, verbose=0)
    one_right = (logits.argmax(-1) + 1) % logits.shape[-1]
    one_right[0] = logits[0].argmax()
    reports = [
        robustness_report(model, token_ids, y, epsilons=[0.3], steps=1)
        for y in (one_right, labels)
    ]
    low, high = reports[0].figure(reports[1]).axes[0].texts
    assert low.get_text() == f"{1 / len(labels):.0%}"
    assert low.get_color() != "white"
    assert low.get_position()[1] > reports[0].conditions[0].interval().high
    assert high.get_color() == "white"


def test_reports_of_other_conditions_do_not_share_a_figure():
    model = trained_model()
    first = report_of(model, epsilons=[0.3])
    with pytest.raises(ValueError, match="must have the same conditions"):
        first.figure(report_of(model, epsilons=[0.4]))


@pytest.mark.skipif(
    importlib.util.find_spec("textattack") is None, reason="needs TextAttack"
)
@pytest.mark.parametrize(("seed", "parts"), [(4, 1), (5, 1), (4, 2)])
def test_text_attacks_are_those_of_attack_texts(seed, parts):
    texts, _ = tiny_texts(16)
    texts, others = texts[:8], texts[8:]
    model = compiled(tiny_bert())
    x = texts if parts == 1 else (texts, others)
    labels = model.predict(x, verbose=0).argmax(axis=-1)
    report = robustness_report(
        model,
        x,
        labels,
        epsilons=[],
        attacks=["deepwordbug"],
        sample_size=3,
        seed=seed,
    )
    if parts == 2:
        texts = list(zip(texts, others, strict=True))
    expected = keras_uegr.evaluation.attack_texts(
        model, texts, labels, "deepwordbug", sample_size=3, seed=seed
    )
    _, free, few = report.conditions
    assert (free.kind, free.name) == ("text attack", "deepwordbug")
    assert (few.kind, few.name) == ("text attack", "deepwordbug, 2 words")
    assert free.accuracy == expected.robust_accuracy
    assert few.accuracy == expected.accuracy_within(2)
    assert len(free.right) == len(few.right) == 3


def test_text_attacks_are_reported_with_two_words_changed(monkeypatch):
    found = [
        text_attacks.AttackedExample(
            0,
            "",
            "",
            label=0,
            original_prediction=0,
            perturbed_prediction=1,
            original_probability=0.9,
            perturbed_probability=0.1,
            words_changed=words,
            queries=1,
            outcome="successful",
        )
        for words in (1, 2, 3)
    ]
    monkeypatch.setattr(
        text_attacks,
        "attack_texts",
        lambda *_: text_attacks.TextAttackResult("an attack", found),
    )
    report = report_of(trained_model(), attacks=["an attack"], epsilons=[])
    free, few = report.conditions[1:]
    assert free.right == [False, False, False]
    assert few.right == [False, False, True]


def test_a_variant_of_other_examples_is_told():
    variants = {"short": np.ones((3, 7), "int32")}
    message = r'3 examples in variants\["short"\], and 90 labels'
    with pytest.raises(ValueError, match=message):
        report_of(trained_model(), variants=variants)


def test_a_negative_radius_is_told():
    with pytest.raises(ValueError, match=r"Received: epsilons=\[-0.1\]"):
        report_of(trained_model(), epsilons=[-0.1])


def test_labels_that_are_no_classes_are_told():
    token_ids, labels = opinions()
    with pytest.raises(ValueError, match="Received: y of dtype float64"):
        robustness_report(trained_model(), token_ids, labels / 2)


def test_a_missing_package_says_how_to_get_it():
    with pytest.raises(ImportError, match="pip install no_such_package"):
        import_optional("no_such_package.part", "Tables")
