"""The runner of the comparison and of the ablation, on a tiny BERT."""

import argparse
import dataclasses
import importlib.util
import itertools
import json
import pathlib
import re
import types

import keras
import matplotlib.image
import numpy as np
import pytest

import ablation
import compare_methods
import keras_uegr
import loss_landscape
import minilm
import movie_reviews
import multi_device
import quickstart
import step_cost
import text_datasets
from keras_uegr import recipes
from keras_uegr.evaluation import attack_recipes, text_attacks
from method_comparison import (
    cells,
    command_line,
    figures,
    grid,
    measurement,
    methods,
    report,
    summary,
    training,
)
from tests import backbones

pytestmark = pytest.mark.slow

SETTINGS = cells.Settings(
    train_size=16, test_size=8, epochs=1, batch_size=4, radii=(0.1,)
)
# As an attack sees a model of two classes.
UNTRAINED = types.SimpleNamespace(classes=2, batch_size=4)
CELL = cells.Cell("uegr", "movie_reviews", 0)


@pytest.fixture
def tiny_model(monkeypatch):
    """A tiny BERT and invented sentences, for every data set."""

    def load(name, sizes, seed=0):
        texts, labels = backbones.tiny_texts(sum(sizes))
        sentences = movie_reviews.Sentences(texts, np.array(labels, "int32"))
        parts = movie_reviews.split(sentences, sizes, seed)
        return text_datasets.Dataset(text_datasets.TASKS[name], *parts)

    monkeypatch.setattr(text_datasets, "load", load)
    monkeypatch.setattr(
        minilm,
        "classifier",
        lambda num_classes, sequence_length: backbones.tiny_bert(
            num_classes=num_classes
        ),
    )


def test_finished_cell_is_kept(tmp_path):
    store = cells.CellStore(tmp_path, SETTINGS)
    assert store.read(CELL, {}) is None
    store.write(CELL, {}, {"scores": {"clean": 0.5}})
    assert cells.CellStore(tmp_path, SETTINGS).read(CELL, {}) == {
        "scores": {"clean": 0.5}
    }
    # Nothing half-written stays beside it.
    assert len(list(store.folder.iterdir())) == 1


@pytest.mark.parametrize("content", ["", '{"cell": ', "[]", "{}", "\x00" * 9])
def test_a_file_that_holds_no_cell_is_told(content, tmp_path):
    """As a full disk or a power cut may leave it."""
    store = cells.CellStore(tmp_path, SETTINGS)
    store.write(CELL, {}, {})
    store.path(CELL).write_text(content)
    message = "delete it, and .* trained again. Received: .*movie_reviews-uegr"
    with pytest.raises(ValueError, match=message):
        store.read(CELL, {})


def test_cells_of_other_settings_are_not_mixed_in(tmp_path):
    cells.CellStore(tmp_path, SETTINGS).write(CELL, {}, {})
    longer = cells.Settings(train_size=16, test_size=8, epochs=9)
    message = "same settings: choose another one. Received: .*'epochs': 9"
    with pytest.raises(ValueError, match=message):
        cells.CellStore(tmp_path, longer).read(CELL, {})
    with pytest.raises(ValueError, match="same method: .*'density': 1"):
        cells.CellStore(tmp_path, SETTINGS).read(CELL, {"density": 1})


def test_cells_of_another_backend_are_not_mixed_in(tmp_path, monkeypatch):
    store = cells.CellStore(tmp_path, SETTINGS)
    store.write(CELL, {}, {})
    written = store.path(CELL).read_text()
    own = keras.backend.backend()
    monkeypatch.setattr(keras.backend, "backend", lambda: "another")
    message = f"same backend: choose another one. Received: another, .* {own}"
    with pytest.raises(ValueError, match=message):
        store.read(CELL, {})
    # Cells from before the backend was kept are of any.
    content = json.loads(written)
    del content["backend"]
    store.path(CELL).write_text(json.dumps(content))
    assert store.read(CELL, {}) == {}


def result_of(clean, seconds=1.0, steps=10, loss=0.5):
    return {
        "scores": {"clean": clean, "loss": loss},
        "seconds_per_step": seconds,
        "steps": steps,
    }


@pytest.fixture
def table():
    """Two seeds: UEGR is 0.1 and 0.2 better, its loss 0.1 higher."""
    results = {
        cells.Cell(method, "rte", seed): result_of(clean, seconds, 10, loss)
        for method, clean, seconds, loss in (
            ("finetune", 0.5, 1.0, 0.5),
            ("uegr", 0.65, 3.0, 0.6),
        )
        for seed in (0, 1)
    }
    results[cells.Cell("uegr", "rte", 0)] = result_of(0.54, 3.0, 10, 0.6)
    results[cells.Cell("uegr", "rte", 1)] = result_of(0.58, 2.0, 10, 0.6)
    return summary.scores_of(results, "rte")


def test_cost_is_relative_to_plain_fit_of_the_same_seed(table):
    assert table["uegr"]["cost"] == {0: 3.0, 1: 2.0}
    assert table["finetune"]["cost"] == {0: 1.0, 1: 1.0}


def test_cost_includes_what_comes_before_the_first_step():
    results = {
        cells.Cell("finetune", "rte", 0): result_of(0.5),
        cells.Cell("sift", "rte", 0): {
            **result_of(0.5),
            "preparation_seconds": 5.0,
        },
    }
    table = summary.scores_of(results, "rte")
    assert table["sift"]["cost"] == {0: 1.5}


def test_each_script_and_its_quick_form_have_a_folder_of_their_own():
    folders = set()
    for name in ("comparison", "ablation"):
        for arguments in ([], ["--quick"]):
            options = command_line.parser("").parse_args(arguments)
            folders.add(command_line.output_of(options, name))
    assert len(folders) == 4
    options = command_line.parser("").parse_args(["--output", "here"])
    assert command_line.output_of(options, "ablation") == pathlib.Path("here")


