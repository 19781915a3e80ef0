"""Raw strings to model inputs, for `fit`, `evaluate` and `predict`.

A KerasHub task preprocesses strings in its own `fit`; a `keras.Model` around it
does not. These functions turn data that Keras cannot take into data that it
can, before Keras sees it:

* array-like strings are preprocessed once, in chunks, into NumPy arrays;
* datasets, `PyDataset`s, data loaders and generators stay lazy, and each batch
  is preprocessed as it passes;
* what holds no strings is handed back as it is.

As in KerasHub, a tuple or a dictionary holds separate inputs (two sentences of
a pair), while a list is one input: `(first_sentences, second_sentences)`.
"""

import copy
import sys
import types

import keras
import numpy as np

from keras_uegr import data_checks
from keras_uegr.string_data import (
    count_examples,
    excerpt,
    holds_strings,
    is_empty,
    leaves,
    map_leaves,
    pack,
    to_array,
    to_texts,
    unpack,
)

# Texts tokenized at once: tokenizers hold Python lists of all their tokens.
_CHUNK_SIZE = 1024


def preprocess_data(
    preprocessor, x, y=None, sample_weight=None, model_takes_strings=False
):
    """Preprocesses the strings in what `fit` was given.

    A preprocessor that draws at random, like that of a masked language model,
    draws once for array-like strings: every epoch sees the same masks. Give a
    `tf.data.Dataset` or a `keras.utils.PyDataset` to draw anew.

    Args:
        preprocessor: A `keras_hub.models.Preprocessor`, which may make `y` and
            `sample_weight` itself, any other callable, applied to `x` alone,
            or `None`.
        x: Strings (list, NumPy array, pandas series or string tensor; or a
            tuple or dictionary of these), a `tf.data.Dataset`, a
            `keras.utils.PyDataset`, a torch `DataLoader`, a generator, or
            anything else that Keras takes.
        y: Labels, or `None`. Python lists become NumPy arrays.
        sample_weight: Weights, or `None`. As `y`.
        model_takes_strings: bool. Whether the model itself has string inputs,
            so that it needs no preprocessor. Defaults to `False`.

    Returns:
        The tuple `(x, y, sample_weight)` to give to Keras.

    Raises:
        ValueError: If `x` holds strings and there is no preprocessor, or if
            `x` is not a batch of strings alone.

    Example:

    >>> first_letter = lambda texts: np.array([[ord(t[0])] for t in texts])
    >>> preprocess_data(first_letter, ["a", "b"], y=[0, 1])
    (array([[97], [98]]), array([0, 1]), None)
    """
    if preprocessor is None:
        is_dataset = hasattr(x, "element_spec")
        inputs = unpack(x.element_spec)[0] if is_dataset else x
        if not model_takes_strings and holds_strings(inputs):
            raise ValueError(
                "`x` must be numbers when the model has no preprocessor. "
                "Wrap a `keras_hub` task that has a preprocessor, or "
                f"tokenize the texts first. Received: x={excerpt(inputs)}"
            )
        return x, y, sample_weight
    preprocess_lazily = _lazy_preprocessing(x)
    if preprocess_lazily is not None:
        return preprocess_lazily(preprocessor, x), y, sample_weight
    if not is_empty(x) and not holds_strings(x):
        return x, y, sample_weight
    return _preprocess_arrays(preprocessor, x, y, sample_weight)


def preprocess_validation_data(
    preprocessor, validation_data, model_takes_strings=False
):
    """Preprocesses the strings in the `validation_data` of `fit`.

    Args:
        preprocessor: As in `preprocess_data`.
        validation_data: `(x,)`, `(x, y)`, `(x, y, sample_weight)`, a dataset of
            any kind that `preprocess_data` takes, or `None`.
        model_takes_strings: bool. As in `preprocess_data`.

    Returns:
        The `validation_data` to give to Keras.
    """
    if validation_data is None:
        return None
    lazy = is_lazy(validation_data)
    data = preprocess_data(
        preprocessor,
        *((validation_data,) if lazy else unpack(validation_data)),
        model_takes_strings=model_takes_strings,
    )
    return data[0] if lazy else pack(*data)


class PreprocessedPyDataset(keras.utils.PyDataset):
    """The batches of a `keras.utils.PyDataset`, preprocessed.

    Args:
        preprocessor: As in `preprocess_data`.
        dataset: The `keras.utils.PyDataset`.
    """

    def __init__(self, preprocessor, dataset):
        super().__init__(
            workers=dataset.workers,
            use_multiprocessing=dataset.use_multiprocessing,
            max_queue_size=dataset.max_queue_size,
        )
        self.preprocessor = preprocessor
        self.dataset = dataset

    def __getitem__(self, index):
        return _preprocess_batch(self.preprocessor, self.dataset[index])

    @property
    def num_batches(self):
        return self.dataset.num_batches

    def on_epoch_begin(self):
        self.dataset.on_epoch_begin()

    def on_epoch_end(self):
        self.dataset.on_epoch_end()


def is_lazy(x):
    """Whether `x` is of batches that come one after the other."""
    return _lazy_preprocessing(x) is not None


