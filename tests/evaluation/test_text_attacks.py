import importlib.util
import json
import pathlib
import sys
import types

import keras
import numpy as np
import pandas
import pytest
from keras import ops

import keras_uegr
from keras_uegr import interception, serving
from keras_uegr.evaluation import (
    TextAttackModelWrapper,
    attack_recipes,
    attack_texts,
    gradient_flips,
    model_wrapper,
    text_attacks,
    text_resources,
    textattack_import,
)
from tests.backbones import (
    tiny_bert,
    tiny_gpt2_preprocessor,
    tiny_llama,
    tiny_texts,
)
from tests.pooled_model import pooled_model

pytestmark = pytest.mark.slow

needs_textattack = pytest.mark.skipif(
    importlib.util.find_spec("textattack") is None,
    reason="TextAttack is not installed: see the README",
)
EXAMPLES = 6

# A WordNet of two words: `film` and `movie` are one synset.
GLOSS = "a moving picture"
DATA = f"00000000 10 n 02 film 0 movie 0 000 | {GLOSS}  \n"


def uegr(inner=None):
    model = keras_uegr.UEGRModel(inner or tiny_bert())
    model.compile(
        keras.optimizers.SGD(0.1),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    )
    return model


def softmax(logits):
    exponentials = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return exponentials / exponentials.sum(axis=-1, keepdims=True)


def predicted(model, texts):
    logits = np.asarray(model.predict(texts, verbose=0), "float64")
    return logits.argmax(axis=-1), softmax(logits)


@pytest.fixture
def wordnet(tmp_path):
    for name in ("noun", "verb", "adj", "adv"):
        (tmp_path / f"{name}.exc").write_text("")
        (tmp_path / f"data.{name}").write_text("")
        (tmp_path / f"index.{name}").write_text("")
    (tmp_path / "data.noun").write_text(DATA)
    lines = [f"{word} n 1 0 1 0 00000000  \n" for word in ("film", "movie")]
    (tmp_path / "index.noun").write_text("".join(lines))
    return tmp_path


@needs_textattack
@pytest.mark.parametrize("kind", ["uegr", "task", "probabilities"])
def test_probabilities_are_those_of_predict(kind):
    activation = "softmax" if kind == "probabilities" else None
    model = tiny_bert(activation=activation)
    if kind == "uegr":
        model = uegr(model)
    texts, _ = tiny_texts(5)
    outputs = np.asarray(model.predict(texts, verbose=0), "float64")
    expected = outputs if activation else softmax(outputs)
    rows = TextAttackModelWrapper(model, batch_size=4)(texts)
    assert rows.dtype == np.float64
    np.testing.assert_allclose(rows, expected, atol=1e-5)
    np.testing.assert_allclose(rows.sum(axis=-1), 1.0, atol=1e-12)


def test_one_output_becomes_two_classes():
    rows = model_wrapper.probabilities(np.array([[0.0], [2.0]]), True)
    np.testing.assert_allclose(rows[:, 1], [0.5, 1 / (1 + np.exp(-2.0))])
    rows = model_wrapper.probabilities(np.array([[0.25]]), False)
    np.testing.assert_allclose(rows, [[0.75, 0.25]])


def test_one_output_has_the_loss_of_the_class_that_is_predicted():
    for outputs, from_logits, expected in (
        ([[2.0], [-1.0]], True, np.log1p(np.exp([-2.0, -1.0]))),
        ([[0.75], [0.1]], False, -np.log([0.75, 0.9])),
    ):
        losses = model_wrapper._predicted_class_losses(
            ops.convert_to_tensor(outputs), from_logits
        )
        np.testing.assert_allclose(
            ops.convert_to_numpy(losses), expected, rtol=1e-5
        )


def one_output(logit, loss):
    """A model that answers every text with `logit`."""
    inner = tiny_bert(num_classes=1)
    kernel, bias = inner.weights[-2:]
    kernel.assign(np.zeros(kernel.shape))
    bias.assign([logit])
    model = keras_uegr.UEGRModel(inner)
    model.compile("sgd", loss)
    return model


def own_loss(y, outputs):
    return ops.mean(ops.square(ops.cast(y, outputs.dtype) - outputs))