def test_quick_makes_small_what_is_not_given():
    options = command_line.parse(
        command_line.parser(""), ["--quick", "--epochs", "2"]
    )
    settings = command_line.settings_of(options, "validation")
    assert settings.train_size == command_line.QUICK["train_size"]
    assert settings.attack_steps == command_line.QUICK["attack_steps"]
    assert settings.epochs == 2
    assert options.seeds == [0]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--attacks", "deepwordbag"], "invalid choice: 'deepwordbag'"),
        (["--attacks", "input_reduction"], "choice: 'input_reduction'"),
        (
            ["--attacks", "pwws", "--datasets", "stsb"],
            "need classes, not a regression",
        ),
        (
            ["--adversarial-glue", "dev.json", "--datasets", "cola"],
            "one of --datasets must be among ['sst2', ",
        ),
    ],
)
def test_wrong_options_are_told_before_training(arguments, message, capsys):
    parser = command_line.parser("")
    with pytest.raises(SystemExit):
        command_line.parse(parser, arguments)
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("method", "message"),
    [
        ({"recipe": "fgn"}, "recipe of 'mine' must be one of .*=fgn"),
        ({"recipe": "fgm", "radius": 1.0}, r"among .* \['radius'\]"),
        ({"recipe": "fgm", "kwargs": {}}, r"among .* \['kwargs'\]"),
        (
            {"recipe": "fgm", "learning_rate": 1e-3},
            r"among .*\['recipe', 'epsilon'\].* \['learning_rate'\]",
        ),
        ({"epsilom": 1.0}, r"settings of 'mine' .* \['epsilom'\]"),
        ({"random_start": True}, "'mine' .*`random_start` needs .*=fast_grad"),
        (
            {"perturbation": "fastgradient"},
            "'mine' .*`perturbation` must be .*'none'.*=fastgradient",
        ),
        ({"norm": "l3"}, "'mine' are wrong: `norm` must be .*=l3"),
        ({"dropout": "random"}, "'mine' .*`policy` must be .*=random"),
        ({"saliency": "size"}, "'mine' are wrong: .*size"),
        ({"scope": "model"}, "'mine' .*`scope` must be .*=model"),
        ({"density": 2}, "'mine' .*`density` must be .*=2"),
        ("fgm", "'mine' must be a dictionary of settings.*Received: 'fgm'"),
        ({"recipe": ["fgm"]}, r"recipe of 'mine' must be one of .*=\['fgm'\]"),
        ({"sub_models": -1}, "'mine' .*`sub_models` must be .*=-1"),
        ({"token_share": 2}, "'mine' .*`token_share` must be .*=2"),
        ({"consistency_weight": "5"}, "'mine' .*`consistency_weight` must be"),
        ({"warmup_share": -0.1}, "'mine' .*`warmup_share` must be .*=-0.1"),
        ({"recipe": "fgm", "epsilon": -1}, "'mine' .*`epsilon` must be .*=-1"),
        (
            {"recipe": "smart", "direction": "up"},
            "'mine' .*`direction` must be .*=up",
        ),
        (
            {"recipe": "child_tuning_f", "density": 3},
            "'mine' .*`density` must be .*=3",
        ),
        ({"recipe": "sam", "radius": "x"}, "'mine' .*`sharpness_radius` must"),
    ],
)
def test_wrong_methods_are_told_before_training(
    method, message, no_training, tmp_path
):
    settings = tmp_path / "methods.json"
    settings.write_text(json.dumps({"mine": method}))
    arguments = ["--settings", str(settings), "--output", str(tmp_path)]
    with pytest.raises(ValueError, match=message):
        compare_methods.main(arguments)


def test_methods_that_would_share_a_file_are_told_before_training(
    no_training, tmp_path
):
    path = tmp_path / "methods.json"
    names = ["fgm (0.3)", "fgm [0.3]"]
    path.write_text(json.dumps({name: {"recipe": "fgm"} for name in names}))
    arguments = ["--settings", str(path), "--output", str(tmp_path)]
    message = r"rename one. Received: 'fgm \(0.3\)' and 'fgm \[0.3\]'"
    with pytest.raises(ValueError, match=message):
        compare_methods.main(arguments)


@pytest.mark.parametrize("script", [compare_methods, loss_landscape])
@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "methods.json must be a JSON file: .*No such file"),
        ('{"mine": ', "methods.json must be a JSON file: Expecting value"),
        ("[]", r"methods.json must hold methods by name.* Received: \[\]"),
    ],
)
def test_a_file_that_holds_no_methods_is_told(
    content, message, script, no_training, tmp_path, capsys
):
    path = tmp_path / "methods.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(SystemExit):
        script.main(["--settings", str(path), "--output", str(tmp_path)])
    assert re.search(f"--settings: .*{message}", capsys.readouterr().err)


@pytest.mark.parametrize("script", [compare_methods, loss_landscape])
@pytest.mark.parametrize("seed", ["-1", str(2**32), "one"])
def test_seeds_that_cannot_be_set_are_told_before_training(
    seed, script, no_training, tmp_path, capsys
):
    arguments = ["--seeds", "0", seed, "--output", str(tmp_path)]
    with pytest.raises(SystemExit):
        script.main(arguments)
    assert re.search(f"--seeds: .*{seed}", capsys.readouterr().err)


@pytest.mark.parametrize(
    "parse",
    [
        compare_methods.main,
        ablation.main,
        loss_landscape.main,
        step_cost.parse_arguments,
        quickstart.main,
        multi_device.main,
    ],
    ids=lambda parse: parse.__module__,
)
def test_every_option_is_explained(parse, monkeypatch):
    def keep(parser, *_):
        parsers.append(parser)
        raise SystemExit

    parsers = []
    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", keep)
    with pytest.raises(SystemExit):
        parse()
    unexplained = [x.dest for x in parsers[0]._actions if not x.help]
    assert not unexplained