def _lazy_preprocessing(x):
    """The function that preprocesses `x` batch by batch, or `None`."""
    if isinstance(x, keras.utils.PyDataset):
        return PreprocessedPyDataset
    if isinstance(x, types.GeneratorType):
        return _preprocess_generator
    if _is_instance(x, "tensorflow.", "DatasetV2"):
        return _preprocess_tf_dataset
    if _is_instance(x, "torch.utils.data", "DataLoader"):
        return _preprocess_data_loader
    return None


def _is_instance(value, module, class_name):
    """`isinstance` by name, for classes of libraries that may be missing."""
    return any(
        parent.__name__ == class_name and parent.__module__.startswith(module)
        for parent in type(value).__mro__
    )


def _preprocess_generator(preprocessor, generator):
    for batch in generator:
        yield _preprocess_batch(preprocessor, batch)


def _preprocess_tf_dataset(preprocessor, dataset):
    x_spec = unpack(dataset.element_spec)[0]
    if not holds_strings(x_spec):
        return dataset
    if any(spec.shape.rank == 0 for spec in leaves(x_spec)):
        raise ValueError(
            "A `tf.data.Dataset` of strings must be batched: call "
            "`dataset.batch(32)`. Received elements of shape (): "
            f"{dataset.element_spec}"
        )

    def preprocess(*batch):
        return pack(*apply_preprocessor(preprocessor, *unpack(batch)))

    autotune = sys.modules["tensorflow"].data.AUTOTUNE
    try:
        dataset = dataset.map(preprocess, num_parallel_calls=autotune)
    except ImportError:
        raise
    except Exception as error:
        raise ValueError(
            "A `tf.data.Dataset` of strings needs a preprocessor that "
            "TensorFlow can trace. Give the strings in a list or a "
            "`keras.utils.PyDataset` instead. Received: "
            f"preprocessor={preprocessor}, which failed with: {error}"
        ) from error
    return dataset.prefetch(autotune)


def _preprocess_data_loader(preprocessor, loader):
    loader_class = type(loader)
    as_tensor = sys.modules["torch"].tensor

    # Not in `collate_fn`, which runs in worker processes: a forked process
    # cannot use an accelerator, and preprocessors make backend tensors.
    def iterate(self):
        for batch in loader_class.__iter__(self):
            batch = _with_tuples_of_texts(batch)
            preprocessed = _preprocess_batch(preprocessor, batch)
            if preprocessed is not batch:
                preprocessed = keras.tree.map_structure(as_tensor, preprocessed)
            yield preprocessed

    mapped = copy.copy(loader)
    mapped.__class__ = type(
        loader_class.__name__, (loader_class,), {"__iter__": iterate}
    )
    return mapped


def _with_tuples_of_texts(batch):
    """`batch` with pairs of texts as they were: torch makes lists of tuples."""
    x, y, sample_weight = unpack(batch)
    parts = x if isinstance(x, list) else []
    if not parts or not all(isinstance(part, list | tuple) for part in parts):
        return batch
    return pack(tuple(map(list, parts)), y, sample_weight)


def _preprocess_batch(preprocessor, batch):
    """`batch` itself when it holds no strings, else a preprocessed tuple."""
    x, y, sample_weight = unpack(batch)
    if not holds_strings(x):
        return batch
    return pack(*_preprocess_arrays(preprocessor, x, y, sample_weight))


def _preprocess_arrays(preprocessor, x, y, sample_weight):
    x = map_leaves(to_texts, x)
    y, sample_weight = map_leaves(to_array, (y, sample_weight))
    count = count_examples(x, y, sample_weight)
    chunks = []
    for start in range(0, count, _CHUNK_SIZE):
        part = slice(start, start + _CHUNK_SIZE)
        chunk = map_leaves(
            lambda leaf, part=part: leaf[part], (x, y, sample_weight)
        )
        outputs = apply_preprocessor(preprocessor, *chunk)
        chunks.append(map_leaves(to_array, outputs))
    outputs = keras.tree.map_structure(_concatenate, *chunks)
    data_checks.check_labels_are_numbers(outputs[1])
    return outputs


def _concatenate(*parts):
    if parts[0] is None:
        return None
    shapes = sorted({part.shape[1:] for part in parts})
    if len(shapes) > 1:
        raise ValueError(
            "`preprocessor` must pad all texts to one length, not to that of "
            f"the longest: it gets {_CHUNK_SIZE} texts at a time. Or give them "
            "in a `keras.utils.PyDataset`, each batch of which may have a "
            f"length of its own. Received: examples of shapes {shapes}"
        )
    return np.concatenate(parts)


def apply_preprocessor(preprocessor, x, y, sample_weight):
    """`(x, y, sample_weight)` preprocessed as a KerasHub task would."""
    # Whoever has a KerasHub preprocessor has imported KerasHub, and importing
    # it here would load TensorFlow on every backend.
    keras_hub = sys.modules.get("keras_hub")
    if keras_hub and isinstance(preprocessor, keras_hub.models.Preprocessor):
        return keras.utils.unpack_x_y_sample_weight(
            preprocessor(x, y=y, sample_weight=sample_weight)
        )
    return preprocessor(x), y, sample_weight
