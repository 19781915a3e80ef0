import importlib
import importlib.util
import json

import keras
import numpy as np
import pandas
import pytest

import keras_uegr
from keras_uegr.evaluation import robustness_report, text_attacks
from keras_uegr.evaluation.optional_import import import_optional
from keras_uegr.evaluation.textattack_import import import_textattack
from tests.backbones import tiny_bert, tiny_inputs, tiny_texts
from tests.evaluation.test_white_box import (
    attack,
    compiled,
    opinions,
    trained_model,
    trained_weights,
)
from tests.pooled_model import pooled_model

pytestmark = pytest.mark.slow

# The package's attribute of that name is the function.
robustness_report_module = importlib.import_module(
    "keras_uegr.evaluation.robustness_report"
)

needs_textattack = pytest.mark.skipif(
    importlib.util.find_spec("textattack") is None,
    reason="TextAttack is not installed: see the README",
)


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


def test_another_domain_has_examples_and_labels_of_its_own():
    model = trained_model()
    other_ids, other_labels = opinions(seed=1)
    examples = other_ids[:20], np.eye(3)[other_labels[:20]]
    report = report_of(model, out_of_domain={"elsewhere": examples})
    clean, elsewhere, attacked = report.conditions
    assert (elsewhere.kind, elsewhere.name) == ("out of domain", "elsewhere")
    answers = model.predict(other_ids[:20], verbose=0).argmax(-1)
    assert elsewhere.right == list(answers == other_labels[:20])
    assert [clean, attacked] == report_of(model).conditions
    bars = report.figure().axes[0]
    assert [x.get_text() for x in bars.get_xticklabels()] == [
        "as it is",
        "elsewhere",
    ]


def test_texts_of_another_domain_are_not_attacked(monkeypatch):
    model = compiled(tiny_bert())
    texts, labels = tiny_texts(8)
    attacked = []
    attacked_curve = robustness_report_module.white_box.attacked_curve

    def record(model, x, *arguments):
        attacked.append(x)
        return attacked_curve(model, x, *arguments)

    monkeypatch.setattr(
        robustness_report_module.white_box, "attacked_curve", record
    )
    elsewhere = texts[:3], labels[:3]
    report = robustness_report(
        model, texts, labels, out_of_domain={"elsewhere": elsewhere}
    )
    assert attacked == [texts]
    assert [len(x.right) for x in report.conditions] == [8, 3, 8, 8, 8]


def test_calibration_error_is_that_of_the_unchanged_examples():
    model = trained_model()
    token_ids, labels = opinions()
    logits = model.predict(token_ids, verbose=0).astype("float64")
    probabilities = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    expected = keras_uegr.evaluation.expected_calibration_error(
        probabilities, labels
    )
    assert report_of(model).calibration_error == pytest.approx(expected)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_answers_that_are_not_finite_are_wrong(value):
    model = trained_model()
    table = model.model.get_layer("embedding").embeddings
    rows = keras.ops.convert_to_numpy(table).copy()
    # No text holds the last token.
    rows[-1] = value
    table.assign(rows)
    token_ids, labels = opinions()
    broken = token_ids.copy()
    broken[::2, 0] = len(rows) - 1
    report = report_of(model, epsilons=[], variants={"broken": broken})
    assert (labels[::2] == 0).any()
    clean, changed = (x.right for x in report.conditions)
    assert not any(changed[::2])
    assert changed[1::2] == clean[1::2]


@pytest.mark.parametrize("policy", ["mixed_bfloat16", "mixed_float16"])
def test_probabilities_of_half_precision_are_no_logits(policy):
    keras.config.set_dtype_policy(policy)
    inner = tiny_bert(activation="softmax", num_classes=8)
    keras.config.set_dtype_policy("float32")
    inputs, _ = tiny_inputs(60)
    model = compiled_with("sparse_categorical_crossentropy", inner)
    outputs = np.asarray(model.predict(inputs, verbose=0), "float64")
    if policy == "mixed_bfloat16":
        assert abs(outputs.sum(axis=-1) - 1).max() > 1.1e-3
    labels = outputs.argmax(axis=-1)
    report = robustness_report(model, inputs, labels, epsilons=[])
    # Each answer is right.
    expected = 1 - (outputs.max(-1) / outputs.sum(-1)).mean()
    assert report.calibration_error == pytest.approx(expected, abs=1e-6)
    direct = keras_uegr.evaluation.expected_calibration_error(outputs, labels)
    assert direct == pytest.approx(expected, abs=5e-3)


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