@pytest.fixture
def no_training(monkeypatch):
    """A training would fail with another error than what is expected."""
    monkeypatch.setattr(training, "train", None)


NUMBERS = [
    *("train_size", "test_size", "epochs", "batch_size", "sequence_length"),
    *("attack_steps", "white_box_size", "attack_size"),
]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        *(({name: 0}, f"positive integer.*{name}=0") for name in NUMBERS),
        ({"radii": (0.1, -0.1)}, "`radii` must be .* radii=-0.1"),
        ({"learning_rate": -1.0}, "`learning_rate` must be .*=-1.0"),
    ],
)
def test_wrong_numbers_are_told_before_training(
    changes, message, tiny_model, no_training, tmp_path
):
    settings = dataclasses.replace(SETTINGS, **changes)
    store = cells.CellStore(tmp_path, settings)
    chosen = {"finetune": {"recipe": "finetune"}}
    with pytest.raises(ValueError, match=message):
        grid.run(chosen, ["movie_reviews"], [0], settings, store)


@pytest.mark.parametrize("missing", ["rated_tweets", "labelled_tweets"])
def test_missing_data_is_told_before_training(
    missing, tiny_model, no_training, monkeypatch, tmp_path
):
    load = text_datasets.load

    def load_others(name, sizes):
        if name == missing:
            raise ValueError(f"no {name}")
        return load(name, sizes)

    monkeypatch.setattr(text_datasets, "load", load_others)
    store = cells.CellStore(tmp_path, SETTINGS)
    datasets = ["movie_reviews", "labelled_tweets"]
    with pytest.raises(ValueError, match=f"no {missing}"):
        grid.run({"uegr": {}}, datasets, [0], SETTINGS, store)


@pytest.mark.parametrize(
    ("dataset", "few", "options"),
    [
        ("movie_reviews", "movie_reviews", "`--train-size` and `--test-size`"),
        ("movie_reviews", "product_reviews", "^`--test-size`"),
        ("snli", "snli", "`--train-size` and `--test-size`"),
    ],
)
def test_too_few_examples_tell_the_data_set_and_the_options(
    dataset, few, options, tiny_model, no_training, monkeypatch, tmp_path
):
    load = text_datasets.load

    def load_few(name, sizes):
        if name == few:
            movie_reviews.split(["a text"] * 20, sizes, 0)
        return load(name, sizes)

    monkeypatch.setattr(text_datasets, "load", load_few)
    settings = dataclasses.replace(SETTINGS, train_size=100, test_size=15)
    store = cells.CellStore(tmp_path, settings)
    message = f"{options} must ask .* than {few} has: choose less. .*=.*15"
    with pytest.raises(ValueError, match=message):
        grid.run({"uegr": {}}, [dataset], [0], settings, store)


def test_an_attack_that_cannot_be_built_is_told_before_training(
    tiny_model, no_training, monkeypatch, tmp_path
):
    def is_missing(name, *_):
        raise FileNotFoundError(f"{name} needs word vectors")

    monkeypatch.setattr(attack_recipes, "build_attack", is_missing)
    monkeypatch.setattr(
        text_attacks, "TextAttackModelWrapper", lambda *_: UNTRAINED
    )
    settings = dataclasses.replace(SETTINGS, attacks=("textfooler",))
    store = cells.CellStore(tmp_path, settings)
    with pytest.raises(FileNotFoundError, match="textfooler needs word"):
        grid.run({"uegr": {}}, ["movie_reviews"], [0], settings, store)


def test_a_missing_textattack_is_told_before_training(
    tiny_model, no_training, monkeypatch, tmp_path
):
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util,
        "find_spec",
        lambda name: None if name == "textattack" else find(name),
    )
    settings = dataclasses.replace(SETTINGS, attacks=("deepwordbug",))
    store = cells.CellStore(tmp_path, settings)
    with pytest.raises(ImportError, match="need TextAttack"):
        grid.run({"uegr": {}}, ["movie_reviews"], [0], settings, store)
    # What is finished is reported without it.
    store.write(CELL, {}, result_of(0.5))
    results = grid.run({"uegr": {}}, ["movie_reviews"], [0], settings, store)
    assert results == {CELL: result_of(0.5)}


def test_time_left_is_known_when_a_cell_takes_minutes():
    progress = grid.progress_bar()
    now = [0.0]
    progress.get_time = lambda: now[0]
    task = progress.add_task("", total=4)
    for _ in range(2):
        now[0] += 300.0
        progress.advance(task)
    assert progress.tasks[0].time_remaining == 600.0


def test_names_of_methods_are_shown_as_they_are(capsys):
    progress = grid.progress_bar()
    name = "fgm [strong] [/]"
    with progress:
        progress.add_task(name, total=1)
    assert name in capsys.readouterr().err


def test_time_left_is_that_of_the_runs_to_come(tmp_path, monkeypatch):
    progress = grid.progress_bar()
    monkeypatch.setattr(grid, "progress_bar", lambda: progress)
    monkeypatch.setattr(
        grid.requirements, "load", lambda names, _: dict.fromkeys(names)
    )
    monkeypatch.setattr(grid, "run_cell", lambda *_: result_of(0.5))
    store = cells.CellStore(tmp_path, SETTINGS)
    finished = cells.Cell("fgm", "movie_reviews", 0)
    store.write(finished, {"recipe": "fgm"}, result_of(0.6))
    chosen = {name: {"recipe": name} for name in ("finetune", "fgm", "rdrop")}
    results = grid.run(chosen, ["movie_reviews"], [0], SETTINGS, store)
    assert [cell.method for cell in results] == [*chosen]
    assert results[finished] == result_of(0.6)
    assert progress.tasks[0].total == 2


def test_one_answer_to_everything_is_never_the_best():
    robust = "attacked at 0.05"
    table = {
        "learns": {"clean": {0: 0.8}, robust: {0: 0.3}},
        "answers once": {"clean": {0: 0.5}, robust: {0: 0.45}},
        "a little worse": {"clean": {0: 0.75}, robust: {0: 0.35}},
    }
    assert summary.best_methods(table, robust) == {"a little worse"}


