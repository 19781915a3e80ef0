"""What the README and the guide for contributors say is so."""

import ast
import importlib.util
import inspect
import pathlib
import re
import tomllib
import xml.etree.ElementTree

import keras
import keras_hub
import numpy as np
import pytest

import fetching
import keras_uegr
from keras_uegr import training_metrics
from tests.pooled_model import pooled_model

ROOT = pathlib.Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
CONTRIBUTING = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf-8")
DOCUMENTS = {"README.md": README, "CONTRIBUTING.md": CONTRIBUTING}
TEXTS = ["a delight", "a bore", "so good", "so bad"]
LABELS = np.array([1, 0, 1, 0])

each_document = pytest.mark.parametrize("name", DOCUMENTS)


def blocks(text, language):
    """The fenced blocks of a language."""
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.M | re.S)


def code(text):
    """Everything in code spans and in shell blocks."""
    outside = re.sub(r"^```.*?^```", "", text, flags=re.M | re.S)
    return "\n".join(blocks(text, "shell") + re.findall(r"`([^`]+)`", outside))


def heading_anchors(text):
    """The anchors that GitHub gives to the headings."""
    outside = re.sub(r"^```.*?^```", "", text, flags=re.M | re.S)
    headings = re.findall(r"^#+ (.*)$", outside, re.M)
    return {
        re.sub(r"[^\w\- ]", "", x).lower().replace(" ", "-") for x in headings
    }


def table_under(heading):
    """Rows of the first table under a heading of the README, without head."""
    section = re.split(r"^#+ ", README.partition(heading)[2], flags=re.M)[0]
    rows = re.findall(r"^\|(.*)\|$", section, re.M)
    return [[cell.strip() for cell in row.split(" | ")] for row in rows[2:]]


@pytest.fixture
def exported(monkeypatch):
    """Collects what is exported: `test_exporting.py` looks at the files."""
    signature = inspect.signature(keras_uegr.export_saved_model)
    calls = []

    def export(*args, **kwargs):
        calls.append(signature.bind(*args, **kwargs).arguments)

    monkeypatch.setattr(keras_uegr, "export_saved_model", export)
    return calls


def letters(texts):
    """A preprocessor: the first six letters of each text."""
    return np.array([[ord(x) % 20 for x in f"{text:6.6}"] for text in texts])


@pytest.mark.slow
def test_code_runs_block_by_block(exported, tmp_path, monkeypatch):
    classifier = pooled_model(classes=2, rate=0.1)
    classifier.preprocessor = letters
    monkeypatch.setattr(
        keras_hub.models.BertTextClassifier,
        "from_preset",
        lambda preset, num_classes: classifier,
    )
    monkeypatch.chdir(tmp_path)
    namespace = {
        **{"train_texts": TEXTS, "train_labels": LABELS},
        **{"val_texts": TEXTS, "val_labels": LABELS},
    }
    for number, block in enumerate(blocks(README, "python")):
        if "attack_texts" in block and not importlib.util.find_spec(
            "textattack"
        ):
            continue
        exec(compile(block, f"README.md, block {number}", "exec"), namespace)
    assert namespace["logits"].shape == (4, 2)
    assert np.abs(keras.ops.convert_to_numpy(namespace["delta"])).max() > 0
    assert [call["path"] for call in exported] == [
        "serving",
        "network",
        "serving",
    ]
    for call in exported:
        assert isinstance(call["model"], keras.Model)


@pytest.mark.parametrize(
    "name",
    [
        "UEGRModel",
        "FastGradient",
        "AdaptiveDropout",
        "SaliencyMaskedOptimizer",
    ],
)
def test_defaults_are_those_of_the_signature(name):
    parameters = inspect.signature(getattr(keras_uegr, name)).parameters
    stated = {
        argument.strip("`"): ast.literal_eval(default.strip("`"))
        for argument, default, _ in table_under(f"#### `{name}`\n")
    }
    assert stated
    assert stated == {name: parameters[name].default for name in stated}
    optional = {
        name
        for name, parameter in parameters.items()
        if parameter.default is not parameter.empty
    }
    assert optional - stated.keys() <= {"name"}


@pytest.mark.parametrize(
    ("name", "pattern"),
    [
        ("ProjectedGradient", r"`(steps|step_size|random_start)=(\w+)`"),
        ("GaussianNoise", r"`GaussianNoise\((\w+)=([\d.]+)\)`"),
        ("UniformNoise", r"`UniformNoise\((\w+)=([\d.]+)\)`"),
    ],
)
def test_defaults_in_the_text_are_those_of_the_signature(name, pattern):
    parameters = inspect.signature(getattr(keras_uegr, name)).parameters
    section = README.partition("`ProjectedGradient` adds")[2].partition("#")[0]
    stated = dict(re.findall(pattern, section))
    assert stated
    for argument, default in stated.items():
        assert ast.literal_eval(default) == parameters[argument].default