def test_reports_of_other_examples_do_not_share_a_figure():
    token_ids, labels = opinions()
    model = trained_model()
    first, second = (
        robustness_report(model, token_ids[:n], labels[:n], [], name=name)
        for n, name in ((90, "one"), (60, "two"))
    )
    message = r"number of examples.* 90\)\] for one, and .* 60\)\] for two"
    with pytest.raises(ValueError, match=message):
        first.figure(second)


@needs_textattack
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
    result = text_attacks.TextAttackResult("an attack", found)
    monkeypatch.setattr(
        text_attacks, "prepare_attack", lambda *_: lambda: result
    )
    texts, labels = tiny_texts(4)
    report = robustness_report(
        compiled(tiny_bert()),
        texts,
        labels,
        attacks=["deepwordbug"],
        epsilons=[],
    )
    free, few = report.conditions[1:]
    assert free.right == [False, False, False]
    assert few.right == [False, False, True]


def test_a_variant_of_other_examples_is_told():
    variants = {"short": np.ones((3, 7), "int32")}
    message = r'3 examples in variants\["short"\], and 90 labels'
    with pytest.raises(ValueError, match=message):
        report_of(trained_model(), variants=variants)


def test_variants_of_pairs_and_of_dictionaries():
    model = compiled(tiny_bert())
    texts, labels = tiny_texts(8)
    pairs, others = (texts, texts[::-1]), (texts[::-1], texts)
    tokens = {
        key: keras.ops.convert_to_numpy(value)
        for key, value in model.preprocessor(pairs, y=labels)[0].items()
    }
    by_pairs = robustness_report(
        model, pairs, labels, epsilons=[], variants={"others": others}
    )
    by_tokens = robustness_report(
        model, tokens, labels, epsilons=[], variants={"same": tokens}
    )
    expected = model.predict(others, verbose=0).argmax(-1) == labels
    assert by_pairs.conditions[1].right == list(expected)
    clean = by_pairs.conditions[0].right
    assert [x.right for x in by_tokens.conditions] == [clean, clean]
    message = r'3 examples in variants\["short"\], and 8 labels'
    short = tuple(part[:3] for part in pairs)
    with pytest.raises(ValueError, match=message):
        robustness_report(model, pairs, labels, variants={"short": short})


def test_a_tuple_of_texts_is_a_list_of_texts():
    model = compiled(tiny_bert())
    texts, labels = tiny_texts(8)
    first, second = (
        robustness_report(model, x, labels, epsilons=[0.1])
        for x in (texts, tuple(texts))
    )
    assert first == second


@needs_textattack
@pytest.mark.parametrize("kind", [tuple, pandas.Series])
def test_texts_are_attacked_whatever_holds_them(kind):
    model = compiled(tiny_bert())
    texts, _ = tiny_texts(8)
    labels = model.predict(texts, verbose=0).argmax(axis=-1)
    settings = {"epsilons": [], "attacks": ["deepwordbug"], "sample_size": 4}
    expected = robustness_report(model, texts, labels, **settings)
    x = kind(texts)
    if kind is pandas.Series:
        x.index = x.index[::-1]
        labels = pandas.Series(labels, x.index)
    assert robustness_report(model, x, labels, **settings) == expected


@needs_textattack
def test_numbers_of_numpy_are_numbers():
    model = compiled(tiny_bert())
    texts, labels = tiny_texts(8)
    settings = {"sample_size": 3, "batch_size": 4, "seed": 1, "steps": 2}
    expected, report = (
        robustness_report(
            model,
            texts,
            labels,
            attacks=["deepwordbug"],
            epsilons=kind([0.25, 0.5]),
            **{name: integer(value) for name, value in settings.items()},
        )
        for integer, kind in ((int, list), (np.int64, np.float32))
    )
    assert report == expected
    assert report.to_json() == expected.to_json()


def test_from_logits_decides_where_the_loss_does_not():
    inner = pooled_model(classes=1)
    kernel, bias = inner.weights[-2:]
    kernel.assign(np.zeros(kernel.shape))
    bias.assign([0.25])
    model = compiled(inner)
    model.compile("sgd", lambda y, outputs: keras.ops.mean(outputs))
    token_ids, _ = opinions()
    x, y = token_ids, np.ones(len(token_ids), "int32")
    with pytest.raises(ValueError, match="`from_logits` must be"):
        robustness_report(model, x, y, epsilons=[])
    for from_logits, accuracy in ((True, 1.0), (False, 0.0)):
        report = robustness_report(
            model, x, y, epsilons=[], from_logits=from_logits
        )
        assert report.conditions[0].accuracy == accuracy


