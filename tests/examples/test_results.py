"""The published results are what their runs measured."""

import json
import pathlib
import re
import shlex
import shutil
import subprocess

import keras
import pytest

import ablation
import compare_methods
import loss_landscape
from method_comparison import figures, training
from method_comparison.cells import Cell, CellStore, Settings

FOLDER = pathlib.Path(compare_methods.__file__).parent
RESULTS = (FOLDER / "RESULTS.md").read_text(encoding="utf-8")
SCRIPTS = {"compare_methods": compare_methods, "ablation": ablation}
COMMANDS = re.findall(
    r"KERAS_BACKEND=(\w+) [^`]*?(compare_methods|ablation)\.py "
    r"([^`]*?--output \S+/results/(\w+))",
    RESULTS.replace("\\\n", " "),
)


@pytest.mark.parametrize(
    ("backend", "script", "command", "name"),
    COMMANDS,
    ids=[x[-1] for x in COMMANDS],
)
def test_table_is_that_of_its_command(
    backend, script, command, name, tmp_path, monkeypatch
):
    output = tmp_path / name
    shutil.copytree(FOLDER / "results" / name, output)
    # Every run is kept in the folder: nothing is trained.
    monkeypatch.setattr(training, "train", None)
    monkeypatch.setattr(keras.backend, "backend", lambda: backend)
    monkeypatch.setattr(figures, "draw", lambda *_: None)
    arguments = shlex.split(command)
    arguments[arguments.index("--output") + 1] = str(output)
    monkeypatch.chdir(FOLDER.parents[1])
    SCRIPTS[script].main(arguments)
    written = (output / "comparison.md").read_text(encoding="utf-8")
    _, *tables = re.split(r"^## \w+\n\n", written, flags=re.MULTILINE)
    assert tables
    for table in tables:
        assert table.rstrip("\n").replace("### ", "#### ") in RESULTS
    stored = FOLDER / "results" / name / "comparison.md"
    assert stored.read_text(encoding="utf-8") == written


@pytest.mark.skipif(
    shutil.which("git") is None or not (FOLDER.parents[1] / ".git").exists(),
    reason="No clone, where nothing is tracked",
)
def test_what_the_commands_write_beside_the_results_is_ignored():
    def git(*arguments):
        return subprocess.run(
            ["git", *arguments], cwd=FOLDER, stdout=subprocess.PIPE, text=True
        ).stdout.split()

    folder = "results/all_methods"
    written = [f"{folder}/comparison.json", f"{folder}/movie_reviews-cost.png"]
    assert git("check-ignore", *written) == written
    tracked = git("ls-files", "results")
    assert f"{folder}/movie_reviews-robust-clean.png" in tracked
    assert git("check-ignore", "--no-index", *tracked) == []


def test_linked_figures_are_there():
    linked = re.findall(r"!\[[^]]*\]\(([^)]+)\)", RESULTS)
    assert len(linked) > 1
    assert all((FOLDER / path).is_file() for path in linked)


def test_every_stored_run_is_the_one_that_its_file_is_named_after():
    paths = [*FOLDER.glob("results/*/cells/*.json")]
    assert paths
    for path in paths:
        cell = Cell(**json.loads(path.read_text(encoding="utf-8"))["cell"])
        store = CellStore(path.parents[1], Settings())
        assert store.path(cell) == path


def test_sections_that_the_text_names_are_there():
    headings = set(re.findall(r"^#+ (.+)$", RESULTS, flags=re.MULTILINE))
    prose = re.sub(r"```.*?```", "", RESULTS, flags=re.DOTALL)
    prose = re.sub(r"^\|.*$", "", prose, flags=re.MULTILINE)
    named = {
        " ".join(name.split()).rstrip(",")
        for name in re.findall(r'"([A-Z][^"]*)"', prose)
    }
    assert "All methods" in named
    assert named <= headings


def test_figure_of_the_landscape_is_drawn_from_its_stored_runs(
    tmp_path, monkeypatch
):
    command = re.search(
        r"loss_landscape\.py ([^`]*?) --output (\S+)",
        RESULTS.replace("\\\n", " "),
    )
    arguments, folder = command.groups()
    output = tmp_path / "landscape"
    shutil.copytree(FOLDER.parents[1] / folder, output)
    figure = output / "loss-landscape.png"
    figure.unlink()
    # Its runs are kept in the folder: nothing is trained.
    monkeypatch.setattr(training, "train", None)
    loss_landscape.main([*shlex.split(arguments), "--output", str(output)])
    assert figure.exists()


@pytest.mark.parametrize("eigenvalue", [-50.0, 50.0])
def test_figure_of_the_landscape_hides_no_value(
    eigenvalue, tmp_path, monkeypatch
):
    history = [
        {"step": step, **dict.fromkeys(loss_landscape.MEASURES, eigenvalue)}
        for step in (0, 1)
    ]
    kept = []
    monkeypatch.setattr(figures.pyplot, "close", kept.append)
    loss_landscape.draw(
        {Cell("uegr", "movie_reviews", 0): history},
        loss_landscape.Settings(),
        tmp_path / "figure.png",
    )
    monkeypatch.undo()
    for axes in kept[0].axes:
        lowest = axes.get_ylim()[0]
        assert lowest < eigenvalue if eigenvalue < 0 else lowest == 0
    figures.pyplot.close(kept[0])


def test_there_are_commands_and_tables():
    folders = {path.name for path in (FOLDER / "results").iterdir()}
    assert {name for *_, name in COMMANDS} == folders