@needs_textattack
@pytest.mark.parametrize(
    ("loss", "logit", "expected"),
    [
        (keras.losses.BinaryCrossentropy(from_logits=True), 0.5, 0.6225),
        (keras.losses.BinaryCrossentropy(), 0.5, 0.5),
        ("binary_crossentropy", 0.5, 0.5),
        (["binary_crossentropy"], 0.5, 0.5),
        (own_loss, 2.0, 0.8808),
        (own_loss, -2.0, 0.1192),
    ],
)
def test_the_loss_tells_what_one_output_is_or_its_value(loss, logit, expected):
    rows = TextAttackModelWrapper(one_output(logit, loss))(["a film"])
    np.testing.assert_allclose(rows, [[1 - expected, expected]], atol=1e-4)


@needs_textattack
def test_one_output_of_an_unknown_loss_is_not_guessed():
    model = one_output(0.25, own_loss)
    with pytest.raises(ValueError, match="`from_logits` must be .*own_loss"):
        TextAttackModelWrapper(model)
    for from_logits, label in ((True, 1), (False, 0)):
        result = attack_texts(
            model, ["a film"], [1], "pruthi", from_logits=from_logits
        )
        assert result.examples[0].original_prediction == label


@needs_textattack
@pytest.mark.parametrize("value", [0.5, -1.0])
def test_one_output_of_a_saved_model_is_not_guessed(value, monkeypatch):
    def load(path):
        return lambda texts: np.full((len(texts), 1), value)

    monkeypatch.setattr(serving, "load_text_function", load)
    if value < 0:
        assert TextAttackModelWrapper("folder").from_logits
        return
    with pytest.raises(ValueError, match="`from_logits` must be .*loss=None"):
        TextAttackModelWrapper("folder")
    rows = TextAttackModelWrapper("folder", from_logits=False)(["a film"])
    np.testing.assert_allclose(rows, [[0.5, 0.5]])


@needs_textattack
@pytest.mark.parametrize(
    "loss",
    ["mse", keras.losses.MeanAbsoluteError(), keras.losses.mean_squared_error],
)
def test_a_regression_is_told(loss):
    model = one_output(0.5, loss)
    with pytest.raises(ValueError, match="`model` must be a classifier"):
        attack_texts(model, ["a film"], [1])


@needs_textattack
def test_a_loss_of_regression_may_train_a_classifier():
    model = keras_uegr.UEGRModel(
        tiny_bert(activation="softmax"), output_kind="softmax"
    )
    model.compile("sgd", "mse")
    texts, _ = tiny_texts(2)
    expected = model.predict(texts, verbose=0)
    rows = TextAttackModelWrapper(model)(texts)
    np.testing.assert_allclose(rows, expected, atol=1e-5)


@needs_textattack
@pytest.mark.parametrize("several", [True, False])
def test_outputs_that_are_no_classes_are_told(several):
    inner = tiny_bert()
    outputs = inner(inner.input)
    outputs = {"one": outputs, "other": outputs} if several else outputs[:, 0]
    model = keras_uegr.UEGRModel(
        keras.Model(inner.input, outputs),
        embedding="token_embedding",
        preprocessor=inner.preprocessor,
    )
    with pytest.raises(ValueError, match="must have one output, of shape"):
        TextAttackModelWrapper(model)


@needs_textattack
@pytest.mark.parametrize(
    ("texts", "received"),
    [
        ("a delight", "texts='a delight'"),
        ([], r"texts=\[\]"),
        (None, "texts=None"),
        (["a film", None], r"texts=\[None\]"),
        ([b"a film"], r"texts=\[b'a film'\]"),
        ([["premise", "hypothesis"]], r"texts=\[\['premise'"),
        ([("premise", 3)], r"texts=\[\('premise', 3\)\]"),
        ({"premise": "a film"}, "texts={'premise'"),
        (np.array([["premise", "hypothesis"]]), r"texts=array\("),
    ],
)
def test_the_wrapper_takes_texts_alone(texts, received):
    wrapper = TextAttackModelWrapper(tiny_bert())
    message = "`texts` must be a list of strings, or of tuples .*"
    with pytest.raises(ValueError, match=message + received):
        wrapper(texts)


@needs_textattack
def test_outputs_that_are_not_finite_are_told(monkeypatch):
    def load(path):
        return lambda texts: np.array(
            [[0.5, np.inf if text == "a film" else 2.0] for text in texts]
        )

    monkeypatch.setattr(serving, "load_text_function", load)
    wrapper = TextAttackModelWrapper("folder")
    assert wrapper(["a story"]).shape == (1, 2)
    with pytest.raises(ValueError, match=r"must be finite.*\[\[0.5 inf\]\]"):
        wrapper(["a story", "a film"])