@pytest.mark.parametrize(
    ("attacks", "column"),
    [((), "attacked at 0.2"), (("pwws", "pruthi"), "pwws, 2 words")],
)
def test_figures_show_robustness_that_differs(
    attacks, column, tmp_path, monkeypatch
):
    options = command_line.parse(
        command_line.parser(""),
        ["--radii", "0.1", "0.2", "--attacks", *attacks],
    )
    drawn = []
    monkeypatch.setattr(command_line.grid, "run", lambda *_: {})
    monkeypatch.setattr(command_line.report, "write", lambda *_: "")
    monkeypatch.setattr(
        command_line.figures,
        "draw",
        lambda _, robust, *__: drawn.append(robust),
    )
    command_line.run(options, {}, "uegr", "validation", tmp_path)
    assert drawn == [column]


def test_best_is_lowest_for_losses(table):
    assert summary.best_methods(table, "clean") == {"uegr"}
    assert summary.best_methods(table, "loss") == {"finetune"}
    assert summary.best_methods(table, "cost") == {"finetune"}


def test_a_method_that_has_diverged_is_told_and_never_the_best(table):
    diverged = {"clean": {0: np.nan, 1: 0.9}, "loss": {0: np.nan, 1: 0.1}}
    table["sift"] = diverged
    expected = summary.best_methods({**table, "sift": {}}, "clean")
    assert summary.best_methods(table, "clean") == expected
    assert "sift" not in summary.accurate_methods(table)
    assert "| sift | 2 | diverged | diverged |" in report.score_table(table)
    assert "sift" not in summary.compare(table, "uegr", "clean")
    assert summary.best_methods({"sift": diverged}, "clean") == set()
    outcomes = report.outcome_table(table, "uegr")
    assert "| sift | diverged | diverged | not measured |" in outcomes
    assert "| uegr | diverged |" in report.outcome_table(table, "sift")


def test_what_has_diverged_is_null_in_json(tmp_path):
    results = {CELL: result_of(0.5, loss=np.nan)}
    report.write(results, ["movie_reviews"], SETTINGS, tmp_path)

    def refuse(name):
        raise ValueError(name)

    text = (tmp_path / "comparison.json").read_text()
    written = json.loads(text, parse_constant=refuse)
    assert written["scores"]["movie_reviews"]["uegr"] == {
        "clean": {"0": 0.5},
        "loss": {"0": None},
    }


def test_a_model_that_has_diverged_is_measured(tiny_model):
    settings = dataclasses.replace(SETTINGS, attacks=("deepwordbug",))
    data = text_datasets.load("movie_reviews", (16, 8, 8))
    model = training.train({"recipe": "finetune"}, data, 0, SETTINGS).model
    model.model.get_layer("logits").bias.assign([np.nan, 0.0])
    scores = measurement.measure(model, data, settings)
    assert "deepwordbug, 2 words, worst class" in scores
    assert np.isnan(list(scores.values())).all()


def test_scores_are_shown_with_their_interval(table):
    lines = report.score_table(table).splitlines()
    assert lines[0] == "| method | seeds | clean | loss | cost |"
    # t(0.975; 1) = 12.706, standard deviation of the mean 0.02.
    assert lines[3].startswith("| uegr | 2 | **56.0** ± 25.4 | 0.600 ±")
    assert lines[2].startswith("| finetune | 2 | 50.0 ± 0.0 | **0.500** ±")


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        (
            {"attacks": ("pwws",)},
            "on 1000 validation examples, under attack on the embeddings on "
            "300 and under text attacks on 200. ",
        ),
        (
            {"test_size": 48},
            "on 48 validation examples, under attack on the embeddings on 48. ",
        ),
        ({"radii": (), "split": "test"}, "on 1000 test examples. "),
    ],
)
def test_it_is_told_how_many_examples_are_attacked(changes, told):
    heading = report.heading(cells.Settings(**changes))
    assert f"measured {told}" in heading


@pytest.mark.parametrize(
    ("dataset", "metric"),
    [("cola", "matthews"), ("stsb", "pearson"), ("movie_reviews", None)],
)
def test_scores_that_are_no_accuracy_are_told(dataset, metric, tmp_path):
    results = {cells.Cell("uegr", dataset, 0): result_of(0.5)}
    text = report.write(results, [dataset], SETTINGS, tmp_path)
    section = text.partition(f"## {dataset}\n\n")[2]
    note = f"Scores are {metric}, times 100, where no other metric is named."
    assert section.startswith(note if metric else "| method |")


def test_losses_are_shown(table):
    row = report.outcome_table(table, "uegr").splitlines()[2]
    # p = 1 - 2 * atan(3) / pi for differences of 0.04 and 0.08.
    assert "+6.0 (p = 0.2)" in row
    assert "-0.100 (of each seed)" in row
    assert "-1.500" in row


def test_one_seed_has_no_interval(table):
    one = {"uegr": {"clean": {0: 0.6}}, "finetune": {"clean": {0: 0.5}}}
    assert "| uegr | 1 | **60.0** |" in report.score_table(one)
    assert "not measured" in report.outcome_table(one, "uegr")


def test_figures_number_methods_and_name_those_left_out(
    table, tmp_path, monkeypatch
):
    one_answer = {"clean": {0: 0.1}, "loss": {0: 0.9}, "cost": {0: 1.0}}
    kept = []
    monkeypatch.setattr(figures.pyplot, "close", kept.append)
    figures.draw({**table, "roast": one_answer}, "loss", tmp_path, "rte")
    monkeypatch.undo()
    for figure in kept:
        (legend,) = figure.legends
        names = [text.get_text() for text in legend.get_texts()]
        assert names[:2] == ["1  uegr", "2  finetune"]
        assert names[-1] == "roast"
        for axes in figure.axes:
            assert [text.get_text() for text in axes.texts] == ["1", "2"]
        figures.pyplot.close(figure)


