import functools
import sys

import keras
import keras_hub
import numpy as np
import pandas as pd
import pytest
import tensorflow as tf

import keras_uegr
from keras_uegr import text_input
from keras_uegr.text_input import preprocess_data, preprocess_validation_data
from keras_uegr.uegr_model import UEGRModel
from tests.backbones import (
    VOCABULARY,
    tiny_bert_tokenizer,
    tiny_gpt2_preprocessor,
    tiny_masked_lm_preprocessor,
    tiny_texts,
)

pytestmark = [
    # Whoever shuffles such data does it before giving it to Keras.
    pytest.mark.filterwarnings("ignore:.shuffle=True. was passed"),
    # Keras does not know how many batches a generator has.
    pytest.mark.filterwarnings("ignore:Your input ran out of data"),
]

COUNT, BATCH_SIZE, LENGTH = 12, 4, 12
TEXTS, LABELS = tiny_texts(COUNT)


@pytest.fixture(scope="module")
def preprocessor():
    return keras_hub.models.BertTextClassifierPreprocessor(
        tiny_bert_tokenizer(), sequence_length=LENGTH
    )


@pytest.fixture(scope="module")
def arrays(preprocessor):
    """What KerasHub makes of `TEXTS`."""
    return to_numpy(preprocessor(TEXTS))


def to_numpy(tensors):
    return keras.tree.map_structure(keras.ops.convert_to_numpy, tensors)


@pytest.fixture(scope="module")
def shared_model():
    """A bag of words: it compiles fast, and takes what BERT takes."""
    inputs = {
        name: keras.Input((LENGTH,), dtype="int32", name=name)
        for name in ("token_ids", "padding_mask", "segment_ids")
    }
    embedded = keras.layers.Embedding(len(VOCABULARY), 8)(inputs["token_ids"])
    pooled = keras.layers.GlobalAveragePooling1D()(
        embedded, mask=inputs["padding_mask"]
    )
    model = keras.Model(inputs, keras.layers.Dense(2)(pooled))
    model.compile(
        keras.optimizers.SGD(0.5),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    )
    return model


@pytest.fixture
def model(shared_model):
    """The shared model with the same weights for every test."""
    rng = np.random.default_rng(0)
    shared_model.set_weights(
        [rng.normal(size=w.shape) for w in shared_model.weights]
    )
    shared_model.optimizer.learning_rate = 0.5
    return shared_model


def train(model, x, y=None, sample_weight=None, **arguments):
    """The loss of an epoch, and the weights after it."""
    initial = model.get_weights()
    if y is not None:
        arguments["batch_size"] = BATCH_SIZE
    history = model.fit(
        x,
        y,
        sample_weight=sample_weight,
        shuffle=False,
        verbose=0,
        **arguments,
    )
    trained = np.concatenate([w.ravel() for w in model.get_weights()])
    model.set_weights(initial)
    return [*history.history["loss"], *trained]


class Batches(keras.utils.PyDataset):
    def __init__(self, *columns, **arguments):
        super().__init__(**arguments)
        self.columns = columns
        self.epochs = []

    def __getitem__(self, index):
        part = slice(index * BATCH_SIZE, (index + 1) * BATCH_SIZE)
        return tuple(column[part] for column in self.columns)

    @property
    def num_batches(self):
        return len(self.columns[0]) // BATCH_SIZE

    def on_epoch_begin(self):
        self.epochs.append("begin")

    def on_epoch_end(self):
        self.epochs.append("end")


def generate(*columns):
    yield from Batches(*columns)


def dataset(*columns):
    return tf.data.Dataset.from_tensor_slices(columns).batch(BATCH_SIZE)


def data_loader(*columns):
    if "torch" not in sys.modules:
        pytest.skip("PyTorch must not be imported after TensorFlow")
    from torch.utils.data import DataLoader

    return DataLoader(list(zip(*columns, strict=True)), batch_size=BATCH_SIZE)


def arrow_series(texts, kind):
    """Texts as pandas has them of Parquet files and of other libraries."""
    pyarrow = pytest.importorskip("pyarrow")
    types = {
        "large_string": pyarrow.large_string(),
        "dictionary": pyarrow.dictionary(pyarrow.int32(), pyarrow.string()),
    }
    return pd.Series(texts, dtype=pd.ArrowDtype(types[kind]))