@needs_textattack
def test_a_model_without_an_answer_to_an_empty_text_is_attacked():
    """Keras' mean over the tokens of a text that has none is NaN."""

    def tokenize(texts):
        # Letters by their place in the alphabet, and 0 for padding.
        rows = [[ord(x) % 27 for x in text[:7]] for text in texts]
        return np.array([row + [0] * (7 - len(row)) for row in rows], "int32")

    model = keras_uegr.UEGRModel(
        pooled_model(vocabulary=27, classes=2, mask_zero=True),
        preprocessor=tokenize,
    )
    texts = ["a film", "fine"]
    labels, clean = predicted(model, texts)
    wrapper = TextAttackModelWrapper(model)
    assert wrapper.from_logits
    np.testing.assert_allclose(wrapper(texts), clean, atol=1e-6)
    result = attack_texts(model, [*texts, ""], [*labels, 0])
    outcomes = [x.outcome for x in result]
    assert "not finite" not in outcomes[:2]
    assert outcomes[2] == "not finite"
    model.model.weights[-1].assign([np.nan, 0.0])
    with pytest.raises(ValueError, match="must be finite; it may have div"):
        TextAttackModelWrapper(model)


@needs_textattack
@pytest.mark.parametrize("parts", [1, 2])
def test_a_text_without_an_answer_is_wrong_and_loses_no_other(
    parts, monkeypatch
):
    known = set(model_wrapper._PROBES[1].split()) | {
        "the",
        "film",
        "was",
        "fine",
    }

    def answer(text):
        words = " ".join([text] if parts == 1 else text).split()
        return [0.0, 2.0] if known >= {*words} else [np.nan, 0.0]

    def load(path):
        return lambda texts: np.array([answer(text) for text in texts])

    monkeypatch.setattr(serving, "load_text_function", load)
    texts = ["the film", "endless film", "film was fine"]
    if parts == 2:
        texts = [(text, "a text") for text in texts]
    result = attack_texts("folder", texts, [1, 1, 0], from_logits=True)
    changed, unanswered, wrong = result
    outcomes = [x.outcome for x in result]
    assert outcomes == ["not finite", "not finite", "skipped"]
    assert changed.perturbed_text != changed.original_text == texts[0]
    assert (changed.original_prediction, changed.words_changed) == (1, 1)
    assert changed.original_probability == pytest.approx(0.880797)
    assert changed.queries > 1
    assert unanswered.original_text == unanswered.perturbed_text == texts[1]
    assert (unanswered.original_prediction, unanswered.queries) == (None, 1)
    assert wrong.original_prediction == 1
    assert (result.clean_accuracy, result.robust_accuracy) == (1 / 3, 0)
    assert result.right_within(0) == [True, False, False]
    examples = json.loads(result.to_json())["examples"]
    assert [x["perturbed_probability"] is None for x in examples] == [
        True,
        True,
        False,
    ]


@needs_textattack
def test_the_gradient_is_that_of_one_text():
    wrapper = TextAttackModelWrapper(tiny_bert())
    with pytest.raises(ValueError, match="must be a list of strings.*None"):
        wrapper.get_grad(None)


@needs_textattack
def test_gradient_agrees_with_finite_differences():
    model = uegr()
    text = "this film is really great"
    found = TextAttackModelWrapper(model).get_grad(text)
    tokens = model.preprocessor([text])
    np.testing.assert_array_equal(
        found["ids"], ops.convert_to_numpy(tokens["token_ids"])[0]
    )
    winner = predicted(model, [text])[0][0]

    def loss(offset):
        with interception.intercept_embedding(
            model.embedding, lambda x: x + ops.cast(offset, x.dtype)
        ):
            logits = model.model(tokens, training=False)
        logits = np.asarray(ops.convert_to_numpy(logits), "float64")
        return -np.log(softmax(logits)[0, winner])

    rng = np.random.default_rng(0)
    assert np.abs(found["gradient"]).max() > 1e-2
    for _ in range(4):
        direction = rng.normal(size=found["gradient"].shape)
        direction /= np.linalg.norm(direction)
        step = 1e-2 * direction[None]
        difference = (loss(step) - loss(-step)) / 2e-2
        expected = (found["gradient"] * direction).sum()
        np.testing.assert_allclose(difference, expected, atol=2e-3)


@needs_textattack
@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16"])
def test_gradient_of_half_precision_has_no_scale(policy):
    text = "this film is really great"
    expected = TextAttackModelWrapper(uegr()).get_grad(text)["gradient"]
    keras.config.set_dtype_policy(policy)
    half = tiny_bert()
    keras.config.set_dtype_policy("float32")
    gradient = TextAttackModelWrapper(uegr(half)).get_grad(text)["gradient"]
    tolerance = 0.05 * np.abs(expected).max()
    np.testing.assert_allclose(
        np.asarray(gradient, "float32"), expected, atol=tolerance
    )