def test_metrics_are_those_of_training():
    stated = [row[0] for row in table_under("## What is shown while it trains")]
    names = training_metrics.create(skip_nonfinite=True)
    assert stated == [f"`{name}`" for name in names]


@pytest.mark.parametrize("thaw", [False, True], ids=["freeze", "thaw"])
def test_fit_without_compile_after_a_change_of_trainable(thaw):
    classifier = pooled_model()
    hidden = classifier.get_layer("hidden")
    hidden.trainable = not thaw
    model = keras_uegr.UEGRModel(classifier, warmup_steps=0)
    model.compile(
        keras.optimizers.SGD(0.1),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    )
    x, y = np.arange(1, 13).reshape(4, 3), np.array([0, 1, 2, 0])
    model.fit(x, y, verbose=0)
    hidden.trainable = thaw
    before = keras.ops.convert_to_numpy(hidden.kernel).copy()
    backend = keras.backend.backend()
    if backend == "jax" or (backend == "torch" and thaw):
        with pytest.raises(ValueError, match="`optimizer_variables`|Unknown"):
            model.fit(x, y, verbose=0)
        return
    model.fit(x, y, verbose=0)
    moved = (keras.ops.convert_to_numpy(hidden.kernel) != before).any()
    assert moved == (backend == "tensorflow" and not thaw)


@each_document
def test_make_commands_exist(name):
    targets = re.findall(r"^([a-z-]+):", MAKEFILE, re.M)
    variables = re.findall(r"^([A-Z_]+) \?=", MAKEFILE, re.M)
    commands = re.findall(r"^make .*$", code(DOCUMENTS[name]), re.M)
    assert len(commands) > 2
    for command in commands:
        words = command.partition("#")[0].split()
        assert words[1] in targets, command
        assert set(re.findall(r"([A-Z_]+)=", command)) <= set(variables)


def test_cache_of_the_quickstart_is_the_one_named(monkeypatch):
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.delenv("KERAS_UEGR_CACHE", raising=False)
    folder = fetching.cache_folder().relative_to(pathlib.Path.home())
    assert f"`~/{folder.as_posix()}`" in README
    monkeypatch.setenv("KERAS_UEGR_CACHE", "own")
    assert fetching.cache_folder() == pathlib.Path("own")
    assert "`KERAS_UEGR_CACHE`" in README


@each_document
def test_options_of_the_quickstart_exist(name):
    source = (ROOT / "examples/quickstart.py").read_text(encoding="utf-8")
    stated = re.findall(r'QUICKSTART="?(--\w+)', code(DOCUMENTS[name]))
    for option in stated:
        assert f'"{option}"' in source


def files_named_in(text):
    """The paths of this repository's files in a text."""
    return re.findall(
        r"(?<!\w)(?:docs|examples|keras_uegr|tests|\.ci)/[\w/.-]*\w", text
    )


@each_document
def test_files_exist(name):
    paths = files_named_in(DOCUMENTS[name])
    assert paths
    for path in paths:
        assert (ROOT / path).exists(), path


def test_source_distribution_has_the_folders_of_the_documents():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    sdist = project["tool"]["hatch"]["build"]["targets"]["sdist"]
    named = files_named_in(README + CONTRIBUTING)
    folders = {f"/{path.partition('/')[0]}" for path in named}
    assert "/.ci" in folders
    assert folders <= set(sdist["include"])


@each_document
def test_links_point_to_files_and_headings(name):
    links = re.findall(r"\]\(([^)\s]+)\)", DOCUMENTS[name])
    internal = [link for link in links if "://" not in link]
    assert internal
    for link in internal:
        path, _, anchor = link.partition("#")
        assert (ROOT / path).is_file() or not path, link
        if anchor:
            linked = (ROOT / (path or name)).read_text(encoding="utf-8")
            assert anchor in heading_anchors(linked), link


def test_extras_exist():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    stated = set(re.findall(r"""["']\.\[(\w+)\]""", README + CONTRIBUTING))
    assert {"jax", "textattack", "dev"} <= stated
    assert stated <= project["optional-dependencies"].keys()


def test_every_module_is_described_to_contributors():
    described = set(re.findall(r"\b(\w+)\.py\b", CONTRIBUTING))
    package = pathlib.Path(keras_uegr.__file__).parent
    modules = {path.stem for path in package.rglob("*.py")} - {"__init__"}
    assert modules <= described


def test_figure_is_well_formed_and_has_a_dark_mode():
    source = (ROOT / "docs/data_flow.svg").read_text(encoding="utf-8")
    figure = xml.etree.ElementTree.fromstring(source)
    assert figure.tag.endswith("svg")
    assert "prefers-color-scheme: dark" in source
    # What a page embeds as an image loads nothing from elsewhere.
    references = re.findall(r"(?:href|src)=|url\((?!#)|@import", source)
    assert references == []