@pytest.mark.parametrize("from_logits", [False, True])
def test_independent_outputs_are_no_distribution_unless_told(from_logits):
    inner = pooled_model(length=7)
    activation = "linear" if from_logits else "sigmoid"
    inner = keras.Model(
        inner.input, keras.layers.Activation(activation)(inner.output)
    )
    loss = keras.losses.BinaryCrossentropy(from_logits=from_logits)
    model = compiled_with(loss, inner)
    token_ids, labels = opinions()
    settings = {"epsilons": [0.1], "steps": 1}
    message = "`from_logits` must be .*no probabilities.* 3 outputs"
    with pytest.raises(ValueError, match=message):
        robustness_report(model, token_ids, labels, **settings)
    report = robustness_report(
        model, token_ids, labels, from_logits=from_logits, **settings
    )
    rows = model.predict(token_ids, verbose=0).astype("float64")
    rows = np.exp(rows) if from_logits else rows
    rows /= rows.sum(axis=-1, keepdims=True)
    error = keras_uegr.evaluation.expected_calibration_error(rows, labels)
    assert report.calibration_error == pytest.approx(error, abs=1e-6)


@pytest.mark.parametrize("outputs", [[[0.5, -2.0]], [[1.5]], [[-0.5]]])
def test_logits_that_are_said_to_be_probabilities_are_told(outputs):
    """Divided by their sum, a negative one, they would change places."""
    columns = len(outputs[0])
    inner = pooled_model(classes=columns)
    kernel, bias = inner.weights[-2:]
    kernel.assign(np.zeros(kernel.shape))
    bias.assign(outputs[0])
    loss = "mse" if columns == 1 else "categorical_crossentropy"
    model = compiled_with(loss, inner, output_kind="softmax")
    token_ids, _ = opinions()
    y = np.zeros(len(token_ids), "int32")
    message = "`from_logits` must be `True` or `None`.*from_logits=False"
    with pytest.raises(ValueError, match=message):
        robustness_report(model, token_ids, y, from_logits=False)
    with pytest.raises(ValueError, match="`from_logits` must be .*='no'"):
        robustness_report(model, token_ids, y, from_logits="no")


@pytest.mark.filterwarnings("ignore:invalid value encountered in divide")
def test_rows_without_a_probability_are_told_before_an_attack(monkeypatch):
    inner = pooled_model(classes=2)
    kernel, bias = inner.weights[-2:]
    kernel.assign(np.zeros(kernel.shape))
    bias.assign([0.0, 0.0])
    model = compiled_with("binary_crossentropy", inner)
    token_ids, _ = opinions()
    y = np.zeros(len(token_ids), "int32")
    monkeypatch.setattr(robustness_report_module, "white_box", None)
    with pytest.raises(ValueError, match="each row must sum to 1"):
        robustness_report(model, token_ids, y, from_logits=False)


def compiled_with(loss, inner=None, **arguments):
    model = keras_uegr.UEGRModel(inner or tiny_bert(), **arguments)
    model.compile("sgd", loss)
    return model


@pytest.mark.parametrize("one_hot", [False, True])
@pytest.mark.parametrize(
    "loss",
    [
        keras.losses.CategoricalCrossentropy(from_logits=True),
        keras.losses.CategoricalFocalCrossentropy(from_logits=True),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        "kl_divergence",
        "mse",
        keras.losses.binary_crossentropy,
    ],
    ids=lambda loss: getattr(loss, "name", getattr(loss, "__name__", loss)),
)
def test_labels_are_in_the_form_of_the_loss(loss, one_hot):
    inner = pooled_model(rate=0.1, length=7)
    inner.set_weights(trained_weights())
    if not isinstance(loss, keras.losses.Loss):
        inner = keras.Model(inner.input, keras.layers.Softmax()(inner.output))
    model = compiled_with(loss, inner, output_kind="softmax")
    token_ids, labels = opinions()
    rows = np.eye(3, dtype="float32")[labels]
    # A batch of as many examples as classes hides labels that don't fit.
    report = robustness_report(
        model,
        token_ids,
        rows if one_hot else labels,
        epsilons=[0.5],
        steps=4,
        batch_size=3,
    )
    sparse = isinstance(loss, keras.losses.SparseCategoricalCrossentropy)
    attacked = keras_uegr.evaluation.attacked_predictions(
        model, token_ids, labels if sparse else rows, attack(0.5), batch_size=3
    )
    clean, moved = (x.right for x in report.conditions)
    assert moved == list(attacked.argmax(-1) == labels)
    assert sum(moved) < sum(clean)