@needs_textattack
@pytest.mark.parametrize(
    "attack", ["deepwordbug", "pruthi", "input_reduction", "hotflip"]
)
def test_offline_attacks(attack):
    model = uegr()
    texts, labels = tiny_texts(EXAMPLES)
    result = attack_texts(model, texts, labels, attack)
    classes, probabilities = predicted(model, texts)
    assert [x.original_prediction for x in result] == classes.tolist()
    np.testing.assert_allclose(
        [x.original_probability for x in result],
        probabilities[np.arange(EXAMPLES), labels],
        atol=1e-5,
    )
    after, _ = predicted(model, [x.perturbed_text for x in result])
    assert [x.perturbed_prediction for x in result] == after.tolist()
    assert result.clean_accuracy == np.mean(classes == labels)
    assert result.robust_accuracy == np.mean(after == labels)
    for example in result:
        skipped = example.original_prediction != example.label
        assert (example.outcome == "skipped") == skipped
        assert not skipped or example.perturbed_text == example.original_text
    attacked = [x.queries for x in result if x.outcome != "skipped"]
    assert result.mean_queries == np.mean(attacked)


@needs_textattack
@pytest.mark.parametrize("attack", ["deepwordbug", "pruthi", "hotflip"])
def test_a_text_without_words_is_attacked_in_vain(attack):
    model = uegr()
    texts = ["", "!!!"]
    labels = predicted(model, texts)[0]
    for example in attack_texts(model, texts, labels, attack):
        assert example.outcome == "failed"
        assert example.perturbed_text == example.original_text


@needs_textattack
@pytest.mark.parametrize("attack", ["deepwordbug", "hotflip"])
def test_attack_lowers_the_confidence(attack):
    texts, _ = tiny_texts(EXAMPLES)
    model = uegr(tiny_bert(num_layers=2))
    labels = predicted(model, texts)[0]
    result = attack_texts(model, texts, labels, attack)
    assert result.clean_accuracy == 1
    assert all(x.perturbed_probability < x.original_probability for x in result)


@needs_textattack
def test_pwws_takes_synonyms_from_a_local_wordnet(wordnet):
    model = uegr()
    texts = ["the film is great", "the story is great"]
    labels = predicted(model, texts)[0]
    result = attack_texts(model, texts, labels, "pwws", wordnet_folder=wordnet)
    film, story = result
    # A synonym is kept only if it helps, but it is always asked about.
    assert film.perturbed_text in (texts[0], "the movie is great")
    assert story.perturbed_text == story.original_text
    assert film.queries > story.queries


@needs_textattack
def test_hotflip_flips_to_words_of_the_vocabulary():
    model = uegr()
    texts, _ = tiny_texts(EXAMPLES)
    labels = predicted(model, texts)[0]
    result = attack_texts(model, texts, labels, "hotflip")
    vocabulary = set(model.preprocessor.tokenizer.get_vocabulary())
    for example in result:
        before = example.original_text.split()
        after = example.perturbed_text.split()
        changed = [b for a, b in zip(before, after, strict=True) if a != b]
        assert len(changed) <= 2
        assert set(changed) <= vocabulary


@needs_textattack
def test_flips_are_those_of_the_highest_rise():
    wrapper = TextAttackModelWrapper(tiny_bert())
    tokenizer = wrapper.tokenizer
    words = ["this", "film", "is", "really", "great"]
    shared = textattack_import.import_textattack("shared")
    text = shared.AttackedText(" ".join(words))
    found, table = wrapper.get_grad(text.text), wrapper.embeddings
    rises = {}
    for index, word in enumerate(words):
        for other in gradient_flips._whole_words(tokenizer).values():
            # A start token stands before the words.
            move = table[tokenizer.token_to_id(other)]
            move = move - table[tokenizer.token_to_id(word)]
            rises[index, other] = move @ found["gradient"][index + 1]
    expected = sorted(
        (key for key in rises if words[key[0]] != key[1]), key=rises.get
    )[:-6:-1]
    flips = gradient_flips.gradient_flips(wrapper, top_n=5)
    flipped = flips._get_transformations(text, set(range(len(words))))
    assert [x.text for x in flipped] == [
        " ".join([*words[:index], other, *words[index + 1 :]])
        for index, other in expected
    ]


