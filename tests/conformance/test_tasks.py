"""Each kind of task, trained by a compiled UEGR step."""

import keras
import keras_hub
import numpy as np
import pytest

import keras_uegr
from tests import backbones
from tests.backbones import randomize, tiny_bert, tiny_texts

pytestmark = pytest.mark.slow

TEXTS, SENTIMENTS = tiny_texts(8)
RNG = np.random.default_rng(0)


def logits_loss(kind="SparseCategoricalCrossentropy"):
    return getattr(keras.losses, kind)(from_logits=True)


def classification(num_classes, labels, loss):
    return tiny_bert(num_classes=num_classes), TEXTS, np.array(labels), loss


def regression():
    labels = RNG.normal(size=(8, 1))
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
}


# A masked language model doesn't use the pooled output.
@pytest.mark.filterwarnings("ignore:Gradients do not exist")
@pytest.mark.parametrize("task", TASKS)
def test_task(task):
    inner, x, y, loss = TASKS[task]()
    model = keras_uegr.UEGRModel(
        inner, warmup_steps=0, embedding="token_embedding"
    )
    model.compile(
        keras_uegr.SaliencyMaskedOptimizer(keras.optimizers.Adam(0.01)), loss
    )
    history = model.fit(
        x, y, batch_size=8, shuffle=False, epochs=30, verbose=0
    ).history
    assert history["perturbation_norm"][0] > 1e-2
    assert history["js_divergence"][0] > 1e-8
    assert history["clean_loss"][-1] < 0.9 * history["clean_loss"][0]
    if task == "causal language model":
        assert isinstance(inner.generate("the film", max_length=12), str)
