import importlib.util
import random

import numpy as np
import pytest

from keras_uegr.evaluation import add_noise

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("textattack") is None,
    reason="TextAttack is not installed: see the README",
)
TEXTS = ["this film was really wonderful", "what a boring story it is"] * 10


def words_of(texts):
    return [text.split() for text in texts]


@pytest.mark.slow
@pytest.mark.parametrize(
    "kind", ["letter_swap", "letter_deletion", "keyboard_typo", "word_drop"]
)
def test_rate_decides_how_much_is_changed(kind):
    assert add_noise(TEXTS, kind, rate=0.0) == TEXTS
    little, much = (add_noise(TEXTS, kind, rate) for rate in (0.2, 0.9))
    kept = [
        sum(
            word in changed
            for before, changed in zip(
                words_of(TEXTS), words_of(noisy), strict=True
            )
            for word in before
        )
        for noisy in (TEXTS, little, much)
    ]
    assert kept[0] > kept[1] > kept[2]
    total = kept[0]
    # 110 words, so four standard deviations are about 17.
    assert abs(kept[1] - 0.8 * total) < 20


@pytest.mark.slow
def test_letters_swap_inside_their_word():
    for before, after in zip(
        words_of(TEXTS),
        words_of(add_noise(TEXTS, "letter_swap", 1.0)),
        strict=True,
    ):
        for old, new in zip(before, after, strict=True):
            assert sorted(old) == sorted(new)
            assert sum(a != b for a, b in zip(old, new, strict=True)) in (0, 2)


def test_a_letter_is_deleted_or_a_key_is_missed():
    before = TEXTS[0].split()
    deleted = add_noise(TEXTS, "letter_deletion", 1.0)[0].split()
    assert [len(x) for x in deleted] == [len(x) - 1 for x in before]
    typed = add_noise(TEXTS, "keyboard_typo", 1.0)[0].split()
    for old, new in zip(before, typed, strict=True):
        assert sum(a != b for a, b in zip(old, new, strict=True)) == 1


@pytest.mark.parametrize(
    "kind", ["letter_swap", "letter_deletion", "keyboard_typo"]
)
def test_each_word_changes_that_can(kind):
    before = ["too good a1234567 aaab", "I need 24 x ssss"] * 10
    kept = {"letter_swap": {"ssss"}, "keyboard_typo": {"24"}}.get(kind, set())
    kept |= {"I", "x"}
    for old, new in zip(
        words_of(before), words_of(add_noise(before, kind, 1.0)), strict=True
    ):
        same = {a for a, b in zip(old, new, strict=True) if a == b}
        assert same == kept & set(old)


def test_words_drop_but_the_last_one():
    assert all(len(x.split()) == 1 for x in add_noise(TEXTS, "word_drop", 1.0))
    assert add_noise(["", "film"], "word_drop", 1.0) == ["", "film"]


def test_the_seed_decides_and_nothing_else_is_drawn():
    random.seed(3)
    np.random.seed(3)
    states = random.getstate(), np.random.get_state()[1].copy()
    first, again, other = (
        add_noise(TEXTS, "keyboard_typo", 0.5, seed) for seed in (1, 1, 2)
    )
    assert first == again
    assert first != other
    assert random.getstate() == states[0]
    np.testing.assert_array_equal(np.random.get_state()[1], states[1])
    assert add_noise(TEXTS[:3], "keyboard_typo", 0.5, 1) == first[:3]
    assert add_noise(TEXTS, "keyboard_typo", 0.5, np.int64(1)) == first
    assert add_noise(iter(TEXTS), "keyboard_typo", 0.5, 1) == first


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((TEXTS, "static"), "`kind` must be one of .*kind=static"),
        ((TEXTS, "word_drop", 1.5), "`rate` must be a number .*rate=1.5"),
        (("a film", "word_drop"), "`texts` must be a list.*texts=a film"),
        (([("a", "b")], "word_drop"), r"Of pairs, .*texts with \('a', 'b'\)"),
        (((["a"], ["b"]), "word_drop"), r"Of pairs, .*texts with \['a'\]"),
        (({"part": ["a"]}, "word_drop"), "must be a list of .*texts={'part'"),
        ((np.array([["a"]]), "word_drop"), "must be a list of strings"),
        ((["a", None], "word_drop"), "list of strings.*texts with None"),
        ((["a <SPLIT> b"], "word_drop"), "must not hold <SPLIT>.*SPLIT> b"),
        ((TEXTS, "word_drop", 0.1, 0.5), "`seed` must be .*seed=0.5"),
    ],
)
def test_argument_that_does_not_fit_is_told(arguments, message):
    with pytest.raises(ValueError, match=message):
        add_noise(*arguments)