def test_hotflip_needs_words_that_are_tokens():
    wrapper = types.SimpleNamespace(
        tokenizer=tiny_gpt2_preprocessor().tokenizer
    )
    with pytest.raises(ValueError, match="WordPiece.*tokenizer=GPT2Tokenizer"):
        gradient_flips.gradient_flips(wrapper)


def test_words_are_found_at_their_tokens():
    tokenizer = tiny_bert().preprocessor.tokenizer
    ids = [2, *tokenizer(["film is film"])[0], 3, 0, 0]
    positions = gradient_flips.word_positions(
        [["film", "is", "film"]], np.array([int(x) for x in ids]), tokenizer
    )
    assert positions == {0: 1, 1: 2, 2: 3}


def test_a_word_that_was_cut_off_is_not_found_in_the_next_part():
    preprocessor = tiny_bert(sequence_length=9).preprocessor
    parts = ["a film is very good", "the very film good"]
    tokens, _ = preprocessor(tuple([part] for part in parts), y=[0])
    ids = ops.convert_to_numpy(tokens["token_ids"])[0]
    tokenizer = preprocessor.tokenizer
    words = [part.split() for part in parts]
    # [CLS] a film is [SEP] the very film [SEP]
    expected = {0: 1, 1: 2, 2: 3, 5: 5, 6: 6, 7: 7}
    found = gradient_flips.word_positions(words, ids, tokenizer)
    assert found == expected
    # As where a text of two parts is one to the model.
    together = ids[ids != tokenizer.sep_token_id]
    kept = [words[0][:3], words[1][:3]]
    found = gradient_flips.word_positions(kept, together, tokenizer)
    assert found == {0: 1, 1: 2, 2: 3, 3: 4, 4: 5, 5: 6}


@needs_textattack
def test_seed_decides_the_result():
    model = uegr()
    texts, _ = tiny_texts(EXAMPLES)
    labels = predicted(model, texts)[0]
    np.random.seed(1)
    state = np.random.get_state()[1].copy()
    first, again, other = (
        attack_texts(model, texts, labels, sample_size=4, seed=seed)
        for seed in (0, 0, 3)
    )
    assert first == again
    assert first != other
    assert len(first) == 4
    np.testing.assert_array_equal(np.random.get_state()[1], state)
    every = {x.index: x for x in attack_texts(model, texts, labels)}
    assert all(x.perturbed_text == every[x.index].perturbed_text for x in first)


def tiny_pairs():
    texts, _ = tiny_texts(2 * EXAMPLES)
    return list(zip(texts[::2], texts[1::2], strict=True))


@needs_textattack
def test_probabilities_of_pairs_are_those_of_predict():
    model, pairs = uegr(), tiny_pairs()
    wrapper = TextAttackModelWrapper(model, batch_size=4)
    columns = tuple(map(list, zip(*pairs, strict=True)))
    expected = predicted(model, columns)[1]
    np.testing.assert_allclose(wrapper(pairs), expected, atol=1e-6)
    # Not those of one text that looks like the pair.
    assert abs(wrapper([str(pair) for pair in pairs]) - expected).max() > 1e-4


@needs_textattack
@pytest.mark.parametrize("attack", ["deepwordbug", "hotflip"])
def test_pairs_are_attacked_in_both_parts(attack):
    model, pairs = uegr(), tiny_pairs()
    wrapper = TextAttackModelWrapper(model)
    labels = wrapper(pairs).argmax(axis=-1)
    result = attack_texts(model, pairs, labels, attack)
    assert [x.original_text for x in result] == pairs
    changed = np.array(
        [
            [a != b for a, b in zip(*texts, strict=True)]
            for texts in ((x.original_text, x.perturbed_text) for x in result)
        ]
    )
    assert changed.any(axis=0).all()
    after = wrapper([x.perturbed_text for x in result])
    after = after[np.arange(len(labels)), labels]
    np.testing.assert_allclose(
        after, [x.perturbed_probability for x in result], atol=1e-6
    )
    assert after.mean() < np.mean([x.original_probability for x in result])


