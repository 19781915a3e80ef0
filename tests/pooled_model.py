"""The small classifier of `tests/reference.py`, in Keras."""

import keras


def pooled_model(
    vocabulary=20,
    width=5,
    hidden=4,
    classes=3,
    parameters=None,
    rate=0.0,
    mask_zero=False,
    outputs=None,
    length=None,
):
    """Embedding -> mean pooling -> dense tanh -> dropout -> dense.

    Args:
        vocabulary, width, hidden, classes: Integers, the sizes.
        parameters: Optional dict of NumPy arrays, see `random_parameters`.
        rate: Float, of the dropout layer.
        mask_zero: Boolean, whether token 0 is padding.
        outputs: Optional function of the hidden layer that gives the outputs,
            instead of a dense layer of `classes`.
        length: Optional integer, the number of tokens.
    """
    token_ids = keras.Input((length,), dtype="int32", name="token_ids")
    x = keras.layers.Embedding(
        vocabulary, width, mask_zero=mask_zero, name="embedding"
    )(token_ids)
    x = keras.layers.GlobalAveragePooling1D()(x)
    x = keras.layers.Dense(hidden, activation="tanh", name="hidden")(x)
    x = keras.layers.Dropout(rate)(x)
    if outputs is None:
        y = keras.layers.Dense(classes, name="logits")(x)
    else:
        y = outputs(x)
    model = keras.Model(token_ids, y)
    if parameters is not None:
        for weight, value in zip(
            model.weights, parameters.values(), strict=True
        ):
            weight.assign(value)
    return model
