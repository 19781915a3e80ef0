"""The rules that keep the package readable, checked on its own sources."""

import ast
import doctest
import importlib.util
import inspect
import io
import os
import pathlib
import re
import subprocess
import sys
import textwrap
import tokenize
import tomllib

import keras
import keras_hub
import numpy as np
import pytest

import keras_uegr
from keras_uegr import recipes
from tests import backbones

PACKAGE = pathlib.Path(keras_uegr.__file__).parent
MODULES = sorted(PACKAGE.rglob("*.py"))
BACKENDS = ("tensorflow", "jax", "torch")
MODULE_LINES = 250
FUNCTION_LINES = 40
NEEDS_TEXTATTACK = ("TextAttackModelWrapper", "add_noise", "attack_texts")


def public_objects():
    """Every public class and function, by its public name."""
    found = {}
    for namespace in (keras_uegr, keras_uegr.evaluation):
        for name, value in vars(namespace).items():
            if callable(value) and not name.startswith("_"):
                found[f"{namespace.__name__}.{name}"] = value
    return found


PUBLIC = public_objects()


def each_module(argument="module"):
    names = [str(path.relative_to(PACKAGE)) for path in MODULES]
    return pytest.mark.parametrize(argument, MODULES, ids=names)


each_public = pytest.mark.parametrize("name", sorted(PUBLIC))


def parse(module):
    return ast.parse(module.read_text())


