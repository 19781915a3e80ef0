"""Writes docs/support.md, and its summary in the README, from test results.

    python -m tests.conformance.support_table test-logs/*.xml

Each file is what `make test` wrote on one backend, named after it. Each
table holds the cases of one test, or all tests of a module. Results of a part
of the tests are refused: what is missing there would read "does not apply".
"""

import pathlib
import sys
from xml.etree import ElementTree

from tests.conformance import families
from tests.conformance.test_tasks import TASKS

ROOT = pathlib.Path(__file__).parents[2]
BACKENDS = {"tensorflow", "jax", "torch"}
TABLES = {
    "KerasHub backbones": "conformance.test_models.test_backbone",
    "Keras models": "conformance.test_models.test_other_model",
    "Tasks": "conformance.test_tasks.test_task",
    "Half precision": "test_precision",
    "Other precision": "test_dtypes",
    "Partly trained models": "test_partly_trained",
    "Features of fit": "test_fit_features",
    "Interrupted training": "test_survival",
    "Several devices": "test_several_devices",
}
# Rows of "Features of fit" that tests of other modules show.
OF_OTHER_MODULES = {
    "optimizers.test_saliency_masked_optimizer."
    "test_ten_steps_equal_the_twin_and_keep_unselected_bits": {
        "adamw_clipnorm-variable": "clipnorm",
        "adam_global_clipnorm-variable": "global_clipnorm",
    },
    "test_uegr_model.test_sample_weight_class_weight_and_validation_split": {
        "": "class_weight"
    },
    "test_training_step.test_both_weights_zero_and_density_one_is_plain_fit": {
        "eager": "run_eagerly"
    },
    "test_training_step.test_same_seed_same_result_other_seed_another": {
        "": "set_random_seed"
    },
    "test_model_parts.test_other_layers_may_be_rematerialized": {
        "scope0": "rematerialization of activations",
        "scope1": "rematerialization of other layers",
    },
    "test_uegr_model.test_a_step_in_mixed_precision": {
        "mixed_bfloat16": "mixed_bfloat16"
    },
}
ABSENT = "does not apply"
INTRODUCTION = """# What works

Made by `make test support-table` from the tests' results, not typed by hand.
In the first three tables "yes" means: a compiled UEGR step perturbs the
embedding and leaves the padding alone, the sub-models differ, a few steps lower
the loss, and a saved model that is loaded again predicts the same (this last is
not asked of the tasks). In the others it means what the test's name says. All
models are tiny and have random weights.
"""
BEGIN, END = "<!-- made by make support-table -->\n", "<!-- end -->"


def main():
    """Write the tables and the summary, or exit if results are missing."""
    missing = missing_results(sys.argv[1:])
    if missing:
        sys.exit(
            "The results must be those of a whole `make test` on all backends. "
            f"Missing: {', '.join(missing)}"
        )
    tables = read(sys.argv[1:])
    target = ROOT / "docs" / "support.md"
    target.write_text(document(tables), encoding="utf-8")
    readme = ROOT / "README.md"
    text = readme.read_text(encoding="utf-8")
    before, rest = text.split(BEGIN)
    _, after = rest.split(END)
    text = f"{before}{BEGIN}{summary(tables)}{END}{after}"
    readme.write_text(text, encoding="utf-8")


def missing_results(paths):
    """Return what a whole `make test` would have left in the files."""
    missing = sorted(BACKENDS - {pathlib.Path(path).stem for path in paths})
    expected = {
        "KerasHub backbones": families.BACKBONES,
        "Keras models": families.OTHER_MODELS,
        "Tasks": TASKS,
    }
    for path in paths:
        tables = read([path])
        missing += [
            f"{case} on {pathlib.Path(path).stem}"
            for heading, cases in expected.items()
            for case in cases
            if case not in tables[heading]
        ]
    return missing


def read(paths):
    """Return `{heading: {row: {backend: verdict}}}` of files of results."""
    tables = {heading: {} for heading in TABLES}
    backends = [pathlib.Path(path).stem for path in paths]
    for backend, path in zip(backends, paths, strict=True):
        for element in ElementTree.parse(path).iter("testcase"):
            heading, row = place(element)
            if heading:
                cells = tables[heading].setdefault(
                    row, dict.fromkeys(backends, ABSENT)
                )
                cells[backend] = verdict(element)
    return tables


def place(element):
    """Return heading and row of a test case, or `None` twice."""
    name, _, case = element.get("name").rstrip("]").partition("[")
    module = element.get("classname").removeprefix("tests.")
    words = name.removeprefix("test_").replace("_", " ")
    row = OF_OTHER_MODULES.get(f"{module}.{name}", {}).get(case)
    if row:
        return "Features of fit", row
    for heading, source in TABLES.items():
        if source == f"{module}.{name}":
            return heading, case
        if source == module:
            return heading, f"{words}: {case}" if case else words
    return None, None


def verdict(element):
    """Return "yes", or why not, of a test case."""
    for outcome in ("failure", "error", "skipped"):
        reason = element.find(outcome)
        if reason is not None:
            return f"no: {reason.get('message').splitlines()[0]}"
    return "yes"


def document(tables):
    """Return the Markdown of all tables."""
    parts = [INTRODUCTION.rstrip()]
    for heading, rows in tables.items():
        if not rows:
            continue
        lines = [
            f"| {row} | {' | '.join(cells.values())} |"
            for row, cells in rows.items()
        ]
        head = header(next(iter(rows.values())))
        parts.append("\n".join([f"## {heading}", "", *head, *lines]))
    return "\n\n".join(parts) + "\n"


def summary(tables):
    """Return the Markdown of how many rows of each table are "yes"."""
    lines = []
    for heading, rows in tables.items():
        if not rows:
            continue
        lines = lines or header(next(iter(rows.values())))
        anchor = heading.lower().replace(" ", "-")
        columns = zip(*[cells.values() for cells in rows.values()], strict=True)
        counts = [
            f"{cells.count('yes')} of {len(cells) - cells.count(ABSENT)}"
            for cells in columns
        ]
        link = f"[{heading}](docs/support.md#{anchor})"
        lines.append(f"| {link} | {' | '.join(counts)} |")
    return "\n".join(lines) + "\n"


def header(backends):
    """Return the two lines that open a table."""
    return [f"| | {' | '.join(backends)} |", f"|---|{'---|' * len(backends)}"]


if __name__ == "__main__":
    main()
