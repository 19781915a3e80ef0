"""A classifier as an attack sees it: texts to probabilities, and gradients.

    p(text) = softmax(logits)       rows of float64 that sum to 1
    g(text) = d -log p[argmax p] / d e

`e` is the output of the token embedding. Nothing is compiled on, or written
to, the user's own model. Padding that all texts of a batch have is left out
where that changes nothing.
"""

import functools
import inspect
import os

import keras
import numpy as np
from keras import ops

from keras_uegr import (
    consistency,
    data_checks,
    forward_pass,
    serving,
    string_data,
    text_input,
)
from keras_uegr.evaluation import attack_checks, calibration, trimming
from keras_uegr.uegr_model import UEGRModel

# What an attack makes of texts may be empty. The other one is longer than what
# `trimming` tries.
_PROBES = ["", " ".join(["some words of a text"] * 4)]


class TextAttackModelWrapper:
    """What TextAttack calls a model wrapper, for models of this package.

    Any attack of TextAttack takes it as its `model_wrapper`. It returns
    float64 rows that sum to 1: TextAttack applies a softmax, without a word,
    to rows that miss 1 by 1e-6, as float32 probabilities do.

    Args:
        model: A `keras_uegr.UEGRModel` or KerasHub task with a preprocessor,
            or the path of a SavedModel that takes strings.
        batch_size: Positive integer, texts at once. Defaults to `32`.
        from_logits: Boolean, whether the outputs of `model` are logits.
            Defaults to `None`: they are not if they look like
            probabilities; for a single output the compiled loss tells, or a
            value outside of `[0, 1]`. If neither does, it has to be set, as
            for several outputs of a loss of independent ones, such as
            `BinaryCrossentropy`: `False` divides each row by its sum.
        parts: Optional positive integer: texts are tuples of so many strings,
            as a preprocessor of your own may ask for. Defaults to `None`:
            the model is first tried on strings, and takes both if it can.

    Raises:
        ImportError: If TextAttack is missing.
        ValueError: If the model cannot take strings, is no classifier, or
            does not tell whether its single output is a logit.

    Example:

    >>> wrapper = keras_uegr.evaluation.TextAttackModelWrapper(model)
    >>> wrapper(["a delight", "a bore"]).shape
    (2, 2)
    >>> sorted(wrapper.get_grad("a delight"))
    ['gradient', 'ids']

    Reference:
        - [Morris et al., 2020](https://arxiv.org/abs/2005.05909)
    """

    def __init__(self, model, batch_size=32, from_logits=None, parts=None):
        # Not at the top: an attack needs TextAttack, the package does not.
        from keras_uegr.evaluation.textattack_import import import_textattack

        wrappers = import_textattack("models.wrappers")
        wrappers.ModelWrapper.register(type(self))
        self.model = model
        self.batch_size = attack_checks.get_count("batch_size", batch_size)
        parts = attack_checks.get_count("parts", parts, optional=True)
        self._probes = [(x,) * parts if parts else x for x in _PROBES]
        self._traces_each_shape = True
        if isinstance(model, (str, os.PathLike)):
            self._outputs = serving.load_text_function(model)
        else:
            self._outputs = self._compile(model)
            self._traces_each_shape = self._twin.traces_each_shape
        outputs = get_one_output(self._outputs(self._probes))
        # A mean over the tokens of an empty text is no number, which tells
        # nothing of the model, as long as others have an answer.
        finite = np.isfinite(outputs).all(axis=-1)
        outputs = outputs[finite] if finite.any() else outputs
        self.from_logits = get_from_logits(from_logits, model, outputs)
        self.classes = probabilities(outputs, self.from_logits).shape[-1]

    def __call__(self, texts, **kwargs):
        texts = attack_checks.get_texts(texts)
        rows = [
            self._padded(texts[start : start + self.batch_size])
            for start in range(0, len(texts), self.batch_size)
        ]
        outputs = np.concatenate(rows)
        _check_finite(outputs, texts)
        return probabilities(outputs, self.from_logits)

    def _padded(self, texts):
        # Attacks ask for any number of texts. Where each new size is traced
        # anew, only powers of two are.
        size = len(texts)
        if self._traces_each_shape:
            size = 1 << (size - 1).bit_length()
        outputs = self._outputs(texts + texts[:1] * (size - len(texts)))
        return np.asarray(outputs, "float64")[: len(texts)]

    def get_grad(self, text):
        """Gradient of the loss of the predicted class, at the embedding.

        Args:
            text: String, or tuple of strings for a text of several parts.

        Returns:
            A dictionary with `"ids"`, NumPy array of the `T` token ids, and
            `"gradient"`, float NumPy array of shape `(T, D)`.

        Raises:
            ValueError: If the model is a SavedModel, which has no gradient,
                or `text` is not as above.
        """
        if isinstance(self.model, (str, os.PathLike)):
            raise ValueError(
                "`model` must be a Keras model for attacks that use "
                "gradients; a SavedModel gives none. "
                f"Received: model={self.model}"
            )
        tokens = self._tokens(attack_checks.get_texts([text]))
        ids, gradient = self._gradients(_to_tensors(tokens))
        return {
            "ids": ops.convert_to_numpy(ids)[0],
            "gradient": ops.convert_to_numpy(gradient)[0],
        }

    @property
    def tokenizer(self):
        """The tokenizer of the preprocessor."""
        return self._twin.preprocessor.tokenizer

    @property
    def embeddings(self):
        """NumPy array of shape `(vocabulary, D)`, the embedding table."""
        return ops.convert_to_numpy(self._twin.embedding.embeddings)

    def _compile(self, model):
        _check_takes_texts(model)
        check_classifies(model)
        # A wrapper of its own: what is compiled here stays off the user's.
        arguments = {}
        inner = model
        if isinstance(model, UEGRModel):
            inner = model.model
            if model.embedding is not None:
                arguments["embedding"] = model.embedding
            arguments["embedded_input"] = model.chosen_input
        self._twin = UEGRModel(
            inner,
            adversarial_weight=0.0,
            consistency_weight=0.0,
            preprocessor=model.preprocessor,
            **arguments,
        )
        # A gradient that no optimizer unscales is not to be scaled.
        self._twin.compile(keras.optimizers.SGD(0.0), auto_scale_loss=False)
        infer = self._twin.compile_inference(
            lambda x: get_one_output(inner(x, training=False))
        )
        self._gradients = self._twin.compile_inference(self._differentiate)

        def outputs(x):
            return ops.convert_to_numpy(infer(_to_tensors(x)))

        if self._ignores_padding(inner, outputs):
            return lambda texts: outputs(trimming.trim(self._tokens(texts)))
        return lambda texts: outputs(self._tokens(texts))

    def _ignores_padding(self, model, outputs):
        x = self._tokens(self._probes)
        if not trimming.is_possible(model, x):
            return False
        x = trimming.without_a_rest(x)
        return trimming.changes_nothing(outputs(x), outputs(trimming.trim(x)))

    def _tokens(self, texts):
        if isinstance(texts[0], tuple):
            texts = tuple(map(list, zip(*texts, strict=True)))
        x, _, _ = text_input.preprocess_data(self._twin.preprocessor, texts)
        return x

    def _differentiate(self, x):
        forward = functools.partial(forward_pass.run, self._twin, x)

        def loss(watch):
            outputs, _ = forward(watch, training=False)
            losses = _predicted_class_losses(outputs, self.from_logits)
            return ops.sum(losses), outputs

        *_, gradient = self._twin.differentiate(loss, [], watch_embedding=True)
        _, seen = forward(None, training=False)
        return seen.token_ids, gradient


