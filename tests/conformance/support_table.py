"""Writes docs/support.md, and its summary in the README, from test results.

    python -m tests.conformance.support_table \\
        test-logs/tensorflow.xml test-logs/jax.xml test-logs/torch.xml

Each file is what `make test` wrote on one backend, named after it. Each
table holds the cases of one test, or all tests of a module. Results of a part
of the tests are refused: what is missing there would read "does not apply", or
be no row at all.
"""

import ast
import pathlib
import sys
from xml.etree import ElementTree

from tests.conformance import families
from tests.conformance.test_tasks import TASKS

ROOT = pathlib.Path(__file__).parents[2]
TESTS = pathlib.Path(__file__).parents[1]
BACKENDS = ("tensorflow", "jax", "torch")
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
    "test_objective.test_positions_name_the_outputs_of_a_list": {
        "": "several inputs and outputs in lists"
    },
    "test_objective.test_divergence_is_that_of_the_outputs_asked_for": {
        "": "consistency_outputs"
    },
    "test_objective.test_masked_tokens_count_in_no_loss": {
        "": "loss over unmasked tokens only"
    },
    "conformance.test_tasks."
    "test_causal_language_model_learns_from_unpadded_tokens_alone": {
        "": "loss over unpadded tokens only, of a causal language model"
    },
    "conformance.test_tasks."
    "test_causal_language_model_generates_after_training": {
        "": "generate() after training"
    },
}
# Tests of the modules above that show what is refused, where a row says "no".
REFUSALS = {
    "test_fit_features.test_several_steps_in_one_execution_are_refused",
    "test_several_devices.test_update_in_some_steps_only_is_refused",
    "test_several_devices.test_example_refuses_to_split_the_model_elsewhere",
}
# Tests whose cases differ from backend to backend, by what Keras has there.
OWN_CASES = {
    "test_several_devices.test_step_on_several_devices_is_the_step_on_one",
    "test_several_devices.test_example_says_that_the_weights_agree",
}
ABSENT = "does not apply"
INTRODUCTION = """# What works

Made by `make test support-table` from the tests' results, not typed by hand.
In the first three tables "yes" means: a compiled UEGR step perturbs the
embedding and leaves the padding alone, the sub-models differ, a few steps lower
the loss, and a saved model that is loaded again predicts the same (this last is
not asked of the tasks). In the others it means what the test's name says. "No"
gives the reason. "Does not apply" means that the backend has no such thing and
so no such test, as JAX has no `MirroredStrategy`; the summary in the README
leaves it out. All models are tiny and have random weights.
"""
BEGIN, END = "<!-- made by make support-table -->\n", "<!-- end -->"


def main():
    """Write the tables and the summary, or exit if results are missing."""
    paths = sys.argv[1:]
    stems = [pathlib.Path(path).stem for path in paths]
    if sorted(stems) != sorted(BACKENDS):
        sys.exit(
            "There must be one file of results for each of "
            f"{', '.join(BACKENDS)}, named after it. "
            f"Received: {', '.join(paths)}"
        )
    missing = missing_results(paths)
    if missing:
        sys.exit(
            "The results must be those of a whole `make test` on all backends. "
            f"Missing: {', '.join(missing)}"
        )
    tables = read(paths)
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
    expected = expected_tests()
    found = {pathlib.Path(path).stem: tests_of(path) for path in paths}
    missing = []
    for tests in found.values():
        for test in expected.keys() - OWN_CASES:
            # What one backend has is missing where another lacks it.
            expected[test] |= tests.get(test, set())
    for backend, tests in found.items():
        for test, cases in expected.items():
            if test in OWN_CASES and test in tests:
                continue
            lacking = (cases or {""}) - tests.get(test, set())
            names = [test + f"[{case}]" * bool(case) for case in lacking]
            missing += [f"{name} on {backend}" for name in sorted(names)]
    return missing


def expected_tests():
    """Return `{test: cases}` of what makes rows; no cases: any will do."""
    expected = {
        TABLES["KerasHub backbones"]: set(families.BACKBONES),
        TABLES["Keras models"]: set(families.OTHER_MODELS),
        TABLES["Tasks"]: set(TASKS),
    }
    for test, rows in OF_OTHER_MODULES.items():
        expected[test] = set(rows)
    for module in set(TABLES.values()) - expected.keys():
        source = (TESTS / f"{module}.py").read_text(encoding="utf-8")
        for statement in ast.parse(source).body:
            name = getattr(statement, "name", "")
            if name.startswith("test_"):
                expected[f"{module}.{name}"] = set()
    return expected


def tests_of(path):
    """Return `{test: cases}` of a file of results."""
    tests = {}
    for element in ElementTree.parse(path).iter("testcase"):
        test, case = test_and_case(element)
        tests.setdefault(test, set()).add(case)
    return tests


def test_and_case(element):
    """Return the test, with its module, and the case of an element."""
    name, _, case = element.get("name").partition("[")
    module = element.get("classname").removeprefix("tests.")
    return f"{module}.{name}", case.removesuffix("]")


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
    test, case = test_and_case(element)
    module, _, name = test.rpartition(".")
    words = name.removeprefix("test_").replace("_", " ")
    row = OF_OTHER_MODULES.get(test, {}).get(case)
    if row:
        return "Features of fit", row
    if test in REFUSALS:
        return None, None
    for heading, source in TABLES.items():
        if source == test:
            return heading, case
        if source == module:
            return heading, f"{words}: {case}" if case else words
    return None, None


def verdict(element):
    """Return "yes", why not, or that it does not apply, of a test case."""
    for outcome in ("failure", "error", "skipped"):
        reason = element.find(outcome)
        if reason is not None:
            message = reason.get("message").splitlines()[0]
            return ABSENT if message.startswith(ABSENT) else f"no: {message}"
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