def imports(tree):
    """Yield the full name of everything that a syntax tree imports."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def imports_at_top(tree):
    """Yield what importing the module imports: not what functions import."""
    for node in tree.body:
        if not isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            yield from imports(node)


def code_lines(source, tree):
    """Count the lines that hold code: no docstring, comment or blank line.

    Explaining more must never break a limit. Nor does a long signature count
    against a function: Keras writes one parameter a line.
    """
    without_code = {"COMMENT", "NL", "NEWLINE", "INDENT", "DEDENT", "ENDMARKER"}
    lines = set()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if tokenize.tok_name[token.type] not in without_code:
            lines.update(range(token.start[0], token.end[0] + 1))
    for node in ast.walk(tree):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            lines -= set(range(node.lineno, node.end_lineno + 1))
    first = tree.body[0].lineno if tree.body else 1
    last = tree.body[-1].end_lineno if tree.body else 0
    return len(lines & set(range(first, last + 1)))


@each_module()
def test_backends_are_imported_in_trainers_only(module):
    relative = module.relative_to(PACKAGE)
    if relative.parts[0] == "trainers":
        return
    tree = parse(module)
    # An exported model is a TensorFlow one, whatever the active backend is.
    served = relative.name in ("exporting.py", "serving.py")
    names = imports_at_top(tree) if served else imports(tree)
    found = [name for name in names if name.split(".")[0] in BACKENDS]
    assert not found, f"{relative} imports {found}"


def test_trainers_know_nothing_of_the_step_that_they_run():
    """Everything else may import them, and no import runs in a circle."""
    allowed = ("keras_uegr.keras_internals", "keras_uegr.trainers.")
    for module in (PACKAGE / "trainers").glob("*.py"):
        for name in imports(parse(module)):
            assert not name.startswith("keras_uegr") or name.startswith(allowed)


@each_module()
def test_private_keras_is_used_in_one_module_only(module):
    if module.name == "keras_internals.py":
        return
    found = [
        name
        for name in imports(parse(module))
        if re.match(r"(keras|keras_hub)\.(src\b|.*\._)", name)
    ]
    used = re.findall(r"\bkeras(?:_hub)?\.(?:src|_\w+)\b", module.read_text())
    assert not found + used, f"{module.name} uses {found + used}"


@each_module()
def test_module_is_short(module):
    assert code_lines(module.read_text(), parse(module)) <= MODULE_LINES


@each_module()
def test_functions_are_short(module):
    lengths = {
        node.name: code_lines(module.read_text(), node)
        for node in ast.walk(parse(module))
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))
    }
    long = {name: n for name, n in lengths.items() if n > FUNCTION_LINES}
    assert not long, f"{module.name} has functions of so many lines: {long}"


def test_code_lines_leave_out_what_explains():
    source = textwrap.dedent('''
    def double(
        x,
    ):
        """Doubles.

        Really.
        """

        # Twice is enough.
        return [
            x,
            "x",
        ]
    ''')
    tree = ast.parse(source)
    assert code_lines(source, tree) == 7
    assert code_lines(source, tree.body[0]) == 4


@each_public
def test_parameters_are_documented(name):
    documented = PUBLIC[name]
    docstring = inspect.getdoc(documented) or ""
    arguments = docstring.partition("Args:")[2]
    parameters = [
        parameter.name
        for parameter in inspect.signature(documented).parameters.values()
        if parameter.kind is not parameter.VAR_KEYWORD
    ]
    missing = [
        parameter
        for parameter in parameters
        if not re.search(rf"^ +{parameter}: ", arguments, re.MULTILINE)
    ]
    assert docstring
    assert not missing, f"{name} lacks in `Args:` {missing}"


def documented():
    """Public classes, functions and methods, and the recipes, by name."""
    found = {**PUBLIC, **recipes.RECIPES}
    for name, value in PUBLIC.items():
        if inspect.isclass(value):
            for key in vars(value):
                method = getattr(value, key)
                if callable(method) and not key.startswith("_"):
                    found[f"{name}.{key}"] = method
    return found


def test_defaults_in_docstrings_are_those_of_the_signature():
    compared = 0
    for name, value in documented().items():
        text = (inspect.getdoc(value) or "").partition("Args:\n")[2]
        for argument, parameter in inspect.signature(value).parameters.items():
            told = re.search(
                rf"^    {argument}: (.*?)(?=^    \w|^\w|\Z)", text, re.M | re.S
            )
            default = re.search(
                r"Defaults\s+to\s+`([^`]+)`|`([^`]+)`\s+\(default\)",
                told[1] if told else "",
            )
            # That of `step_size` is computed.
            if default and argument != "step_size":
                default = ast.literal_eval(default[1] or default[2])
                assert default == parameter.default, (name, argument)
                compared += 1
    assert compared > 100


@pytest.fixture
def example_names(monkeypatch):
    """What docstring examples may use; presets are replaced by a tiny BERT."""
    monkeypatch.setattr(
        keras_hub.models.BertTextClassifier,
        "from_preset",
        lambda preset, num_classes: backbones.tiny_bert(
            num_classes=num_classes
        ),
    )
    texts, labels = backbones.tiny_texts(8)
    model = keras_uegr.UEGRModel(backbones.tiny_bert())
    model.compile(
        optimizer="adamw",
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    )
    return {
        "keras": keras,
        "keras_hub": keras_hub,
        "keras_uegr": keras_uegr,
        "np": np,
        "model": model,
        "texts": texts,
        "labels": np.array(labels),
    }


@pytest.mark.slow
@each_public
def test_docstring_examples_run(name, example_names, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    docstring = inspect.getdoc(PUBLIC[name]) or ""
    installed = importlib.util.find_spec("textattack") is not None
    if name.rsplit(".")[-1] in NEEDS_TEXTATTACK and not installed:
        pytest.skip("TextAttack is not installed")
    namespace = {**example_names, name.rsplit(".")[-1]: PUBLIC[name]}
    for block in re.findall(r"```python\n(.*?)```", docstring, re.DOTALL):
        exec(block, namespace)
    test = doctest.DocTestParser().get_doctest(
        docstring, namespace, name, filename=None, lineno=None
    )
    outcome = doctest.DocTestRunner(
        optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
    ).run(test)
    assert outcome.failed == 0


@pytest.mark.slow
def test_import_pulls_in_no_other_backend():
    """Compares with Keras alone: KerasHub imports TensorFlow everywhere."""
    by_keras = backends_after("import keras")
    by_keras_uegr = backends_after("import keras_uegr")
    assert by_keras_uegr <= by_keras


def backends_after(statement):
    """The backends that a new process has loaded after a statement."""
    report = f"print(*(set(sys.modules) & set({BACKENDS})))"
    process = subprocess.run(
        [sys.executable, "-c", f"import sys\n{statement}\n{report}"],
        env={**os.environ, "KERAS_BACKEND": keras.backend.backend()},
        cwd=PACKAGE.parent,
        capture_output=True,
        text=True,
        check=True,
    )
    return set(process.stdout.split())


@pytest.mark.slow
def test_another_backend_is_told():
    process = subprocess.run(
        [sys.executable, "-c", "import keras_uegr"],
        env={**os.environ, "KERAS_BACKEND": "numpy"},
        cwd=PACKAGE.parent,
        capture_output=True,
        text=True,
        check=False,
    )
    assert process.returncode
    assert "Received: KERAS_BACKEND=numpy" in process.stderr


def test_lowest_releases_are_those_of_the_project():
    root = PACKAGE.parent
    project = tomllib.loads((root / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    bounds = set(project["dependencies"])
    for name in extras.keys() - {"test", "dev"}:
        bounds.update(x for x in extras[name] if "keras-uegr" not in x)
    lines = (root / ".ci" / "lowest.txt").read_text().splitlines()
    lowest = {re.sub(r"(\.0)+$", "", x.replace("==", ">=")) for x in lines}
    assert lowest >= bounds