def _to_tensors(x):
    return keras.tree.map_structure(ops.convert_to_tensor, x)


def probabilities(outputs, from_logits):
    """Float64 rows that sum to 1.

    Args:
        outputs: NumPy array of shape `(N, C)`, or `(N, 1)` for a classifier
            of two classes with one output.
        from_logits: Boolean, whether they are logits.

    Returns:
        NumPy array of shape `(N, C)`, `(N, 2)` for one output.
    """
    outputs = np.asarray(outputs, "float64")
    if outputs.shape[-1] == 1:
        if from_logits:
            outputs = np.concatenate([np.zeros_like(outputs), outputs], axis=-1)
        else:
            outputs = np.concatenate([1.0 - outputs, outputs], axis=-1)
    if from_logits:
        outputs = np.exp(outputs - outputs.max(axis=-1, keepdims=True))
    return outputs / outputs.sum(axis=-1, keepdims=True)


def _predicted_class_losses(outputs, from_logits):
    outputs = ops.cast(outputs, "float32")
    if outputs.shape[-1] == 1:
        first = ops.zeros_like(outputs) if from_logits else 1.0 - outputs
        outputs = ops.concatenate([first, outputs], axis=-1)
    if from_logits:
        logs = ops.log_softmax(outputs, axis=-1)
    else:
        logs = ops.log(ops.maximum(outputs, keras.config.epsilon()))
    return -ops.max(logs, axis=-1)


def _check_takes_texts(model):
    if not isinstance(model, keras.Model):
        raise ValueError(
            "`model` must be a `keras_uegr.UEGRModel`, a KerasHub task or the "
            f"path of a SavedModel. Received: model={model}"
        )
    if getattr(model, "preprocessor", None) is None:
        raise ValueError(
            "`model` must have a preprocessor, to take texts: wrap it in "
            "`keras_uegr.UEGRModel(model, preprocessor=...)`. "
            f"Received: model={model.name}"
        )


def get_one_output(outputs):
    """The outputs of a classifier, one number for each class.

    Raises:
        ValueError: If the model has several outputs, or one of another shape.
    """
    shapes = [tuple(x.shape) for x in keras.tree.flatten(outputs)]
    if isinstance(outputs, (dict, list, tuple)) or len(shapes[0]) != 2:
        raise ValueError(
            "`model` must have one output, of shape `(N, classes)`: make a "
            "`keras.Model` of that output alone. Received: outputs of shapes "
            f"{shapes}"
        )
    return outputs


