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
<testcase classname="tests.test_fit_features" name="test_processes">
  <skipped message="does not apply: one process" />
</testcase>
<testcase classname="tests.test_other" name="test_of_no_table" />
<testcase classname="tests.test_fit_features"
  name="test_several_steps_in_one_execution_are_refused" />
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
    assert "| processes | does not apply | does not apply |" in lines
    assert not any("no table" in line for line in lines)
    assert not any("refused" in line for line in lines)


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
        columns = list(zip(*rows, strict=True))[1:]
        assert line[2:-2].split(" | ")[1:] == [
            f"{column.count('yes')} of "
            f"{len(column) - column.count('does not apply')}"
            for column in columns
        ]


def whole_results():
    """The cases that must be there, as `make test` names them."""
    lines = []
    for test, cases in support_table.expected_tests().items():
        module, _, name = test.rpartition(".")
        lines += [
            f'<testcase classname="tests.{module}" '
            f'name="{name}{f"[{case}]" * bool(case)}" />\n'
            for case in cases or {""}
        ]
    return f"<testsuites>{''.join(lines)}</testsuites>"


def write_results(folder, backends=support_table.BACKENDS):
    paths = [folder / f"{backend}.xml" for backend in backends]
    for path in paths:
        path.parent.mkdir(exist_ok=True)
        path.write_text(whole_results())
    return [str(path) for path in paths]


def test_every_case_and_every_test_of_the_tables_is_expected():
    expected = support_table.expected_tests()
    named = {case for cases in expected.values() for case in cases}
    assert named > set(CASES)
    features = "test_fit_features.test_train_on_batch_is_a_step_of_fit"
    assert features in expected
    assert expected.keys() > set(support_table.OF_OTHER_MODULES)
    assert expected.keys() > support_table.REFUSALS | support_table.OWN_CASES


def test_whole_results_lack_nothing(tmp_path):
    assert support_table.missing_results(write_results(tmp_path)) == []


OF_A_PART = {
    "a backbone": ("test_backbone[BERT]", "test_backbone[another]"),
    "a model": (
        "test_other_model[Sequential, GRU]",
        "test_other_model[another]",
    ),
    "a task": ("test_task[regression]", "test_task[another]"),
    "a test": ("test_a_clone_trains_like_the_original", "test_another"),
    "a test of another module": (
        "test_sample_weight_class_weight_and_validation_split",
        "test_another",
    ),
    "a case of another module": (CLIPNORM, CLIPNORM.replace("adamw", "sgd")),
}


@pytest.mark.parametrize("part", OF_A_PART)
def test_results_of_a_part_are_refused(tmp_path, monkeypatch, part):
    paths = write_results(tmp_path)
    name, other = OF_A_PART[part]
    results = whole_results()
    assert f'name="{name}"' in results
    (tmp_path / "jax.xml").write_text(results.replace(name, other))
    monkeypatch.setattr("sys.argv", ["support_table", *paths])
    monkeypatch.setattr(support_table, "ROOT", tmp_path)
    missing = rf"Missing: .*\.{re.escape(name)} on jax"
    with pytest.raises(SystemExit, match=missing):
        support_table.main()
    assert not (tmp_path / "docs").exists()


def test_a_case_of_one_backend_is_missing_on_the_others(tmp_path):
    paths = write_results(tmp_path)
    own = "test_step_on_several_devices_is_the_step_on_one"
    (tmp_path / "jax.xml").write_text(
        whole_results()
        .replace(f'name="{own}"', f'name="{own}[data_parallel]"')
        .replace("_like_the_original", "_like_the_original[quickly]")
    )
    test = "test_fit_features.test_a_clone_trains_like_the_original"
    assert support_table.missing_results(paths) == [
        f"{test}[quickly] on tensorflow",
        f"{test} on jax",
        f"{test}[quickly] on torch",
    ]


@pytest.mark.parametrize(
    "names",
    [
        ["jax", "torch"],
        ["tensorflow", "jax", "torch", "old/jax"],
        ["tensorflow", "jax", "torch", "other"],
    ],
    ids=["too few", "one twice", "another"],
)
def test_there_is_one_file_for_each_backend(tmp_path, monkeypatch, names):
    paths = write_results(tmp_path, names)
    monkeypatch.setattr("sys.argv", ["support_table", *paths])
    monkeypatch.setattr(support_table, "ROOT", tmp_path)
    message = "for each of tensorflow, jax, torch, .* Received: .*"
    with pytest.raises(SystemExit, match=message + re.escape(paths[-1])):
        support_table.main()
    assert not (tmp_path / "docs").exists()


def test_does_not_apply_is_explained(tables):
    assert '"Does not apply" means' in support_table.document(tables)


@pytest.mark.parametrize(
    "source",
    [
        *support_table.OF_OTHER_MODULES,
        *sorted(support_table.REFUSALS | support_table.OWN_CASES),
    ],
)
def test_named_tests_exist(source):
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
