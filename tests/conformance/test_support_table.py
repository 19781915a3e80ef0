import re

import pytest

from tests.conformance import families, support_table
from tests.conformance.test_tasks import TASKS

CASES = [*families.BACKBONES, *families.OTHER_MODELS, *TASKS]
PUBLISHED = (support_table.ROOT / "docs" / "support.md").read_text()
TASK = 'classname="tests.conformance.test_tasks" name="test_task'
RESULTS = f"""<testsuites><testsuite>
<testcase {TASK}[binary]" />
<testcase {TASK}[two outputs]">
  <failure message="assert 1 == 2&#10;more">trace</failure>
</testcase>
<testcase classname="tests.test_fit_features" name="test_schedule[cosine]">
  <skipped message="this Keras has none" />
</testcase>
<testcase classname="tests.test_other" name="test_of_no_table" />
</testsuite></testsuites>
"""
ONE_MORE = '<testcase classname="tests.test_fit_features" name="test_clone" />'


@pytest.fixture
def tables(tmp_path):
    paths = [tmp_path / f"{name}.xml" for name in ("jax", "torch")]
    paths[0].write_text(RESULTS)
    paths[1].write_text(
        RESULTS.replace("</testsuite>", ONE_MORE + "</testsuite>")
    )
    return support_table.read(paths)


@pytest.mark.parametrize("case", CASES)
def test_published_table_has_every_case(case):
    assert f"\n| {case} | " in PUBLISHED


def test_table_shows_what_became_of_each_case(tables):
    lines = support_table.document(tables).splitlines()
    assert "| | jax | torch |" in lines
    assert "| binary | yes | yes |" in lines
    failed = "no: assert 1 == 2"
    assert f"| two outputs | {failed} | {failed} |" in lines
    skipped = "no: this Keras has none"
    assert f"| schedule: cosine | {skipped} | {skipped} |" in lines
    assert "| clone | does not apply | yes |" in lines
    assert not any("no table" in line for line in lines)


def test_summary_counts_what_works(tables):
    lines = support_table.summary(tables).splitlines()
    assert "| [Tasks](docs/support.md#tasks) | 1 of 2 | 1 of 2 |" in lines
    link = "[Features of fit](docs/support.md#features-of-fit)"
    assert f"| {link} | 0 of 1 | 1 of 2 |" in lines


def test_summary_in_the_readme_is_that_of_the_published_tables():
    readme = (support_table.ROOT / "README.md").read_text()
    found = readme.split(support_table.BEGIN)[1].split(support_table.END)[0]
    for section in PUBLISHED.split("\n## ")[1:]:
        heading, _, table = section.partition("\n\n")
        rows = [line[2:-2].split(" | ") for line in table.splitlines()[2:]]
        line = re.search(rf"\| \[{re.escape(heading)}\].*", found)[0]
        cells = line[2:-2].split(" | ")[1:]
        counts = [cell.split(" of ")[0] for cell in cells]
        columns = list(zip(*rows, strict=True))[1:]
        assert counts == [str(column.count("yes")) for column in columns]
