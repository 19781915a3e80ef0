"""Writes to docs/survival.md what became of training that was killed.

    KERAS_BACKEND=jax python -m tests.survival_log --kills 10

Each run replaces the section of its backend.
"""

import argparse
import pathlib
import sys

import keras

from tests import survival_process

PATH = pathlib.Path(__file__).parents[1] / "docs" / "survival.md"
INTRODUCTION = f"""# Training that is killed

Made by `make survival`, not typed by hand. A small model is trained in
processes that end by SIGKILL, at steps drawn at random. Each process goes on
from what the callback saved after the last whole epoch. An epoch has
{survival_process.STEPS_PER_EPOCH} steps; a kill at the last of them loses it.
In the end all weights, the optimizer with what it accumulated, the dropout
policy's feedback and the random state are compared with those of a process that
was left alone.
"""


def section(backend, outcomes):
    """Return the Markdown of a backend's outcomes."""
    lines = [f"## {backend}"]
    for way, outcome in outcomes.items():
        lines += [
            "",
            f"### {way}",
            "",
            "| kill | at step | resumed at epoch |",
            "|---|---|---|",
            *rows(outcome),
            "",
            f"Largest difference to the uninterrupted training: "
            f"{outcome.difference:g}",
        ]
    return "\n".join(lines) + "\n"


def rows(outcome):
    """Return a row for each kill; its step is counted over all epochs."""
    kills = zip(
        outcome.steps, outcome.began[:-1], outcome.began[1:], strict=True
    )
    return [
        f"| {kill} | {epoch * survival_process.STEPS_PER_EPOCH + after} "
        f"| {next_epoch} |"
        for kill, (after, epoch, next_epoch) in enumerate(kills, start=1)
    ]


def with_section(document, backend, text):
    """Return the document with the section of a backend added or replaced."""
    sections = {}
    for part in document.split("\n## ")[1:]:
        sections[part.partition("\n")[0]] = f"## {part.rstrip()}\n"
    sections[backend] = text
    ordered = [sections[name] for name in sorted(sections)]
    return "\n".join([INTRODUCTION, *ordered])


def main():
    """Train through kills, write the log, and fail if anything was lost."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=10)
    backend = keras.backend.backend()
    outcomes = survival_process.train_through_kills(parser.parse_args().kills)
    text = section(backend, outcomes)
    print(text)
    document = PATH.read_text(encoding="utf-8") if PATH.exists() else ""
    PATH.write_text(with_section(document, backend, text), encoding="utf-8")
    sys.exit(
        any(
            outcome.began != outcome.expected_epochs
            or outcome.difference > survival_process.TOLERANCE
            for outcome in outcomes.values()
        )
    )


if __name__ == "__main__":
    main()
