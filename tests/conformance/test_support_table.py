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
CLIPNORM = (
    "test_ten_steps_equal_the_twin_and_keep_unselected_bits"
    "[adamw_clipnorm-variable]"
)
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


def whole_results():
    """The cases that must be there, as `make test` names them."""
    tests = {
        "test_models.test_backbone": families.BACKBONES,
        "test_models.test_other_model": families.OTHER_MODELS,
        "test_tasks.test_task": TASKS,
    }
    lines = []
    for source, cases in tests.items():
        module, _, name = source.partition(".")
        lines += [
            f'<testcase classname="tests.conformance.{module}" '
            f'name="{name}[{case}]" />'
            for case in cases
        ]
    return f"<testsuites>{''.join(lines)}</testsuites>"


def write_results(folder, backends=("jax", "tensorflow", "torch")):
    paths = [folder / f"{backend}.xml" for backend in backends]
    for path in paths:
        path.write_text(whole_results())
    return [str(path) for path in paths]


def test_whole_results_lack_nothing(tmp_path):
    assert support_table.missing_results(write_results(tmp_path)) == []


@pytest.mark.parametrize("case", ["BERT", "Sequential, GRU", "regression"])
def test_results_of_a_part_are_refused(tmp_path, monkeypatch, case):
    paths = write_results(tmp_path)
    (tmp_path / "jax.xml").write_text(
        whole_results().replace(f"[{case}]", "[another]")
    )
    monkeypatch.setattr("sys.argv", ["support_table", *paths])
    monkeypatch.setattr(support_table, "ROOT", tmp_path)
    with pytest.raises(SystemExit, match=rf"Missing: {case} on jax$"):
        support_table.main()
    assert not (tmp_path / "docs").exists()


def test_results_of_a_backend_are_refused_alone(tmp_path, monkeypatch):
    paths = write_results(tmp_path, ["jax", "torch"])
    monkeypatch.setattr("sys.argv", ["support_table", *paths])
    monkeypatch.setattr(support_table, "ROOT", tmp_path)
    with pytest.raises(SystemExit, match="all backends.*Missing: tensorflow$"):
        support_table.main()


@pytest.mark.parametrize("source", support_table.OF_OTHER_MODULES)
def test_rows_of_other_modules_are_tests_that_exist(source):
    module, _, name = source.rpartition(".")
    path = support_table.ROOT / "tests" / f"{module.replace('.', '/')}.py"
    assert f"\ndef {name}(" in path.read_text()


def test_a_test_of_another_module_is_a_row_of_the_features_of_fit(tmp_path):
    path = tmp_path / "jax.xml"
    module = "tests.optimizers.test_saliency_masked_optimizer"
    path.write_text(
        f'<testsuite><testcase classname="{module}" name="{CLIPNORM}" />'
        f'<testcase classname="{module}" name="test_other" /></testsuite>'
    )
    tables = support_table.read([path])
    assert tables["Features of fit"] == {"clipnorm": {"jax": "yes"}}
