"""Each kind of task, trained by a compiled UEGR step."""

import keras
import keras_hub
import numpy as np
import pytest

import keras_uegr
from tests import backbones
from tests.backbones import randomize, tiny_bert, tiny_texts
from tests.conformance.late_dropout import (
    assert_perturbation_reaches_the_model,
    assert_sub_models_differ,
    late_dropout,
    without_own_dropout,
)

pytestmark = pytest.mark.slow

TEXTS, SENTIMENTS = tiny_texts(8)
RNG = np.random.default_rng(0)


def logits_loss(kind="SparseCategoricalCrossentropy"):
    return getattr(keras.losses, kind)(from_logits=True)


def classification(num_classes, labels, loss):
    return tiny_bert(num_classes=num_classes), TEXTS, np.array(labels), loss


def regression():
    labels = 2.0 * np.reshape(SENTIMENTS, (-1, 1)) - 1.0
    return classification(1, labels, keras.losses.MeanSquaredError())


def on_sequence(heads):
    """A model with heads on the sequence that a tiny DistilBERT gives."""
    backbone = keras_hub.models.DistilBertBackbone(
        vocabulary_size=len(backbones.VOCABULARY),
        num_layers=1,
        num_heads=2,
        hidden_dim=16,
        intermediate_dim=32,
        max_sequence_length=16,
    )
    return randomize(keras.Model(backbone.input, heads(backbone.output)))


def token_inputs():
    tokens = tiny_bert().preprocessor(TEXTS)
    return {
        name: keras.ops.convert_to_numpy(tokens[name])
        for name in ("token_ids", "padding_mask")
    }


def token_classification():
    model = on_sequence(keras.layers.Dense(5, name="tags"))
    return model, token_inputs(), RNG.integers(0, 5, (8, 16)), logits_loss()


def two_outputs():
    def heads(sequence):
        return {
            "topic": keras.layers.Dense(3, name="topic")(sequence[:, 0]),
            "tone": keras.layers.Dense(1, name="tone")(sequence[:, 0]),
        }

    labels = {
        "topic": RNG.integers(0, 3, 8),
        "tone": RNG.integers(0, 2, (8, 1)),
    }
    losses = {
        "topic": logits_loss(),
        "tone": logits_loss("BinaryCrossentropy"),
    }
    return on_sequence(heads), token_inputs(), labels, losses


def masked_language_model():
    return backbones.tiny_masked_lm(), TEXTS, None, logits_loss()


def sequence_to_sequence():
    letters = [*"abcdefghijklmnopqrstuvwxyzĠ", "Ġa", "<mask>"]
    letters = ["<s>", "<pad>", "</s>", *letters]
    tokenizer = keras_hub.models.BartTokenizer(
        vocabulary={letter: i for i, letter in enumerate(letters)},
        merges=["Ġ a"],
    )
    backbone = keras_hub.models.BartBackbone(
        vocabulary_size=len(letters),
        num_layers=1,
        num_heads=2,
        hidden_dim=16,
        intermediate_dim=32,
        max_sequence_length=16,
    )
    preprocessor = keras_hub.models.BartSeq2SeqLMPreprocessor(
        tokenizer, encoder_sequence_length=16, decoder_sequence_length=9
    )
    model = keras_hub.models.BartSeq2SeqLM(backbone, preprocessor=preprocessor)
    x = {"encoder_text": TEXTS, "decoder_text": [x[:6] for x in TEXTS]}
    return randomize(model), x, None, logits_loss()


def causal_language_model():
    letters = [*"abcdefghijklmnopqrstuvwxyzĠ", "Ġa", "<|endoftext|>"]
    tokenizer = keras_hub.models.GPT2Tokenizer(
        vocabulary={letter: i for i, letter in enumerate(letters)},
        merges=["Ġ a"],
    )
    backbone = keras_hub.models.GPT2Backbone(
        vocabulary_size=len(letters),
        num_layers=1,
        num_heads=2,
        hidden_dim=16,
        intermediate_dim=32,
        dropout=0.1,
        max_sequence_length=16,
    )
    preprocessor = keras_hub.models.GPT2CausalLMPreprocessor(
        tokenizer, sequence_length=16
    )
    model = keras_hub.models.GPT2CausalLM(backbone, preprocessor=preprocessor)
    return randomize(model), TEXTS, None, logits_loss()