@needs_textattack
@pytest.mark.parametrize("fits", [False, True])
def test_labels_of_a_loss_of_ones_own_are_tried_before_texts_are_attacked(
    fits, monkeypatch
):
    def own(labels, outputs):
        product = labels * keras.ops.log_softmax(outputs, axis=-1)
        return -keras.ops.sum(product, axis=-1)

    model = compiled_with(own)
    texts, labels = tiny_texts(5)
    if fits:
        rows = np.eye(2)[labels]
        report = robustness_report(model, texts, rows, epsilons=[0.1])
        assert len(report.conditions) == 2
        return
    monkeypatch.setattr(text_attacks, "_attack_one", fail)
    with pytest.raises(Exception, match="shape|broadcast|size") as told:
        robustness_report(model, texts, labels, attacks=["deepwordbug"])
    assert not isinstance(told.value, AssertionError)


def fail(*_, **__):
    raise AssertionError("There was work before the check.")


@needs_textattack
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"epsilons": [0.1, -0.1]}, r"Received: epsilons=\[0.1, -0.1\]"),
        ({"epsilons": 0.1}, "`epsilons` must be a list .*epsilons=0.1"),
        ({"epsilons": ["0.1"]}, "`epsilons` must be a list of numbers"),
        ({"epsilons": [np.inf]}, r"must be finite .*epsilons=\[inf\]"),
        ({"steps": 0}, "`steps` must be a positive integer.*steps=0"),
        ({"batch_size": 0}, "`batch_size` must be .*batch_size=0"),
        ({"sample_size": 0}, "`sample_size` must be .*sample_size=0"),
        ({"seed": 0.5}, "`seed` must be an integer, .*seed=0.5"),
        ({"attacks": "deepwordbug"}, "`attacks` must be a list of names"),
        ({"attacks": ["pruthi", "magic"]}, "names among .*'magic'"),
        (
            {"attacks": ["pruthi", "input_reduction"]},
            "it keeps the class, .*Use `attack_texts`",
        ),
        ({"x": ("a film",) * 3}, "3 examples in x, and 4 labels"),
        ({"x": [], "y": np.zeros(0, int)}, "at least one.* and 0 labels"),
        ({"x": np.ones((4, 7), "int32")}, "`x` must be a list of strings"),
        ({"x": (i for i in range(4))}, "must be arrays.*x of type generator"),
        ({"y": [0, 1, 2, 0]}, "`labels` must be .*from 0 to 1"),
        (
            {"variants": {"lazy": (i for i in range(4))}},
            r'must be arrays.*variants\["lazy"\] of type generator',
        ),
        ({"attacks": None}, "`attacks` must be a list .*attacks=None"),
        (
            {"variants": ["a film"] * 4},
            "`variants` must be a dictionary by name.*of type list",
        ),
        (
            {"variants": pandas.Series(["a film"] * 4)},
            "`variants` must be a dictionary by name.*of type Series",
        ),
        (
            {"out_of_domain": (["a film"], [0])},
            "`out_of_domain` must be a dictionary by name.*of type tuple",
        ),
        (
            {"variants": {1: ["a film"] * 4}},
            "names in `variants` must be strings.*1 of type int",
        ),
        (
            {"out_of_domain": {"far": ["a film"]}},
            r'of pairs `\(x, y\)` .*out_of_domain\["far"\] of type list',
        ),
        (
            {"out_of_domain": {"far": (["a film"], [0, 1])}},
            r'1 examples in out_of_domain\["far"\]\[0\], and 2 labels',
        ),
        (
            {"out_of_domain": {"far": (["a film"], [0.5])}},
            r'`out_of_domain\["far"\]\[1\]` must be integers',
        ),
        (
            {"model": tiny_bert},
            "wrap it, `keras_uegr.UEGRModel.*type BertTextClassifier",
        ),
        (
            {"model": lambda: keras_uegr.UEGRModel(tiny_bert())},
            "must be compiled first, with the loss to attack",
        ),
        (
            {"model": lambda: compiled_with(None)},
            r"call `compile\(loss=...\)`.*Received: loss=None",
        ),
        (
            {"model": lambda: compiled_with("mse", tiny_bert(num_classes=1))},
            "`model` must be a classifier.*Received: loss=mse",
        ),
        (
            {"model": lambda: compiled_with("mse", output_kind="regression")},
            "`model` must be a classifier.*Received: loss=mse",
        ),
    ],
)
def test_what_does_not_fit_is_told_before_any_work(
    arguments, message, monkeypatch
):
    texts, labels = tiny_texts(4)
    make = arguments.pop("model", lambda: compiled(tiny_bert()))
    settings = {"x": texts, "y": labels, "attacks": ["pruthi"], **arguments}
    model = make()
    monkeypatch.setattr(type(model), "predict", fail)
    monkeypatch.setattr(text_attacks, "_attack_one", fail)
    with pytest.raises(ValueError, match=message):
        robustness_report(model, **settings)


