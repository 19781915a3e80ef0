"""Writes docs/support.md from what the conformance tests measured.

    python tests/conformance/support_table.py test-logs/support-*.xml

Each file is what `pytest --junitxml` wrote on one backend, named after it. Each
case of a test is a row, each test a table.
"""

import pathlib
import re
import sys
from xml.etree import ElementTree

HEADINGS = {
    "test_backbone": "KerasHub backbones",
    "test_other_model": "Keras models",
    "test_task": "Tasks",
}
INTRODUCTION = """# What works

Made by `make support-table` from the results of `tests/conformance`, not typed
by hand. "Yes" means: a compiled UEGR step perturbs the embedding and leaves the
padding alone, the sub-models differ, a few steps lower the loss, and a saved
model that is loaded again predicts the same (this last is not asked of the
tasks). All models are tiny and have random weights.
"""


def main():
    """Write the table."""
    target = pathlib.Path(__file__).parents[2] / "docs" / "support.md"
    target.write_text(document(sys.argv[1:]), encoding="utf-8")


def document(paths):
    """Return the Markdown of the results in the files `paths`."""
    backends = {
        pathlib.Path(path).stem.removeprefix("support-"): results(path)
        for path in sorted(paths)
    }
    tables = [
        f"## {heading}\n\n{table(name, backends)}"
        for name, heading in HEADINGS.items()
    ]
    return "\n\n".join([INTRODUCTION.rstrip(), *tables]) + "\n"


def results(path):
    """Return what became of each case of each test, `(test, case)`."""
    found = {}
    for element in ElementTree.parse(path).iter("testcase"):
        name = re.fullmatch(r"(\w+)\[(.*)\]", element.get("name"))
        if name and name[1] in HEADINGS:
            found[name[1], name[2]] = verdict(element)
    return found


def verdict(element):
    """Return "yes", or why not, of a test case."""
    for outcome in ("failure", "error", "skipped"):
        reason = element.find(outcome)
        if reason is not None:
            return f"no: {reason.get('message').splitlines()[0]}"
    return "yes"


def table(test, backends):
    """Return the Markdown table of a test."""
    lines = [
        f"| | {' | '.join(backends)} |",
        f"|---|{'---|' * len(backends)}",
    ]
    first = next(iter(backends.values()))
    for name, case in first:
        if name == test:
            cells = [found[name, case] for found in backends.values()]
            lines.append(f"| {case} | {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