@needs_textattack
@pytest.mark.parametrize("attack", ["deepwordbug", "hotflip"])
def test_pairs_of_ones_own_preprocessor_are_attacked(attack):
    expected = uegr()
    preprocessor = expected.preprocessor

    class Pairs:
        tokenizer = preprocessor.tokenizer

        def __call__(self, x):
            first, second = x
            assert isinstance(first[0], str)
            return preprocessor((first, second), y=None, sample_weight=None)

    model = keras_uegr.UEGRModel(
        tiny_bert(preprocessor=False), preprocessor=Pairs()
    )
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(True))
    pairs = tiny_pairs()
    labels = TextAttackModelWrapper(model, parts=2)(pairs).argmax(axis=-1)
    assert attack_texts(model, pairs, labels, attack) == attack_texts(
        expected, pairs, labels, attack
    )
    with pytest.raises(ValueError, match="`parts` must be .*parts=0"):
        TextAttackModelWrapper(model, parts=0)


@needs_textattack
@pytest.mark.parametrize("pairs", [False, True])
@pytest.mark.parametrize("first", [0, EXAMPLES])
def test_a_series_is_read_by_position(first, pairs):
    model = uegr()
    texts = tiny_pairs() if pairs else tiny_texts(EXAMPLES)[0]
    labels = TextAttackModelWrapper(model)(texts).argmax(axis=-1)
    labels[0] = 1 - labels[0]
    index = np.arange(first, first + EXAMPLES)[::-1]
    result = attack_texts(
        model,
        pandas.Series(texts, index),
        pandas.Series(labels, index),
        sample_size=3,
    )
    assert result == attack_texts(model, texts, labels, sample_size=3)


@needs_textattack
def test_integers_of_numpy_are_integers():
    model = uegr()
    texts, labels = tiny_texts(EXAMPLES)
    settings = {"sample_size": 3, "query_budget": 9, "seed": 2, "batch_size": 4}
    expected = attack_texts(model, texts, labels, **settings)
    settings = {name: np.int64(value) for name, value in settings.items()}
    result = attack_texts(model, texts, labels, **settings)
    assert result == expected
    assert result.to_json() == expected.to_json()


@needs_textattack
def test_words_that_are_removed_have_changed():
    model = uegr()
    texts, _ = tiny_texts(EXAMPLES)
    labels = predicted(model, texts)[0]
    result = attack_texts(model, texts, labels, "input_reduction")
    removed = [
        len(x.original_text.split()) - len(x.perturbed_text.split())
        for x in result
    ]
    assert [x.words_changed for x in result] == removed
    assert max(removed) > 2


@needs_textattack
def test_query_budget_is_kept():
    model = uegr()
    texts, _ = tiny_texts(EXAMPLES)
    labels = predicted(model, texts)[0]
    free = attack_texts(model, texts, labels)
    tight = attack_texts(model, texts, labels, query_budget=3)
    assert max(x.queries for x in free) > 3
    assert max(x.queries for x in tight) <= 3


@needs_textattack
def test_every_example_is_kept():
    texts, labels = tiny_texts(EXAMPLES)
    result = attack_texts(uegr(), texts, labels)
    table = result.to_pandas()
    assert table["original_text"].tolist() == texts
    content = json.loads(result.to_json())
    assert content["robust_accuracy"] == result.robust_accuracy
    assert [x["label"] for x in content["examples"]] == labels


@needs_textattack
@pytest.mark.parametrize("words", [1, 2])
def test_accuracy_within_is_that_of_an_attack_with_the_bound(
    words, monkeypatch
):
    model = uegr()
    texts, _ = tiny_texts(12)
    first, second = model.predict(texts, verbose=0).T
    bias = model.model.weights[-1]
    # At the border between the classes, where attacks succeed.
    bias.assign(bias - np.array([np.median(first - second), 0.0], "float32"))
    labels = predicted(model, texts)[0]
    labels[0] = 1 - labels[0]
    free = attack_texts(model, texts, labels)
    assert {1, 2} <= {
        x.words_changed for x in free if x.outcome == "successful"
    }
    build = attack_recipes.build_attack

    def bounded(*arguments):
        attack = build(*arguments)
        overlap = textattack_import.import_textattack("constraints.overlap")
        bound = overlap.MaxWordsPerturbed(max_num_words=words)
        attack.constraints.append(bound)
        return attack

    monkeypatch.setattr(attack_recipes, "build_attack", bounded)
    bound = attack_texts(model, texts, labels)
    assert free.accuracy_within(words) == bound.robust_accuracy
    assert free.accuracy_within(0) == free.clean_accuracy
    assert max(x.words_changed for x in bound) <= words