def test_figures_are_drawn(table, tmp_path):
    figures.draw(table, "loss", tmp_path, "rte")
    for name in ("rte-robust-clean.png", "rte-cost.png"):
        pixels = matplotlib.image.imread(tmp_path / name)[..., :3]
        uegr = matplotlib.colors.to_rgb(figures.UNIFIED)
        assert np.isclose(pixels, uegr, atol=0.01).all(axis=-1).any()


def test_numbers_of_alike_methods_lie_side_by_side(
    table, tmp_path, monkeypatch
):
    kept = []
    monkeypatch.setattr(figures.pyplot, "close", kept.append)
    figures.draw({**table, "twin": table["uegr"]}, "loss", tmp_path, "rte")
    monkeypatch.undo()
    for figure in kept:
        for axes in figure.axes:
            boxes = [text.get_window_extent() for text in axes.texts]
            assert len(boxes) == 3
            for one, other in itertools.combinations(boxes, 2):
                assert not one.overlaps(other)
        figures.pyplot.close(figure)


def test_there_is_no_figure_of_costs_without_plain_fit(tmp_path):
    table = {"uegr": {"clean": {0: 0.6}, "loss": {0: 0.5}}}
    figures.draw(table, "loss", tmp_path, "rte")
    names = [path.name for path in tmp_path.iterdir()]
    assert names == ["rte-robust-clean.png"]


def test_the_table_is_printed_as_it_is(tmp_path, monkeypatch, capsys):
    row = f"| [bold]method[/] | {'wide ' * 60}|"
    monkeypatch.setattr(command_line.grid, "run", lambda *_: {})
    monkeypatch.setattr(command_line.report, "write", lambda *_: row)
    monkeypatch.setattr(command_line.figures, "draw", lambda *_: None)
    options = command_line.parse(command_line.parser(""), [])
    command_line.run(options, {}, "uegr", "validation", tmp_path)
    assert capsys.readouterr().out == f"{row}\n"


def test_a_cell_that_is_asked_for_twice_is_trained_once(tmp_path, monkeypatch):
    monkeypatch.setattr(
        grid.requirements, "load", lambda names, _: dict.fromkeys(names)
    )
    trained = []
    monkeypatch.setattr(
        grid, "run_cell", lambda *each: trained.append(each) or result_of(0.5)
    )
    store = cells.CellStore(tmp_path, SETTINGS)
    datasets = ["movie_reviews", "movie_reviews"]
    results = grid.run({"uegr": {}}, datasets, [0, 1, 0], SETTINGS, store)
    assert len(trained) == len(results) == 2


def test_equal_cost_buys_as_many_steps_as_the_time_of_uegr():
    results = {
        cells.Cell("finetune", "rte", 0): result_of(0.5, 0.2),
        cells.Cell("uegr", "rte", 0): result_of(0.5, 0.7),
    }
    cell = cells.Cell("finetune, equal cost", "rte", 0)
    assert training.steps_of(SETTINGS) == 4
    assert grid.steps_of(cell, results, SETTINGS) == 14
    other = cells.Cell("rdrop", "rte", 0)
    assert grid.steps_of(other, results, SETTINGS) == 4
    # Of a busy machine, where steps that cost more took less time.
    results[cells.Cell("uegr", cell.dataset, cell.seed)]["seconds_per_step"] = 0
    assert grid.steps_of(cell, results, SETTINGS) == 4


def test_any_method_can_be_as_costly():
    results = {
        cells.Cell("uegr", "rte", 0): result_of(0.5, 0.6),
        cells.Cell("fgm, epsilon=0.3", "rte", 0): result_of(0.5, 0.4),
    }
    cell = cells.Cell("fgm, epsilon=0.3, equal cost", "rte", 0)
    assert grid.steps_of(cell, results, SETTINGS) == 6


@pytest.mark.parametrize(
    "names",
    [
        ["uegr", "sam, equal cost"],
        ["sam", "sam, equal cost"],
        ["uegr", "sam, equal cost", "sam"],
    ],
)
def test_a_cost_that_is_not_known_is_told_before_training(
    names, tiny_model, no_training, tmp_path
):
    store = cells.CellStore(tmp_path, SETTINGS)
    message = "'sam' and 'uegr' must come before 'sam, equal cost'"
    chosen = {name: {} for name in names}
    with pytest.raises(ValueError, match=message):
        grid.run(chosen, ["movie_reviews"], [0], SETTINGS, store)


def test_equal_cost_comes_after_what_it_depends_on():
    chosen = compare_methods.chosen([compare_methods.LONGER, "rdrop"])
    assert list(chosen) == ["finetune", "uegr", "rdrop", compare_methods.LONGER]
    assert chosen[compare_methods.LONGER] == {"recipe": "finetune"}


@pytest.mark.skipif(
    keras.backend.backend() != "torch", reason="PyTorch lets one choose"
)
def test_factors_of_products_are_rounded_while_a_cell_runs(monkeypatch):
    import torch

    def train(*_):
        seen.append(torch.get_float32_matmul_precision())
        raise KeyboardInterrupt

    seen = []
    monkeypatch.setattr(training, "train", train)
    for precision in ("bfloat16", "float32"):
        settings = dataclasses.replace(SETTINGS, matmul_precision=precision)
        with pytest.raises(KeyboardInterrupt):
            grid.run_cell({}, None, 0, settings, 1)
        # Also after an error it is as before.
        assert torch.get_float32_matmul_precision() == "highest"
    assert seen == ["medium", "highest"]


@pytest.mark.skipif(
    keras.backend.backend() == "torch", reason="PyTorch lets one choose"
)
def test_rounded_products_are_refused_where_there_are_none():
    settings = dataclasses.replace(SETTINGS, matmul_precision="bfloat16")
    with pytest.raises(ValueError, match="set KERAS_BACKEND=torch"):
        grid.run_cell({}, None, 0, settings, 1)


