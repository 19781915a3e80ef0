"""One tiny model with random weights for each family, a line of data each.

Nothing drops in a model as it is built: what tells the sub-models apart has to
be found in it.
"""

import keras
import keras_hub

VOCABULARY_SIZE = 20
LENGTH = 8

_COMMON = {
    "vocabulary_size": VOCABULARY_SIZE,
    "num_layers": 1,
    "hidden_dim": 16,
    "intermediate_dim": 32,
}
_HEADS = {"num_heads": 2}
_ENCODER = {**_HEADS, "dropout": 0.0, "max_sequence_length": LENGTH}
_DECODER = {"num_query_heads": 2, "num_key_value_heads": 1}
_GEMMA = {**_DECODER, "head_dim": 8}
_PAIR = {"num_segments": 2}

# fmt: off
ENCODERS = {
    "ALBERT": ("AlbertBackbone", {**_ENCODER, **_PAIR, "embedding_dim": 8}),
    "BERT": ("BertBackbone", {**_ENCODER, **_PAIR}),
    "DistilBERT": ("DistilBertBackbone", _ENCODER),
    "DeBERTa-v3": ("DebertaV3Backbone", {**_ENCODER, "bucket_size": 4}),
    "ELECTRA": ("ElectraBackbone", {
        **_ENCODER, **_PAIR, "embedding_dim": 8, "vocab_size": VOCABULARY_SIZE,
        "vocabulary_size": None,
    }),
    "FNet": ("FNetBackbone", {**_ENCODER, **_PAIR, "num_heads": None}),
    "RoBERTa": ("RobertaBackbone", _ENCODER),
    "XLM-RoBERTa": ("XLMRobertaBackbone", _ENCODER),
    "RoFormer-v2": ("RoformerV2Backbone", {
        **_ENCODER, **_PAIR, "head_size": 8, "max_sequence_length": None,
    }),
}
DECODERS = {
    "GPT-2": ("GPT2Backbone", _ENCODER),
    "OPT": ("OPTBackbone", _ENCODER),
    "Bloom": ("BloomBackbone", {**_HEADS, "dropout": 0.0}),
    "Falcon": ("FalconBackbone", {
        "num_attention_heads": 2, "attention_dropout_rate": 0.0,
        "feedforward_dropout_rate": 0.0,
    }),
    "GPT-NeoX": ("GPTNeoXBackbone", {**_HEADS, "dropout": 0.0}),
    "Llama": ("LlamaBackbone", _DECODER),
    "Llama 3": ("Llama3Backbone", _DECODER),
    "Mistral": ("MistralBackbone", _DECODER),
    "Mixtral": ("MixtralBackbone", {**_DECODER, "num_experts": 2}),
    "Gemma": ("GemmaBackbone", _GEMMA),
    "Gemma 3": ("Gemma3Backbone", {
        **_GEMMA, "image_size": 16, "vision_encoder": None,
    }),
    "Phi-3": ("Phi3Backbone", _DECODER),
    "Qwen": ("QwenBackbone", _DECODER),
    "Qwen 3": ("Qwen3Backbone", _GEMMA),
}
ENCODER_DECODERS = {
    "T5": ("T5Backbone", {**_HEADS, "dropout": 0.0}),
    "BART": ("BartBackbone", _ENCODER),
}
# fmt: on
BACKBONES = {**ENCODERS, **DECODERS, **ENCODER_DECODERS}


def backbone(family):
    """The tiny backbone of a KerasHub family."""
    name, changes = BACKBONES[family]
    arguments = _COMMON | changes
    if "vision_encoder" not in arguments:
        arguments = {k: v for k, v in arguments.items() if v is not None}
    return getattr(keras_hub.models, name)(**arguments)


def _functional(layers):
    token_ids = keras.Input((None,), dtype="int32")
    outputs = token_ids
    for layer in layers:
        outputs = layer(outputs)
    return keras.Model(token_ids, outputs)


@keras.saving.register_keras_serializable("tests")
class AttentionClassifier(keras.Model):
    """A subclass of `keras.Model` that calls its own layers."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.embed = _embedding()
        self.attend = keras.layers.MultiHeadAttention(2, 8, dropout=0.1)
        self.pool = keras.layers.GlobalAveragePooling1D()
        self.classify = keras.layers.Dense(2)

    def call(self, token_ids):
        embedded = self.embed(token_ids)
        return self.classify(self.pool(self.attend(embedded, embedded)))


def _embedding():
    return keras.layers.Embedding(VOCABULARY_SIZE, 16, mask_zero=True)


def _layers(encoder):
    return [
        _embedding(),
        encoder,
        keras.layers.GlobalAveragePooling1D(),
        keras.layers.Dropout(0.1),
        keras.layers.Dense(2),
    ]


OTHER_MODELS = {
    "functional, LSTM": lambda: _functional(
        _layers(keras.layers.LSTM(8, return_sequences=True))
    ),
    "Sequential, GRU": lambda: keras.Sequential(
        _layers(keras.layers.GRU(8, return_sequences=True))
    ),
    "Sequential, Conv1D": lambda: keras.Sequential(
        _layers(keras.layers.Conv1D(8, 3, padding="same"))
    ),
    "subclass, MultiHeadAttention": AttentionClassifier,
}