@pytest.mark.parametrize(
    ("within", "expected"), [(0, 0.8), (1, 0.6), (2, 0.4), (9, 0.4)]
)
def test_accuracies_of_a_result(within, expected):
    def example(label, before, after, words):
        return text_attacks.AttackedExample(
            0, "", "", label, before, after, 1.0, 0.0, words, 1, "failed"
        )

    result = text_attacks.TextAttackResult(
        "an attack",
        [
            example(0, 0, 1, 1),
            example(0, 0, 1, 2),
            example(0, 0, 0, 5),
            example(1, 1, 1, 4),
            example(1, 0, 0, 0),
        ],
    )
    assert result.accuracy_within(within) == expected
    classes = result.by_class()
    assert list(classes) == [0, 1]
    assert classes[0].robust_accuracy == pytest.approx(1 / 3)
    assert classes[1].accuracy_within(within) == 0.5


@needs_textattack
@pytest.mark.parametrize("fails", [False, True])
def test_the_model_is_as_it_was(fails, monkeypatch):
    model = uegr()
    texts, labels = tiny_texts(EXAMPLES)
    model.predict(texts, verbose=0)
    before = [ops.convert_to_numpy(x).copy() for x in model.variables]
    names = set(vars(model))
    if fails:
        monkeypatch.setattr(gradient_flips, "word_positions", lambda *_: 1 // 0)
        labels = predicted(model, texts)[0]
        with pytest.raises(ZeroDivisionError, match="by zero"):
            attack_texts(model, texts, labels, "hotflip")
    else:
        attack_texts(model, texts, labels, "hotflip")
    after = [ops.convert_to_numpy(x) for x in model.variables]
    for old, new in zip(before, after, strict=True):
        np.testing.assert_array_equal(new, old)
    assert "call" not in vars(model.embedding)
    assert set(vars(model)) - names <= {"embedding"}


@needs_textattack
def test_saved_model_gives_the_same_probabilities(tmp_path):
    model = tiny_bert()
    keras_uegr.export_saved_model(
        model, tmp_path / "new", include_preprocessor=True
    )
    texts, _ = tiny_texts(3)
    served = TextAttackModelWrapper(tmp_path / "new")
    np.testing.assert_allclose(
        served(texts), predicted(model, texts)[1], atol=1e-5
    )
    with pytest.raises(ValueError, match="must be a Keras model for attacks"):
        served.get_grad("a film")
    with pytest.raises(ValueError, match=r"strings for a SavedModel.*'a', 'b'"):
        served([("a", "b")])
    with pytest.raises(ValueError, match="the path of a SavedModel"):
        TextAttackModelWrapper(tmp_path)


@needs_textattack
def test_a_saved_model_of_several_outputs_is_told(tmp_path):
    tf = pytest.importorskip("tensorflow")
    module = tf.Module()
    module.serve = tf.function(
        lambda texts: {
            "topic": tf.strings.length(texts),
            "tone": tf.strings.length(texts),
        },
        input_signature=[tf.TensorSpec([None], tf.string)],
    )
    tf.saved_model.save(module, tmp_path, signatures=module.serve)
    with pytest.raises(ValueError, match=r"of one output.*'tone', 'topic'"):
        TextAttackModelWrapper(tmp_path)


def test_missing_textattack_is_told(monkeypatch):
    monkeypatch.setitem(sys.modules, "textattack", None)
    message = r"need TextAttack.*pip install 'keras-uegr\[textattack\]'"
    with pytest.raises(ImportError, match=message):
        attack_texts(tiny_bert(), ["a"], [0])


@needs_textattack
def test_stand_ins_are_gone_after_the_import():
    textattack_import.import_textattack("transformations")
    for name in ("flair", "flair.data", "bert_score"):
        module = sys.modules.get(name)
        assert module is None or module.__spec__ is not None


def test_part_that_is_absent_says_so():
    absent = textattack_import._absent("flair", "SequenceTagger")
    with pytest.raises(ImportError, match="`pip install flair`"):
        absent.load("upos-fast")
    with pytest.raises(ImportError, match="needs `flair`"):
        absent()


@needs_textattack
def test_wordnet_is_found_where_its_own_variable_says(wordnet, monkeypatch):
    monkeypatch.setenv("WNSEARCHDIR", str(wordnet))
    found = text_resources.open_wordnet().abspath("data.noun")
    assert str(found) == str(wordnet / "data.noun")


@needs_textattack
def test_wordnet_leaves_no_file_open(wordnet):
    reader = text_resources.open_wordnet(wordnet)
    assert reader.synsets("film")
    # Where the system lists them.
    links = pathlib.Path("/proc/self/fd").glob("*")
    opened = {path.resolve().parent for path in links if path.exists()}
    assert wordnet not in opened


@needs_textattack
def test_missing_wordnet_is_told(tmp_path):
    message = "needs WordNet.*wordnet-base.*wordnet_folder"
    with pytest.raises(FileNotFoundError, match=message):
        text_resources.open_wordnet(tmp_path)


@needs_textattack
def test_missing_resource_is_told(monkeypatch):
    recipes = textattack_import.import_textattack("attack_recipes")

    def build(wrapper):
        raise ConnectionError("no network")

    monkeypatch.setattr(recipes.TextFoolerJin2019, "build", build)
    message = 'attack="textfooler".*counter-fitted.*no network'
    with pytest.raises(FileNotFoundError, match=message):
        attack_texts(tiny_bert(), ["a film"], [0], "textfooler")


def fail_while_attacking(error, monkeypatch):
    """Raises an error in "textfooler", which needs what others don't."""
    build = attack_recipes.build_attack

    def fails(*_):
        raise error

    def fails_later(_, *arguments):
        attack = build("deepwordbug", *arguments)
        monkeypatch.setattr(attack, "attack", fails)
        return attack

    monkeypatch.setattr(attack_recipes, "build_attack", fails_later)
    attack_texts(tiny_bert(), ["a film"], [0], "textfooler")


@needs_textattack
@pytest.mark.parametrize("error", [KeyError, IndexError])
def test_mistake_in_the_model_is_no_missing_resource(error, monkeypatch):
    with pytest.raises(error, match="a mistake"):
        fail_while_attacking(error("a mistake"), monkeypatch)


@needs_textattack
def test_resource_that_is_missing_while_attacking_is_told(monkeypatch):
    message = 'attack="textfooler".*which could not be had.*no tagger'
    with pytest.raises(FileNotFoundError, match=message):
        fail_while_attacking(LookupError("no tagger"), monkeypatch)


@needs_textattack
@pytest.mark.parametrize("name", sorted(attack_recipes.RECIPES))
def test_recipe_exists(name):
    recipes = textattack_import.import_textattack("attack_recipes")
    assert hasattr(recipes, attack_recipes.RECIPES[name][0])


@needs_textattack
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"attack": "magic"}, "`attack` must be one of .* attack=magic"),
        ({"query_budget": 0}, "`query_budget` must be .* query_budget=0"),
        ({"sample_size": -1}, "`sample_size` must be .* sample_size=-1"),
        ({"sample_size": True}, "`sample_size` must be .* sample_size=True"),
        ({"batch_size": 0}, "`batch_size` must be .* batch_size=0"),
        ({"seed": -1}, "`seed` must be an integer, 0 or larger.* seed=-1"),
        ({"labels": 0}, "`labels` must be integers.*shape \\(\\)"),
        ({"labels": [-1]}, "from 0 to 1, .*2 classes.* labels from -1 to -1"),
        ({"labels": [2]}, "`labels` must be integers from 0 to 1.* 2 to 2"),
        ({"labels": [0.5]}, "`labels` must be integers.*float64"),
        ({"labels": [0, 1]}, "`texts` must be a list.*1 texts and 2 labels"),
        ({"texts": [["a", "b"]]}, "`texts` must be .*tuples of strings.*'b'"),
        ({"texts": ["a <SPLIT> b"]}, "must not hold <SPLIT>.*'a <SPLIT> b'"),
        ({"texts": [("a", "<SPLIT>")]}, r"<SPLIT>.*\('a', '<SPLIT>'\)"),
        (
            {"texts": ["!!!"], "attack": "input_reduction"},
            '`texts` must have a word each for "input_reduction".*!!!',
        ),
        (
            {"texts": [("", "🙂")], "attack": "input_reduction"},
            r"must have a word each .*\('', '🙂'\)",
        ),
        ({"model": 3}, "`model` must be a .*Received: model=3"),
    ],
)
def test_argument_that_does_not_fit_is_told(arguments, message):
    defaults = {"model": tiny_bert(), "texts": ["a film"], "labels": [0]}
    with pytest.raises(ValueError, match=message):
        attack_texts(**{**defaults, **arguments})


@needs_textattack
def test_model_without_preprocessor_is_told():
    with pytest.raises(ValueError, match="must have a preprocessor"):
        TextAttackModelWrapper(tiny_llama())


@needs_textattack
@pytest.mark.skipif(keras.backend.backend() == "torch", reason="may use Triton")
def test_triton_stays_out_of_a_process_with_tensorflow():
    textattack_import.import_textattack()
    with pytest.raises(ImportError, match="triton"):
        importlib.import_module("triton")