ARRAY_LIKE = {
    "list": list,
    "tuple": tuple,
    "str_array": np.array,
    "bytes_array": lambda x: np.array([text.encode() for text in x]),
    "object_array": lambda x: np.array(x, dtype=object),
    "tensorflow_tensor": tf.constant,
    "pandas_series": pd.Series,
    "pandas_string_series": lambda x: pd.Series(x, dtype="string"),
    "large_string_series": lambda x: arrow_series(x, "large_string"),
    "dictionary_series": lambda x: arrow_series(x, "dictionary"),
}
LAZY = {
    "dataset": dataset,
    "py_dataset": Batches,
    "py_dataset_with_workers": functools.partial(Batches, workers=2),
    "generator": generate,
    "data_loader": data_loader,
}


@pytest.mark.parametrize("kind", ARRAY_LIKE)
def test_fit_on_strings_equals_fit_on_tokens(kind, model, preprocessor, arrays):
    data = preprocess_data(preprocessor, ARRAY_LIKE[kind](TEXTS), LABELS)
    expected = train(model, arrays, np.array(LABELS))
    np.testing.assert_allclose(train(model, *data), expected, rtol=1e-5)


@pytest.mark.parametrize("kind", LAZY)
def test_fit_on_batches_equals_fit_on_tokens(kind, model, preprocessor, arrays):
    data = preprocess_data(preprocessor, LAZY[kind](TEXTS, LABELS))
    expected = train(model, arrays, np.array(LABELS))
    np.testing.assert_allclose(train(model, *data), expected, rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("kind", LAZY)
def test_batches_may_hold_weights(kind, model, preprocessor, arrays):
    weights = np.linspace(0.0, 2.0, COUNT, dtype="float32")
    data = preprocess_data(preprocessor, LAZY[kind](TEXTS, LABELS, weights))
    expected = train(model, arrays, np.array(LABELS), weights)
    assert expected != train(model, arrays, np.array(LABELS))
    np.testing.assert_allclose(train(model, *data), expected, rtol=1e-5)


@pytest.mark.parametrize("kind", LAZY)
def test_predict_takes_batches_of_texts_alone(
    kind, model, preprocessor, arrays
):
    data, _, _ = preprocess_data(preprocessor, LAZY[kind](TEXTS))
    np.testing.assert_allclose(
        model.predict(data, verbose=0),
        model.predict(arrays, verbose=0),
        rtol=1e-5,
    )


def test_lists_of_weights_and_class_weights(model, preprocessor, arrays):
    weights = [0.0, 1.0, 2.0] * (COUNT // 3)
    data = preprocess_data(preprocessor, TEXTS, LABELS, weights)
    expected = train(model, arrays, np.array(LABELS), np.array(weights))
    np.testing.assert_allclose(train(model, *data), expected, rtol=1e-5)

    data = preprocess_data(preprocessor, TEXTS, LABELS)
    options = {"class_weight": {0: 0.1, 1: 3.0}, "validation_split": 0.25}
    np.testing.assert_allclose(
        train(model, *data, **options),
        train(model, arrays, np.array(LABELS), **options),
        rtol=1e-5,
    )


class BatchLosses(keras.callbacks.Callback):
    """The loss of every batch of one example, epoch by epoch."""

    def __init__(self):
        super().__init__()
        self.epochs = []

    def on_epoch_begin(self, epoch, logs=None):
        self.epochs.append([])
        self.total = 0.0

    def on_train_batch_end(self, batch, logs=None):
        total = logs["loss"] * (batch + 1)
        self.epochs[-1].append(total - self.total)
        self.total = total


def test_shuffling_is_that_of_keras(model, preprocessor, arrays):
    model.optimizer.learning_rate = 0.0
    data = preprocess_data(preprocessor, TEXTS, LABELS)
    epochs = []
    for x, y in ((arrays, np.array(LABELS)), data[:2]):
        keras.utils.set_random_seed(1)
        seen = BatchLosses()
        model.fit(x, y, batch_size=1, epochs=2, verbose=0, callbacks=[seen])
        epochs.append(seen.epochs)
    np.testing.assert_allclose(epochs[1], epochs[0], atol=1e-5)

    loss = keras.losses.SparseCategoricalCrossentropy(True, reduction=None)
    in_order = loss(np.array(LABELS), model.predict(arrays, verbose=0))
    in_order = keras.ops.convert_to_numpy(in_order)
    for shuffled in epochs[1]:
        np.testing.assert_allclose(sorted(shuffled), sorted(in_order), 1e-3)
        assert not np.allclose(shuffled, in_order, atol=1e-3)


def test_texts_are_tokenized_in_chunks(preprocessor, arrays, monkeypatch):
    monkeypatch.setattr(text_input, "_CHUNK_SIZE", 5)
    calls = []

    class Recorded(keras_hub.models.BertTextClassifierPreprocessor):
        def call(self, x, y=None, sample_weight=None):
            calls.append(len(x))
            return super().call(x, y, sample_weight)

    recorded = Recorded(tiny_bert_tokenizer(), sequence_length=LENGTH)
    x, y, sample_weight = preprocess_data(recorded, TEXTS, LABELS)
    assert calls == [5, 5, 2]
    keras.tree.map_structure(np.testing.assert_array_equal, x, arrays)
    assert all(isinstance(array, np.ndarray) for array in x.values())
    assert y.tolist() == LABELS
    assert sample_weight is None


def test_a_preprocessor_that_pads_to_the_longest_text_is_an_error(monkeypatch):
    monkeypatch.setattr(text_input, "_CHUNK_SIZE", 2)

    def letters(texts):
        longest = max(map(len, texts))
        return np.array([list(map(ord, x.ljust(longest))) for x in texts])

    match = r"one length.* gets 2 texts.* of shapes \[\(3,\), \(4,\)\]"
    with pytest.raises(ValueError, match=match):
        preprocess_data(letters, ["one", "two", "four"])
    x, _, _ = preprocess_data(letters, ["four", "five", "nine"])
    assert x.shape == (3, 4)


def test_pairs_of_texts(preprocessor):
    first, second = TEXTS[:6], TEXTS[6:]
    # Without `y`, KerasHub takes a tuple of two for texts and their labels.
    expected = to_numpy(preprocessor((first, second), y=None))
    assert expected["segment_ids"].any()
    for pair in ((first, second), (tuple(first), np.array(second))):
        x, y, _ = preprocess_data(preprocessor, pair, LABELS[:6])
        keras.tree.map_structure(np.testing.assert_array_equal, x, expected)
        assert y.tolist() == LABELS[:6]
    lazy = (
        (pair for pair in [((first, second), LABELS[:6])]),
        tf.data.Dataset.from_tensors(((first, second), LABELS[:6])),
    )
    for batches in lazy:
        x, _ = next(iter(preprocess_data(preprocessor, batches)[0]))
        x = keras.tree.map_structure(np.asarray, x)
        keras.tree.map_structure(np.testing.assert_array_equal, x, expected)


def test_pairs_of_texts_in_a_data_loader(preprocessor):
    first, second = TEXTS[:BATCH_SIZE], TEXTS[-BATCH_SIZE:]
    pairs = list(zip(first, second, strict=True))
    expected = to_numpy(preprocessor((first, second), y=None))
    loader = data_loader(pairs, LABELS[:BATCH_SIZE])
    x, y = next(iter(preprocess_data(preprocessor, loader)[0]))
    x = keras.tree.map_structure(np.asarray, x)
    keras.tree.map_structure(np.testing.assert_array_equal, x, expected)
    assert np.asarray(y).tolist() == LABELS[:BATCH_SIZE]


def test_callable_preprocessor_gets_the_structure_of_x():
    def count_letters(x):
        return np.array(
            [[len(a), len(b)] for a, b in zip(x["a"], x["b"], strict=True)]
        )

    texts = {"a": ["one", "three"], "b": np.array(["", "x"])}
    x, y, _ = preprocess_data(count_letters, texts, [[0, 1], [1, 0]])
    assert x.tolist() == [[3, 0], [5, 1]]
    assert y.tolist() == [[0, 1], [1, 0]]


def test_preprocessor_that_makes_labels_and_weights(monkeypatch):
    monkeypatch.setattr(text_input, "_CHUNK_SIZE", 5)
    preprocessor = tiny_gpt2_preprocessor(LENGTH)
    expected = to_numpy(preprocessor(TEXTS))
    made = preprocess_data(preprocessor, TEXTS)
    keras.tree.map_structure(np.testing.assert_array_equal, made, expected)
    batches = preprocess_data(preprocessor, Batches(TEXTS))[0]
    assert [len(batch) for batch in batches] == [3, 3, 3]

    inputs = {
        name: keras.Input((LENGTH,), dtype="int32", name=name)
        for name in ("token_ids", "padding_mask")
    }
    outputs = keras.layers.Embedding(54, 54)(inputs["token_ids"])
    model = keras.Model(inputs, outputs)
    model.compile(
        "sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    )
    history = model.fit(
        made[0],
        made[1],
        sample_weight=made[2],
        validation_data=preprocess_validation_data(preprocessor, TEXTS),
        verbose=0,
    )
    assert np.isfinite(history.history["val_loss"]).all()


@pytest.mark.parametrize("kind", ["list", "dataset"])
def test_masked_language_model(kind):
    preprocessor = tiny_masked_lm_preprocessor(LENGTH)
    if kind == "list":
        x, y, weights = preprocess_data(preprocessor, TEXTS)
    else:
        batches = preprocess_data(preprocessor, dataset(TEXTS))[0]
        x, y, weights = next(iter(batches.unbatch().batch(COUNT)))
        x, y, weights = keras.tree.map_structure(np.asarray, (x, y, weights))
    original = to_numpy(preprocessor.packer(preprocessor.tokenizer(TEXTS))[0])
    taken = np.take_along_axis(original, x["mask_positions"], axis=1)
    assert weights.sum() > 0
    np.testing.assert_array_equal(taken[weights > 0], y[weights > 0])


def test_numbers_pass_untouched(preprocessor, arrays):
    labels, weights = list(LABELS), [1.0] * COUNT
    for x in (arrays, [[1, 2], [3, 4]], np.ones(3), keras.ops.ones(3), None):
        data = preprocess_data(preprocessor, x, labels, weights)
        assert data[0] is x
        assert data[1] is labels
        assert data[2] is weights
    tokens = dataset(arrays, LABELS)
    assert preprocess_data(preprocessor, tokens)[0] is tokens
    batches = [(arrays, np.array(LABELS)), (arrays,)]
    passed = preprocess_data(preprocessor, (batch for batch in batches))[0]
    assert all(a is b for a, b in zip(passed, batches, strict=True))


@pytest.mark.parametrize("kind", LAZY)
def test_without_preprocessor_all_pass_untouched(kind, arrays):
    if kind != "dataset":
        batches = LAZY[kind](TEXTS, LABELS)
        assert preprocess_data(None, batches)[0] is batches
    texts = np.array(TEXTS)
    x, _, _ = preprocess_data(None, texts, model_takes_strings=True)
    assert x is texts
    assert preprocess_data(None, arrays)[0] is arrays
    validation_data = preprocess_validation_data(None, (arrays, LABELS))
    assert validation_data[0] is arrays
    assert validation_data[1] is LABELS


@pytest.mark.slow
@pytest.mark.parametrize("kind", [*ARRAY_LIKE, *LAZY])
def test_validation_data(kind, model, preprocessor, arrays):
    labels = np.array(LABELS)
    if kind in LAZY:
        validation_data = LAZY[kind](TEXTS, LABELS)
    else:
        validation_data = (ARRAY_LIKE[kind](TEXTS), LABELS, [1.0] * COUNT)
    history = model.fit(
        arrays,
        labels,
        batch_size=BATCH_SIZE,
        validation_batch_size=BATCH_SIZE,
        validation_data=preprocess_validation_data(
            preprocessor, validation_data
        ),
        verbose=0,
    )
    expected = model.evaluate(arrays, labels, verbose=0)
    np.testing.assert_allclose(history.history["val_loss"], expected, rtol=1e-5)


def test_uegr_model_takes_texts(model, preprocessor, arrays):
    wrapper = UEGRModel(
        model,
        adversarial_weight=0.0,
        consistency_weight=0.0,
        preprocessor=preprocessor,
    )
    wrapper.compile(
        keras.optimizers.SGD(0.5),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    )
    history = wrapper.fit(
        TEXTS, LABELS, validation_data=(TEXTS, LABELS), verbose=0
    )
    labels = np.array(LABELS)
    losses = [
        history.history["val_loss"][0],
        wrapper.evaluate(dataset(TEXTS, LABELS), verbose=0, return_dict=True)[
            "loss"
        ],
    ]
    expected = model.evaluate(arrays, labels, verbose=0)
    np.testing.assert_allclose(losses, [expected] * 2, rtol=1e-5)
    np.testing.assert_allclose(
        wrapper.predict(TEXTS, verbose=0), model.predict(arrays, verbose=0)
    )


def test_no_validation_data(preprocessor):
    assert preprocess_validation_data(preprocessor, None) is None


def test_py_dataset_keeps_its_settings(model, preprocessor):
    original = Batches(
        TEXTS,
        LABELS,
        workers=2,
        use_multiprocessing=False,
        max_queue_size=7,
    )
    batches, _, _ = preprocess_data(preprocessor, original)
    assert isinstance(batches, keras.utils.PyDataset)
    assert batches.workers == 2
    assert batches.use_multiprocessing is False
    assert batches.max_queue_size == 7
    assert batches.num_batches == COUNT // BATCH_SIZE
    # The first `fit` of a model may run through an epoch to build it.
    model.fit(batches, verbose=0)
    original.epochs.clear()
    model.fit(batches, epochs=2, verbose=0)
    # Keras starts `fit` with a call of `on_epoch_end`, to be on the safe side.
    calls = "".join(f"{call} " for call in original.epochs)
    assert calls.removeprefix("end ") == "begin end begin end "


def test_infinite_py_dataset(model, preprocessor):
    class Endless(Batches):
        num_batches = None

        def __getitem__(self, index):
            return super().__getitem__(index % 3)

    batches, _, _ = preprocess_data(preprocessor, Endless(TEXTS, LABELS))
    assert batches.num_batches is None
    model.fit(batches, steps_per_epoch=5, verbose=0)


def test_generator_is_read_as_needed(preprocessor):
    read = []

    def endless():
        while True:
            read.append(len(read))
            yield TEXTS[:BATCH_SIZE], LABELS[:BATCH_SIZE]

    batches, _, _ = preprocess_data(preprocessor, endless())
    assert not read
    x, y = next(batches)
    assert read == [0]
    assert x["token_ids"].shape == (BATCH_SIZE, LENGTH)
    assert isinstance(y, np.ndarray)


def test_data_loader_keeps_its_settings_and_is_not_changed(preprocessor):
    original = data_loader(TEXTS, LABELS)
    loader, _, _ = preprocess_data(preprocessor, original)
    assert isinstance(loader, type(original))
    assert len(loader) == len(original)
    assert loader.batch_size == BATCH_SIZE
    assert isinstance(next(iter(original))[0][0], str)
    for _ in range(2):
        batches = list(loader)
        assert len(batches) == COUNT // BATCH_SIZE
        assert all(hasattr(x["token_ids"], "cpu") for x, _ in batches)


def test_empty_text_is_a_text(preprocessor):
    x, _, _ = preprocess_data(preprocessor, ["", "good"])
    assert x["padding_mask"].sum(axis=1).tolist() == [2, 3]


@pytest.mark.parametrize("text", ["good", b"good", np.array("good")])
def test_single_string_is_an_error(text, preprocessor):
    with pytest.raises(ValueError, match=r"wrap a single text in a list.*good"):
        preprocess_data(preprocessor, text, [1])
    with pytest.raises(ValueError, match="wrap a single text in a list"):
        preprocess_data(preprocessor, {"a": ["good"], "b": text}, [1])


@pytest.mark.parametrize(
    "x",
    [TEXTS, np.array(TEXTS), "good", dataset(TEXTS, LABELS)],
    ids=["list", "array", "string", "dataset"],
)
def test_strings_without_preprocessor_are_an_error(x):
    match = "`x` must be numbers when the model has no preprocessor"
    with pytest.raises(ValueError, match=match):
        preprocess_data(None, x, LABELS)


def test_different_lengths_are_an_error(preprocessor):
    match = r"same number of examples.*'x': \[12\], 'y': \[11\]"
    with pytest.raises(ValueError, match=match):
        preprocess_data(preprocessor, TEXTS, LABELS[1:])
    with pytest.raises(ValueError, match=r"'sample_weight': \[2\]"):
        preprocess_data(preprocessor, TEXTS, LABELS, np.ones(2))
    with pytest.raises(ValueError, match=r"'x': \[12, 5\]"):
        preprocess_data(preprocessor, (TEXTS, TEXTS[:5]), LABELS)
    labels = [np.array(LABELS), np.array(LABELS)]
    with pytest.raises(ValueError, match=r"outputs, .* a tuple.*'y': \[2\]"):
        preprocess_data(preprocessor, TEXTS, labels)
    _, y, _ = preprocess_data(preprocessor, TEXTS, tuple(labels))
    assert [part.tolist() for part in y] == [LABELS] * 2


@pytest.mark.parametrize(
    "x",
    [[], ([], []), np.array([], dtype=str)],
    ids=["list", "pair", "array"],
)
def test_no_texts_are_an_error(x, preprocessor):
    with pytest.raises(ValueError, match="`x` must hold at least one text"):
        preprocess_data(preprocessor, x)


@pytest.mark.parametrize("missing", [None, float("nan"), 3])
@pytest.mark.parametrize(
    "container",
    [list, tuple, lambda x: np.array(x, dtype=object), pd.Series],
    ids=["list", "tuple", "array", "series"],
)
def test_missing_text_is_an_error(missing, container, preprocessor):
    texts = container(["good", missing, "bad"])
    match = r"replace missing texts.*Received at index 1: (None|nan|3)"
    with pytest.raises(ValueError, match=match):
        preprocess_data(preprocessor, texts, [1, 1, 0])


def test_list_of_pairs_is_an_error(preprocessor):
    match = r"tuple of two lists.*Received at index 0: \['good', 'bad'\]"
    with pytest.raises(ValueError, match=match):
        preprocess_data(preprocessor, [["good", "bad"]] * 2)
    with pytest.raises(ValueError, match=match):
        preprocess_data(preprocessor, np.array([["good", "bad"]] * 2))


def test_labels_that_are_strings_are_an_error(preprocessor):
    with pytest.raises(ValueError, match=r"`y` must be numbers.*'pos'"):
        preprocess_data(preprocessor, ["good", "bad"], ["pos", "neg"])


def test_dataset_of_single_texts_is_an_error(preprocessor):
    texts = tf.data.Dataset.from_tensor_slices((TEXTS, LABELS))
    with pytest.raises(ValueError, match="must be batched"):
        preprocess_data(preprocessor, texts)


def test_dataset_for_a_preprocessor_in_python_is_an_error():
    def lengths(texts):
        return np.array([[len(text)] for text in texts])

    texts = tf.data.Dataset.from_tensor_slices((TEXTS, LABELS)).batch(2)
    with pytest.raises(ValueError, match="TensorFlow can trace.*lengths at"):
        preprocess_data(lengths, texts)


@pytest.mark.skipif(
    keras.backend.backend() != "tensorflow",
    reason="Keras tokenizes inside of a model on TensorFlow alone",
)
def test_a_model_may_tokenize_by_itself():
    texts = np.array(["a good film", "a bad film", "good", "so bad"])
    vectorization = keras.layers.TextVectorization(output_sequence_length=5)
    vectorization.adapt(texts)
    inputs = keras.Input((1,), dtype="string")
    hidden = keras.layers.Embedding(20, 4)(vectorization(inputs))
    hidden = keras.layers.GlobalAveragePooling1D()(hidden)
    hidden = keras.layers.Dropout(0.1)(hidden)
    inner = keras.Model(inputs, keras.layers.Dense(2)(hidden))
    model = keras_uegr.UEGRModel(inner, warmup_steps=0)
    model.compile(
        "adam",
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        jit_compile=False,
    )
    dataset = tf.data.Dataset.from_tensor_slices(
        (texts[:, None], np.array([1, 0, 1, 0]))
    ).batch(2)
    history = model.fit(dataset, validation_data=dataset, verbose=0).history
    assert history["perturbation_norm"][0] > 0
    assert np.isfinite(history["val_loss"][0])