def test_order_of_examples_is_the_same_however_long_the_training_is():
    texts, labels = backbones.tiny_texts(10)
    examples = movie_reviews.Sentences(texts, np.array(labels))
    short, _ = training.in_order(examples, 12, seed=0)
    long, long_labels = training.in_order(examples, 28, seed=0)
    assert len(long) == len(long_labels) == 28
    assert long[:12] == short
    assert sorted(long[:10]) == sorted(texts)


def test_same_seed_same_model(tiny_model):
    data = text_datasets.load("movie_reviews", (16, 8, 8))
    first, same = (
        training.train({"recipe": "finetune"}, data, 3, SETTINGS).model
        for _ in range(2)
    )
    np.testing.assert_array_equal(
        first.predict(data.test.texts, verbose=0),
        same.predict(data.test.texts, verbose=0),
    )


def test_preparation_is_timed_apart(tiny_model, monkeypatch):
    now = [0.0]

    def prepare(*_):
        now[0] += 5.0

    monkeypatch.setattr(training.methods, "prepare", prepare)
    monkeypatch.setattr(
        training, "time", types.SimpleNamespace(perf_counter=lambda: now[0])
    )
    settings = cells.Settings(train_size=12, epochs=1, batch_size=4)
    data = text_datasets.load("movie_reviews", (12, 0, 0))
    trained = training.train({"recipe": "finetune"}, data, 0, settings)
    assert trained.cost()["preparation_seconds"] == 5.0


def test_linear_decay_ends_at_zero():
    settings = dataclasses.replace(SETTINGS, decay="linear")
    schedule = training.learning_rate_of(settings, 10)
    assert [float(schedule(step)) for step in (0, 5, 10)] == pytest.approx(
        [1e-4, 5e-5, 0.0]
    )
    assert training.learning_rate_of(SETTINGS, 10) == 1e-4


def test_white_box_attack_has_a_size_of_its_own(tiny_model, monkeypatch):
    attacked, attack = [], keras_uegr.evaluation.attacked_curve

    def spy(model, texts, *arguments, **options):
        attacked.append(len(texts))
        return attack(model, texts, *arguments, **options)

    monkeypatch.setattr(keras_uegr.evaluation, "attacked_curve", spy)
    settings = dataclasses.replace(SETTINGS, white_box_size=3)
    data = text_datasets.load("movie_reviews", (16, 8, 8))
    model = training.train({}, data, 0, settings).model
    measurement.measure(model, data, settings)
    assert attacked == [3]


@pytest.mark.skipif(
    importlib.util.find_spec("textattack") is None,
    reason="TextAttack is not installed: see the README",
)
def test_text_attacks_tell_few_words_and_classes_apart(tiny_model):
    settings = dataclasses.replace(SETTINGS, attacks=("deepwordbug",))
    data = text_datasets.load("movie_reviews", (16, 8, 8))
    model = training.train({}, data, 0, settings).model
    scores = measurement.measure(model, data, settings)
    result = keras_uegr.evaluation.attack_texts(
        model, data.validation.texts, data.validation.labels
    )
    found = {x: y for x, y in scores.items() if x.startswith("deepwordbug")}
    classes = result.by_class().values()
    assert found == {
        "deepwordbug": result.robust_accuracy,
        "deepwordbug, worst class": min(x.robust_accuracy for x in classes),
        "deepwordbug, 2 words": result.accuracy_within(2),
        "deepwordbug, 2 words, worst class": min(
            x.accuracy_within(2) for x in classes
        ),
    }
    assert len(set(found.values())) > 1


# Label, answer before and after an attack (`None`: its output isn't finite),
# and the words that it changed.
ATTACKED = [
    *((1, 1, None, 3), (1, 1, 0, 1), (1, 1, 1, 4)),
    *((0, 0, 0, 4), (0, 0, 1, 2), (0, 1, 1, 0)),
]


def test_text_attacks_are_scored_by_the_metric_of_the_task(
    tiny_model, monkeypatch
):
    examples = [
        text_attacks.AttackedExample(
            index, "", "", label, before, after, 0.5, 0.5, words, 1, ""
        )
        for index, (label, before, after, words) in enumerate(ATTACKED)
    ]
    result = text_attacks.TextAttackResult("pwws", examples)
    monkeypatch.setattr(text_attacks, "attack_texts", lambda *_, **__: result)
    settings = dataclasses.replace(SETTINGS, attacks=("pwws",), radii=())
    data = text_datasets.load("sst2", (16, 8, 8))
    model = training.train({"recipe": "finetune"}, data, 0, settings).model
    # By hand: tp 1, tn 1, fp 2, fn 2, then tp 2, tn 1, fp 2, fn 1.
    expected = {
        "sst2": (2 / 6, 3 / 6),
        "cola": (-1 / 3, 0.0),
        "mrpc": (1 / 3, 4 / 7),
    }
    for task, (free, two_words) in expected.items():
        data = dataclasses.replace(data, task=text_datasets.TASKS[task])
        scores = measurement.measure(model, data, settings)
        assert scores["pwws"] == pytest.approx(free)
        assert scores["pwws, 2 words"] == pytest.approx(two_words)
        # One class has no metric but its share of right answers.
        assert scores["pwws, worst class"] == pytest.approx(1 / 3)
        assert scores["pwws, 2 words, worst class"] == pytest.approx(1 / 3)


@pytest.fixture
def adversarial_file(tmp_path):
    """AdvGLUE's file, with five texts of SST-2."""
    texts, labels = backbones.tiny_texts(5)
    pairs = zip(texts, labels, strict=True)
    rows = [{"sentence": text, "label": int(label)} for text, label in pairs]
    path = tmp_path / "dev.json"
    path.write_text(json.dumps({"sst2": rows}))
    return str(path)