@needs_textattack
def test_a_resource_that_loads_late_is_missed_before_any_work(monkeypatch):
    """As sentence encoders do, it loads as the first text is attacked."""
    recipes = import_textattack("attack_recipes")
    constraints = import_textattack("constraints")

    class Late(constraints.Constraint):
        def __init__(self):
            super().__init__(compare_against_original=True)

        def _check_constraint(self, *_):
            raise LookupError("no encoder")

    def build(wrapper):
        attack = recipes.DeepWordBugGao2018.build(wrapper)
        attack.constraints.append(Late())
        return attack

    monkeypatch.setattr(recipes.TextFoolerJin2019, "build", build)
    attacked = []
    attack_one = text_attacks._attack_one

    def record(built, name, *arguments):
        attacked.append(name)
        return attack_one(built, name, *arguments)

    monkeypatch.setattr(text_attacks, "_attack_one", record)
    model = compiled(tiny_bert())
    texts = ["", *tiny_texts(4)[0]]
    labels = 1 - model.predict(texts, verbose=0).argmax(axis=-1)
    attacks = ["deepwordbug", "textfooler"]
    with pytest.raises(FileNotFoundError, match="textfooler.*no encoder"):
        robustness_report(model, texts, labels, attacks=attacks)
    assert attacked == ["textfooler"]


@pytest.mark.parametrize("y", [-1, 3])
def test_a_label_of_no_class_is_told(y):
    token_ids, labels = opinions()
    labels[-1] = y
    with pytest.raises(ValueError, match="`y` must be integers from 0 to 2"):
        robustness_report(trained_model(), token_ids, labels)


def test_a_label_of_no_class_of_another_domain_is_told():
    token_ids, _ = opinions()
    message = r'`out_of_domain\["far"\]\[1\]` must be integers from 0 to 2'
    with pytest.raises(ValueError, match=message):
        report_of(trained_model(), out_of_domain={"far": (token_ids[:1], [3])})


def test_a_data_set_is_told():
    tensorflow = pytest.importorskip("tensorflow")
    token_ids, labels = opinions()
    x = tensorflow.data.Dataset.from_tensor_slices(token_ids).batch(30)
    with pytest.raises(ValueError, match="must be arrays, or lists .*of type"):
        robustness_report(trained_model(), x, labels)


def test_several_outputs_are_told():
    def outputs(hidden):
        return {name: keras.layers.Dense(3, name=name)(hidden) for name in "ab"}

    model = compiled_with(
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        pooled_model(outputs=outputs),
    )
    message = r"must have one output, .*shapes \[\(90, 3\), \(90, 3\)\]"
    with pytest.raises(ValueError, match=message):
        robustness_report(model, *opinions())


def test_labels_that_are_no_classes_are_told():
    token_ids, labels = opinions()
    with pytest.raises(ValueError, match="Received: y of dtype float64"):
        robustness_report(trained_model(), token_ids, labels / 2)


def test_a_model_that_has_diverged_is_told(monkeypatch):
    model = trained_model()
    model.model.weights[-1].assign(np.full(3, np.nan))
    monkeypatch.setattr(robustness_report_module, "white_box", None)
    with pytest.raises(ValueError, match="must be finite; it may have div"):
        report_of(model)


def test_a_missing_package_says_how_to_get_it():
    with pytest.raises(ImportError, match="pip install no_such_package"):
        import_optional("no_such_package.part", "Tables")