def is_regression(model):
    """Whether the model says so, or the loss that it is compiled with."""
    return _output_kind(model) == "regression"


def _output_kind(model):
    loss = _compiled_loss(model)
    kind = getattr(model, "output_kind", None)
    if kind is None and consistency.is_known(loss):
        kind = consistency.output_kind(loss)
    return kind


def check_classifies(model):
    """The loss that the model is compiled with, if any, is of classes."""
    if is_regression(model):
        raise ValueError(
            "`model` must be a classifier. If it is one, compile it with a "
            "loss of classification, or set the argument `output_kind` of "
            f"`keras_uegr.UEGRModel`. Received: loss={model.loss}"
        )


def labels_for_loss(model, y, classes, columns):
    """The true classes in the form that the compiled loss takes.

    Args:
        model: A compiled `keras_uegr.UEGRModel` of one output.
        y: Array, the labels as the user gave them.
        classes: Integer array of shape `(N,)`, the same as classes.
        columns: Integer, the number of columns of the output.

    Returns:
        NumPy array: one-hot rows where Keras' loss compares them with those of
        the output. What a loss of the user's own takes is known to the user
        alone, and `y` is left as it is.
    """
    loss = _compiled_loss(model)
    if columns == 1 or data_checks.is_sparse(loss):
        return classes
    if getattr(loss, "fn", loss) in vars(keras.losses).values():
        return np.eye(columns, dtype="float32")[classes]
    return string_data.to_array(y)


def get_from_logits(from_logits, model, outputs):
    """Whether the outputs are logits, as was said or as the model tells.

    Args:
        from_logits: Boolean, or `None` if nothing was said.
        model: A `keras.Model`, or the path of a SavedModel.
        outputs: NumPy array of shape `(N, C)`, outputs for some texts.

    Raises:
        ValueError: If nothing tells, what was said can't be, or an output
            isn't finite.
    """
    outputs = np.asarray(get_one_output(outputs), "float64")
    _check_finite(outputs)
    if from_logits is not None:
        attack_checks.check_from_logits(from_logits, outputs)
        return from_logits
    _check_choose_one(model, outputs)
    beyond = ((outputs < 0) | (outputs > 1)).any()
    if outputs.shape[-1] == 1 and not beyond and _said(model) is None:
        raise ValueError(
            "`from_logits` must be `True` or `False` here: neither a loss nor "
            "a value outside of [0, 1] tells whether the single output is a "
            "logit or a probability. Received: from_logits=None, "
            f"loss={getattr(model, 'loss', None)}"
        )
    return gives_logits(model, outputs)


class NotFiniteError(ValueError):
    """A model answers with numbers that are none.

    Args:
        outputs: NumPy array of such outputs.
        text: Optional string, or tuple of strings: the first text that has one.
    """

    def __init__(self, outputs, text=None):
        super().__init__(
            "The outputs of `model` must be finite; it may have diverged as it "
            f"was trained. Received: outputs={outputs[:2]}..."
        )
        self.text = text


def _check_finite(outputs, texts=None):
    """No row is of numbers that are none: their largest is the first class."""
    (wrong,) = np.nonzero(~np.isfinite(outputs).all(axis=-1))
    if wrong.size:
        raise NotFiniteError(outputs[wrong], texts and texts[wrong[0]])


def _check_choose_one(model, outputs):
    """Several outputs are one distribution, not each one of its own."""
    several = outputs.shape[-1] > 1 and _output_kind(model) == "sigmoid"
    if several and not calibration.are_probabilities(outputs):
        raise ValueError(
            "`from_logits` must be `True` or `False` here: the outputs are "
            "independent of each other by the compiled loss, and no "
            "probabilities of one class each. `True` takes the softmax of a "
            "row, `False` divides it by its sum. Received: from_logits=None, "
            f"loss={model.loss}, {outputs.shape[-1]} outputs"
        )


def gives_logits(model, outputs):
    """Whether the outputs are logits, by their look or the compiled loss."""
    outputs = np.asarray(outputs, "float64")
    if outputs.shape[-1] > 1:
        # The look decides: for `activation="softmax"` KerasHub compiles a
        # loss that says logits.
        return not calibration.are_probabilities(outputs)
    said = _said(model)
    if said is None:
        return not ((outputs >= 0) & (outputs <= 1)).all()
    return said


def _said(model):
    """What the compiled loss says of logits, `None` if nothing."""
    loss = _compiled_loss(model)
    if hasattr(loss, "get_config"):
        return loss.get_config().get("from_logits")
    if loss is None:
        return None
    # Keras calls a function with the labels and the outputs alone.
    argument = inspect.signature(loss).parameters.get("from_logits")
    return argument and argument.default


def _compiled_loss(model):
    found = keras.tree.flatten(getattr(model, "loss", None))
    return keras.losses.get(found[0]) if len(found) == 1 else None
