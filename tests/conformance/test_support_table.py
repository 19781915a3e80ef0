import pathlib

import pytest

from tests.conformance import families, support_table
from tests.conformance.test_tasks import TASKS

CASES = [*families.BACKBONES, *families.OTHER_MODELS, *TASKS]
RESULTS = """<testsuites><testsuite>
<testcase name="test_task[binary]" />
<testcase name="test_task[two outputs]">
  <failure message="assert 1 == 2&#10;more">trace</failure>
</testcase>
<testcase name="test_other_model[LSTM]">
  <skipped message="this Keras has none" />
</testcase>
<testcase name="test_of_the_table" />
</testsuite></testsuites>
"""


@pytest.mark.parametrize("case", CASES)
def test_published_table_has_every_case(case):
    docs = pathlib.Path(__file__).parents[2] / "docs"
    assert f"\n| {case} | " in (docs / "support.md").read_text()


def test_table_shows_what_became_of_each_case(tmp_path):
    paths = [tmp_path / f"support-{name}.xml" for name in ("jax", "torch")]
    for path in paths:
        path.write_text(RESULTS)
    lines = support_table.document(paths).splitlines()
    assert "| | jax | torch |" in lines
    assert "| binary | yes | yes |" in lines
    failed = "no: assert 1 == 2"
    assert f"| two outputs | {failed} | {failed} |" in lines
    skipped = "no: this Keras has none"
    assert f"| LSTM | {skipped} | {skipped} |" in lines