TASKS = {
    "binary": lambda: classification(
        1,
        np.reshape(SENTIMENTS, (-1, 1)),
        logits_loss("BinaryCrossentropy"),
    ),
    "multi-class": lambda: classification(2, SENTIMENTS, logits_loss()),
    "multi-label": lambda: classification(
        4, RNG.integers(0, 2, (8, 4)), logits_loss("BinaryCrossentropy")
    ),
    "regression": regression,
    "token classification": token_classification,
    "two outputs": two_outputs,
    "masked language model": masked_language_model,
    "causal language model": causal_language_model,
    "sequence to sequence": sequence_to_sequence,
}


# A masked language model doesn't use the pooled output.
@pytest.mark.filterwarnings("ignore:Gradients do not exist")
@pytest.mark.parametrize("task", TASKS)
def test_task(task):
    inner, x, y, loss = TASKS[task]()
    model = keras_uegr.UEGRModel(
        without_own_dropout(inner),
        perturbation=keras_uegr.FastGradient(0.1),
        dropout=late_dropout(),
        token_share=1,
        warmup_steps=0,
        embedding="token_embedding",
    )
    model.compile(
        keras_uegr.SaliencyMaskedOptimizer(keras.optimizers.RMSprop(0.01)), loss
    )
    history = model.fit(
        x, y, batch_size=8, shuffle=False, epochs=30, verbose=0
    ).history
    first, second, *_, last = (
        dict(zip(history, values, strict=True))
        for values in zip(*history.values(), strict=True)
    )
    assert_perturbation_reaches_the_model(first)
    assert_sub_models_differ(second)
    assert last["clean_loss"] < 0.9 * first["clean_loss"]


def test_causal_language_model_learns_from_unpadded_tokens_alone():
    inner, _, _, loss = causal_language_model()
    preprocessor = inner.preprocessor
    texts = ["the film", "a", "quite a warm and funny story"]
    model = keras_uegr.UEGRModel(without_own_dropout(inner), warmup_steps=0)
    model.compile(keras.optimizers.SGD(0.0), loss)
    logs = model.fit(texts, batch_size=3, verbose=0).history
    x, labels, _ = preprocessor(texts)
    logits = keras.ops.convert_to_numpy(inner(x, training=False))
    labels = keras.ops.convert_to_numpy(labels)
    top = logits.max(axis=-1, keepdims=True)
    log_sum = np.log(np.exp(logits - top).sum(axis=-1)) + top[..., 0]
    chosen = np.take_along_axis(logits, labels[..., None], axis=-1)[..., 0]
    losses = log_sum - chosen
    # To each text the end token is added, with the same id as the padding.
    tokens = [preprocessor.tokenizer(text) for text in texts]
    lengths = [min(len(ids) + 1, labels.shape[1]) for ids in tokens]
    unpadded = np.arange(labels.shape[1]) < np.array(lengths)[:, None]
    assert 0 < unpadded.mean() < 0.8
    # Keras divides a weighted sum by the number of all positions.
    assert logs["clean_loss"][0] == pytest.approx(
        losses[unpadded].sum() / losses.size, rel=1e-4
    )


def test_causal_language_model_generates_after_training():
    inner, x, _, loss = causal_language_model()
    model = keras_uegr.UEGRModel(inner, warmup_steps=0)
    model.compile("adam", loss)
    before = inner.get_weights()
    model.fit(x, batch_size=8, verbose=0)
    fresh = causal_language_model()[0]
    fresh.set_weights(inner.get_weights())
    generated = []
    for task in (inner, fresh):
        task.compile(sampler="greedy")
        generated.append(task.generate("the film", max_length=14))
    assert generated[0] == generated[1]
    assert len(generated[0]) > len("the film")
    assert any(
        (one != other).any()
        for one, other in zip(before, inner.get_weights(), strict=True)
    )
