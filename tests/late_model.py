"""A model that has no variables before it is called."""

import keras
from keras import ops


@keras.saving.register_keras_serializable("tests")
class LateModel(keras.Model):
    """Embedding -> mean pooling -> dropout -> dense."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.embedding = keras.layers.Embedding(20, 5)
        self.dropout = keras.layers.Dropout(0.1)
        self.outer = keras.layers.Dense(3)

    def call(self, inputs):
        embedded = ops.mean(self.embedding(inputs), axis=1)
        return self.outer(self.dropout(embedded))
