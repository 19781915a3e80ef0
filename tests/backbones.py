"""Tiny models with random weights, and texts for them: offline and fast.

Each function returns a fresh model. Its weights depend on the seed alone: two
calls give equal models, on every backend.
"""

import keras
import keras_hub
import numpy as np

POSITIVE = ["good", "great", "happy", "bright", "warm", "kind", "funny", "best"]
NEGATIVE = ["bad", "awful", "sad", "dark", "cold", "rude", "boring", "worst"]
# fmt: off
NEUTRAL = [
    "the", "a", "an", "this", "that", "it", "is", "was", "and", "but", "with",
    "of", "in", "my", "our", "film", "story", "actor", "scene", "music", "very",
    "quite", "so", "really",
]
# fmt: on
SPECIAL_TOKENS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
VOCABULARY = SPECIAL_TOKENS + NEUTRAL + POSITIVE + NEGATIVE


def tiny_texts(n, seed=0):
    """Sentences over `VOCABULARY` and their labels.

    A sentence holds one to three words of praise (label 1) or of blame
    (label 0) among one to eight neutral ones.

    Args:
        n: int. Number of sentences.
        seed: int. Defaults to `0`.

    Returns:
        A list of `n` strings and a list of `n` ints, 0 or 1.
    """
    rng = np.random.default_rng(seed)
    texts, labels = [], []
    for _ in range(n):
        label = int(rng.integers(2))
        opinion = rng.choice([NEGATIVE, POSITIVE][label], rng.integers(1, 4))
        words = np.append(rng.choice(NEUTRAL, rng.integers(1, 9)), opinion)
        texts.append(" ".join(rng.permutation(words).tolist()))
        labels.append(label)
    return texts, labels


def randomize(model, seed=0):
    """Draws every matrix of `model` anew, and returns `model`.

    Pretraining initializers are so small that all outputs of a model of width
    16 would be nearly equal, and tests that compare them could not fail.
    """
    rng = np.random.default_rng(seed)
    for weight in model.weights:
        if len(weight.shape) > 1:
            weight.assign(rng.normal(0.0, 0.3, weight.shape))
    return model


def tiny_bert_tokenizer():
    """A WordPiece tokenizer of `VOCABULARY`."""
    return keras_hub.tokenizers.BertTokenizer(
        vocabulary=VOCABULARY, lowercase=True
    )


def tiny_bert_backbone(dropout=0.1, sequence_length=16, num_layers=1):
    """A `BertBackbone` of width 16."""
    return keras_hub.models.BertBackbone(
        vocabulary_size=len(VOCABULARY),
        num_layers=num_layers,
        num_heads=2,
        hidden_dim=16,
        intermediate_dim=32,
        dropout=dropout,
        max_sequence_length=sequence_length,
        num_segments=2,
    )


def tiny_bert(
    dropout=0.1,
    sequence_length=16,
    num_classes=2,
    preprocessor=True,
    activation=None,
    num_layers=1,
    seed=0,
):
    """A `BertTextClassifier` of width 16.

    Args:
        dropout: float. Rate of every dropout layer. Defaults to `0.1`.
        sequence_length: int. Tokens of a preprocessed text. Defaults to `16`.
        num_classes: int. Defaults to `2`.
        preprocessor: bool. Whether the classifier takes raw strings in its
            own `fit`. Defaults to `True`.
        activation: string or `None`. Of the output. Defaults to `None`.
        num_layers: int. Defaults to `1`: each takes time to compile.
        seed: int. Of the weights. Defaults to `0`.
    """
    backbone = tiny_bert_backbone(dropout, sequence_length, num_layers)
    if preprocessor:
        preprocessor = keras_hub.models.BertTextClassifierPreprocessor(
            tiny_bert_tokenizer(), sequence_length=sequence_length
        )
    classifier = keras_hub.models.BertTextClassifier(
        backbone,
        num_classes=num_classes,
        preprocessor=preprocessor or None,
        activation=activation,
        dropout=dropout,
    )
    return randomize(classifier, seed)


def tiny_masked_lm_preprocessor(sequence_length=16):
    """Masks tokens at random; makes labels and weights itself."""
    return keras_hub.models.BertMaskedLMPreprocessor(
        tiny_bert_tokenizer(),
        sequence_length=sequence_length,
        mask_selection_length=4,
    )


def tiny_masked_lm(sequence_length=16, seed=0):
    """A `BertMaskedLM` of 1 layer, width 16."""
    masked_lm = keras_hub.models.BertMaskedLM(
        tiny_bert_backbone(sequence_length=sequence_length),
        preprocessor=tiny_masked_lm_preprocessor(sequence_length),
    )
    return randomize(masked_lm, seed)


def tiny_llama(num_classes=2, seed=0):
    """A classifier on a `LlamaBackbone`: every dropout rate in it is 0.

    A functional `keras.Model` without a preprocessor; it takes a dictionary of
    `token_ids` and `padding_mask`, and has `backbone` as its attribute.
    """
    backbone = keras_hub.models.LlamaBackbone(
        vocabulary_size=len(VOCABULARY),
        num_layers=1,
        num_query_heads=2,
        num_key_value_heads=1,
        hidden_dim=16,
        intermediate_dim=32,
    )
    pooled = keras.layers.GlobalAveragePooling1D()(
        backbone.output, mask=backbone.input["padding_mask"]
    )
    outputs = keras.layers.Dense(num_classes, name="logits")(pooled)
    model = keras.Model(backbone.input, outputs)
    model.backbone = backbone
    return randomize(model, seed)


def tiny_gpt2_preprocessor(sequence_length=16):
    """Spells letter by letter; makes labels and weights itself."""
    letters = "abcdefghijklmnopqrstuvwxyz"
    spaced = [f"Ġ{letter}" for letter in letters]
    vocabulary = ["<|endoftext|>", "Ġ", *letters, *spaced]
    tokenizer = keras_hub.tokenizers.GPT2Tokenizer(
        vocabulary={token: index for index, token in enumerate(vocabulary)},
        merges=[f"Ġ {letter}" for letter in letters],
    )
    return keras_hub.models.GPT2CausalLMPreprocessor(
        tokenizer, sequence_length=sequence_length
    )


def tiny_gpt2(dropout=0.1, sequence_length=16, seed=0):
    """A `GPT2CausalLM` of 1 layer, width 16."""
    preprocessor = tiny_gpt2_preprocessor(sequence_length)
    causal_lm = keras_hub.models.GPT2CausalLM(
        keras_hub.models.GPT2Backbone(
            vocabulary_size=preprocessor.tokenizer.vocabulary_size(),
            num_layers=1,
            num_heads=2,
            hidden_dim=16,
            intermediate_dim=32,
            dropout=dropout,
            max_sequence_length=sequence_length,
        ),
        preprocessor=preprocessor,
    )
    return randomize(causal_lm, seed)


def tiny_inputs(n, sequence_length=16, seed=0):
    """Tokens of `tiny_texts` as the preprocessor of `tiny_bert` gives them.

    Returns:
        A dictionary of NumPy arrays and a NumPy array of labels.
    """
    texts, labels = tiny_texts(n, seed)
    preprocessor = keras_hub.models.BertTextClassifierPreprocessor(
        tiny_bert_tokenizer(), sequence_length=sequence_length
    )
    tokens = preprocessor(texts)
    return (
        {k: keras.ops.convert_to_numpy(v) for k, v in tokens.items()},
        np.array(labels, "int32"),
    )