def test_models_are_asked_for_adversarial_glue(tiny_model, adversarial_file):
    settings = dataclasses.replace(
        SETTINGS, radii=(), adversarial_glue=adversarial_file
    )
    loaded = grid.requirements.load(["sst2", "cola"], settings)
    model = training.train({}, loaded["sst2"], 0, settings).model
    scores = measurement.measure(model, loaded["sst2"], settings)
    texts, labels = backbones.tiny_texts(5)
    answers = model.predict(texts, verbose=0).argmax(axis=-1)
    assert scores["on AdvGLUE"] == pytest.approx(np.mean(answers == labels))
    scores = measurement.measure(model, loaded["cola"], settings)
    assert "on AdvGLUE" not in scores


def test_adversarial_glue_is_read_before_training(tiny_model, tmp_path):
    settings = dataclasses.replace(
        SETTINGS, adversarial_glue=str(tmp_path / "dev.json")
    )
    with pytest.raises(FileNotFoundError, match="dev.json"):
        grid.requirements.load(["sst2"], settings)


def test_cells_tell_of_adversarial_glue_where_it_was_asked_for(tmp_path):
    assert (
        "adversarial_glue" not in cells.CellStore(tmp_path, SETTINGS).settings
    )
    settings = dataclasses.replace(SETTINGS, adversarial_glue="dev.json")
    store = cells.CellStore(tmp_path, settings)
    assert store.settings["adversarial_glue"] == "dev.json"


VARIANTS = ablation.variants(ablation.PARTS)


def test_every_change_has_a_name_of_its_own():
    changes = sum(map(len, ablation.PARTS.values()))
    assert len(VARIANTS) == 2 + changes


@pytest.mark.parametrize("name", VARIANTS)
def test_every_variant_can_be_built(name):
    model, optimizer = methods.build(
        VARIANTS[name], backbones.tiny_bert(), 1e-3, total_steps=10
    )
    change = VARIANTS[name]
    if "density" in change:
        assert optimizer.density == change["density"]
    if change.get("sub_models"):
        assert model.sub_models == change["sub_models"]
    if "warmup_share" in change:
        assert model.state.warmup_steps == 10 * change["warmup_share"]
    if "perturb_special_tokens" in change:
        assert len(model.unperturbed_token_ids) > 0
    if "epsilon" in change:
        assert model.perturbation.epsilon == change["epsilon"]


@pytest.mark.parametrize("name", recipes.RECIPES)
def test_every_recipe_can_be_built(name):
    model, _ = methods.build({"recipe": name}, backbones.tiny_bert(), 1e-3, 10)
    assert isinstance(model, keras.Model)


def test_comparison_in_small(tiny_model, tmp_path, monkeypatch):
    settings = cells.Settings(
        train_size=16,
        test_size=8,
        epochs=1,
        batch_size=4,
        radii=(0.1,),
        attack_steps=1,
    )
    monkeypatch.setattr(
        compare_methods.command_line, "settings_of", lambda *_: settings
    )
    arguments = ["--methods", compare_methods.LONGER, "child_tuning_d"]
    arguments += ["--seeds", "0", "--output", str(tmp_path)]
    results = compare_methods.main(arguments)
    assert [cell.method for cell in results] == [
        "finetune",
        "uegr",
        "child_tuning_d",
        compare_methods.LONGER,
    ]
    for result in results.values():
        assert set(result["scores"]) == {
            *("clean", "loss", "calibration error", "letters swapped"),
            "attacked at 0.1",
            *("on product_reviews", "on product_reviews, roc_auc"),
            *("on rated_tweets", "on rated_tweets, roc_auc"),
        }
    written = json.loads((tmp_path / "comparison.json").read_text())
    assert set(written["scores"]["movie_reviews"]) == {
        cell.method for cell in results
    }
    assert "| uegr |" in (tmp_path / "comparison.md").read_text()
    # A second run finds all cells and trains nothing.
    monkeypatch.setattr(grid, "run_cell", None)
    assert compare_methods.main(arguments) == results


def test_comparison_without_an_attack_has_its_figures(
    tiny_model, tmp_path, monkeypatch
):
    settings = dataclasses.replace(SETTINGS, radii=())
    monkeypatch.setattr(
        compare_methods.command_line, "settings_of", lambda *_: settings
    )
    drawn = []
    monkeypatch.setattr(figures, "draw", lambda *each: drawn.append(each[1]))
    arguments = ["--methods", "finetune", "--seeds", "0"]
    compare_methods.main([*arguments, "--output", str(tmp_path)])
    assert drawn == ["letters swapped"]


@pytest.mark.filterwarnings("ignore:The power iteration has not")
def test_landscape_in_small(tiny_model, tmp_path, monkeypatch):
    arguments = [
        *("--train-size", "16", "--examples", "6", "--batch-size", "4"),
        *("--epochs", "1", "--every", "2", "--iterations", "1"),
        *("--seeds", "0", "--output", str(tmp_path)),
    ]
    results = loss_landscape.main(arguments)
    assert [cell.method for cell in results] == ["finetune", "uegr"]
    for history in results.values():
        assert [one["step"] for one in history] == [0, 2, 4]
    plain, unified = results.values()
    # They start from the same weights, and part then.
    assert plain[0] == unified[0]
    assert all(plain[-1][x] != unified[-1][x] for x in loss_landscape.MEASURES)
    image = matplotlib.image.imread(tmp_path / "loss-landscape.png")
    assert image.std() > 0
    # What is finished isn't trained again.
    monkeypatch.setattr(loss_landscape.training, "train", None)
    assert loss_landscape.main(arguments) == results


def test_landscape_refuses_methods_at_equal_cost(no_training, tmp_path):
    path = tmp_path / "methods.json"
    path.write_text(json.dumps({"fgm, equal cost": {"recipe": "fgm"}}))
    arguments = ["--settings", str(path), "--output", str(tmp_path)]
    message = "as many steps as the others.*Received: 'fgm, equal cost'"
    with pytest.raises(ValueError, match=message):
        loss_landscape.main(arguments)


