import re

import pytest

from tests import survival_log
from tests.survival_process import Outcome

OUTCOMES = {"ModelCheckpoint": Outcome([6, 4, 1], [0, 1, 1, 1], 0.0)}


def test_section_counts_steps_over_all_epochs():
    lines = survival_log.section("jax", OUTCOMES).splitlines()
    assert lines[0] == "## jax"
    assert lines[2] == "### ModelCheckpoint"
    assert lines[6:9] == ["| 1 | 6 | 1 |", "| 2 | 8 | 1 |", "| 3 | 5 | 1 |"]
    assert lines[-1].endswith("uninterrupted training: 0")


def test_a_backend_replaces_its_own_section_alone():
    document = survival_log.with_section("", "torch", "## torch\n\nold\n")
    document = survival_log.with_section(document, "jax", "## jax\n\nother\n")
    document = survival_log.with_section(document, "torch", "## torch\n\nnew\n")
    expected = "\n## jax\n\nother\n\n## torch\n\nnew\n"
    assert document == survival_log.INTRODUCTION + expected


def test_no_finished_epoch_is_expected_to_be_lost():
    assert OUTCOMES["ModelCheckpoint"].expected_epochs == [0, 1, 1, 1]


@pytest.mark.parametrize("backend", ["tensorflow", "jax", "torch"])
def test_published_log_has_ten_kills_and_no_loss(backend):
    published = survival_log.PATH.read_text(encoding="utf-8")
    section = published.partition(f"\n## {backend}\n")[2].partition("\n## ")[0]
    ways = section.split("### ")[1:]
    assert len(ways) == 2
    for way in ways:
        assert len(re.findall(r"^\| \d+ \|", way, re.M)) == 10
        difference = float(way.split()[-1])
        assert difference <= (1e-6 if backend == "torch" else 0)