def test_landscape_takes_a_decay():
    options = loss_landscape.parse_arguments(["--decay", "linear"])
    assert loss_landscape.settings_of(options).decay == "linear"


def test_quick_landscape_makes_small_what_is_not_given():
    arguments = ["--quick", "--train-size", "96", "--seeds", "4", "5"]
    options = loss_landscape.parse_arguments(arguments)
    settings = loss_landscape.settings_of(options)
    assert (settings.train_size, options.seeds) == (96, [4, 5])
    assert settings.examples == loss_landscape.QUICK["examples"]
    assert loss_landscape.parse_arguments(["--quick"]).seeds == [0]


@pytest.mark.parametrize(
    "option",
    ["--test-size", "--attack-steps", "--white-box-size", "--attack-size"],
)
def test_landscape_takes_no_option_without_effect(option, capsys):
    with pytest.raises(SystemExit):
        loss_landscape.parse_arguments([option, "3"])
    assert f"unrecognized arguments: {option} 3" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("method", "arguments", "message"),
    [
        ({"recipe": "fgn"}, [], "recipe of 'mine' must be one of"),
        ({}, ["--epochs", "0"], "positive integer.*epochs=0"),
        ({}, ["--every", "0"], "positive integer.*every=0"),
        ({}, ["--examples", "0"], "positive integer.*examples=0"),
        ({}, ["--iterations", "0"], "positive integer.*iterations=0"),
        ({}, ["--radius", "0"], "number above 0.*radius=0"),
        ({}, ["--examples", "99999"], "`--train-size` and `--examples` must"),
    ],
)
def test_landscape_tells_what_is_wrong_before_training(
    method, arguments, message, no_training, monkeypatch, tmp_path
):
    monkeypatch.setattr(
        text_datasets,
        "load",
        lambda _, sizes: movie_reviews.split(["a text"] * 20, sizes, 0),
    )
    path = tmp_path / "methods.json"
    path.write_text(json.dumps({"mine": method}))
    arguments = [*arguments, "--settings", str(path), "--output", str(tmp_path)]
    with pytest.raises(ValueError, match=message):
        loss_landscape.main(arguments)


def test_landscape_draws_each_of_many_methods(tmp_path, monkeypatch):
    history = [
        {"step": step, **dict.fromkeys(loss_landscape.MEASURES, 1.0)}
        for step in (0, 1)
    ]
    names = [f"method {number}" for number in range(30)]
    kept = []
    monkeypatch.setattr(figures.pyplot, "close", kept.append)
    loss_landscape.draw(
        {cells.Cell(name, "movie_reviews", 0): history for name in names},
        loss_landscape.Settings(),
        tmp_path / "figure.png",
    )
    monkeypatch.undo()
    handles, labels = kept[0].axes[0].get_legend_handles_labels()
    assert labels == names
    looks = [(line.get_color(), line.get_linestyle()) for line in handles]
    assert len(set(looks)) == 24
    figures.pyplot.close(kept[0])


def test_arguments_of_a_recipe_are_passed_on():
    model, _ = methods.build(
        {"recipe": "fgm", "epsilon": 0.2},
        backbones.tiny_bert(),
        1e-3,
        total_steps=10,
    )
    assert model.perturbation.epsilon == 0.2


def test_what_is_drawn_once_an_epoch_knows_its_length():
    _, optimizer = methods.build(
        {"recipe": "roast"}, backbones.tiny_bert(), 1e-3, 30, steps_per_epoch=10
    )
    assert optimizer.refresh_steps == 10


def test_settings_of_the_adversary_reach_it():
    model, _ = methods.build(
        {
            "perturbation": "projected_gradient",
            "steps": 2,
            "random_start": True,
            "clean_weight": 0.5,
        },
        backbones.tiny_bert(),
        1e-3,
        total_steps=10,
    )
    config = model.perturbation.get_config()
    assert (config["steps"], config["random_start"]) == (2, True)
    assert model.clean_weight == 0.5


@pytest.mark.parametrize(("steps", "warm_up"), [(4, 1), (16, 2), (150, 15)])
def test_settings_warm_up_as_long_as_the_package_does(steps, warm_up):
    model, _ = methods.build({}, backbones.tiny_bert(), 1e-3, steps)
    assert model.state.warmup_steps == warm_up
    by_default, _ = methods.build(
        {"recipe": "uegr"}, backbones.tiny_bert(), 1e-3, steps
    )
    planned = keras_uegr.warm_up.WarmUp()
    planned.set_model(by_default)
    planned.set_params({"steps": steps, "epochs": 1})
    planned.on_train_begin()
    assert int(by_default.state.warmup_end) == warm_up


def test_settings_without_a_warm_up_have_none():
    method = {"warmup_share": 0}
    model, _ = methods.build(method, backbones.tiny_bert(), 1e-3, 100)
    assert model.state.warmup_steps == 0


def test_settings_that_are_left_out_are_the_defaults_of_the_package():
    (model, optimizer), (expected, expected_optimizer) = (
        methods.build(method, backbones.tiny_bert(), 1e-3, total_steps=10)
        for method in ({}, {"recipe": "uegr"})
    )
    for name in ("perturbation", "dropout"):
        found, default = (
            getattr(one, name).get_config() for one in (model, expected)
        )
        assert found == default
    for name in (
        "sub_models",
        "token_share",
        "clean_weight",
        "adversarial_weight",
        "consistency_weight",
        "include_clean",
        "unperturbed_token_ids",
    ):
        assert getattr(model, name) == getattr(expected, name)
    for name in ("density", "saliency", "scope"):
        assert getattr(optimizer, name) == getattr(expected_optimizer, name)
    share = methods.UnifiedSettings().warmup_share
    assert share == keras_uegr.warm_up.SHARE
