"""Each test fails when a new Keras changes what the package relies on."""

import types

import keras
import numpy as np
import pytest
from keras import ops

from keras_uegr import keras_internals
from tests.backbones import tiny_bert
from tests.pooled_model import pooled_model


class Private(keras.layers.Layer):
    """Keeps its layers private, one of them inside a list."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self._inner = keras.layers.Dropout(0.1, name="inner")
        self._several = [keras.layers.Dense(2, name="in_list")]

    def call(self, inputs):
        return self._several[0](self._inner(inputs))


def test_sublayers_reaches_private_layers_and_lists():
    inputs = keras.Input((4,))
    outer = Private(name="outer")
    model = keras.Model(inputs, outer(inputs))
    layers = keras_internals.sublayers(model)
    names = [layer.name for layer in layers]
    assert sorted(names) == sorted(
        [model.layers[0].name, "outer", "inner", "in_list"]
    )
    # The public attribute stops at the first level.
    assert "inner" not in [layer.name for layer in model.layers]


def test_sublayers_names_a_shared_layer_once_and_leaves_out_the_model():
    inputs = keras.Input((4,))
    shared = keras.layers.Dense(4, name="shared")
    model = keras.Model(inputs, shared(shared(inputs)))
    layers = keras_internals.sublayers(model)
    assert [layer.name for layer in layers].count("shared") == 1
    assert model not in layers


def test_sublayers_reaches_the_dropouts_of_kerashub_blocks():
    model = tiny_bert(preprocessor=False, num_layers=2)
    dropouts = [
        layer
        for layer in keras_internals.sublayers(model)
        if isinstance(layer, keras.layers.Dropout)
    ]
    assert len(dropouts) == 8


def test_statistics_are_what_layers_write_and_not_what_is_frozen():
    normalization = keras.layers.BatchNormalization()
    frozen = keras.layers.Dense(2, trainable=False)
    with_lora = keras.layers.Dense(2)
    block = keras.Sequential([frozen, normalization, with_lora])
    inputs = keras.Input((3,))
    outputs = keras.layers.Dropout(0.5)(block(inputs))
    model = keras.Model(inputs, outputs)
    with_lora.enable_lora(1)
    assert len(model.non_trainable_weights) == 5
    found = keras_internals.statistics(model)
    expected = [normalization.moving_mean, normalization.moving_variance]
    assert {id(x) for x in found} == {id(x) for x in expected}


@pytest.mark.parametrize("mode", ["int8", "int4"])
def test_quantized_weights_are_no_statistics(mode):
    dense = keras.layers.Dense(64)
    dense.build((None, 64))
    dense.quantize(mode)
    kernel = [x for x in dense.variables if x.dtype in ("int8", "uint8")]
    assert kernel
    found = keras_internals.statistics(dense)
    assert not {id(x) for x in kernel} & {id(x) for x in found}


@pytest.mark.parametrize(
    "name",
    [
        "CategoricalCrossentropy",
        "SparseCategoricalCrossentropy",
        "BinaryCrossentropy",
        "CosineSimilarity",
    ],
)
def test_axis_of_a_loss(name):
    make_loss = getattr(keras.losses, name)
    assert keras_internals.axis_of(make_loss()) == -1
    assert keras_internals.axis_of(make_loss(axis=1)) == 1
    assert keras_internals.axis_of(keras.losses.MeanSquaredError()) == -1
    assert keras_internals.axis_of("mean_squared_error") == -1


def test_trace_calls_the_function_on_known_sizes_and_changes_nothing():
    inputs = keras.Input((None, 3))
    model = keras.Model(inputs, keras.layers.Dense(2)(inputs))
    nodes, shapes = len(model._inbound_nodes), []

    def function(x):
        shapes.append(tuple(x.shape))
        return model(x, training=True)

    keras_internals.trace(function, model.input)
    # Some backends trace twice, to tell what sizes depend on each other.
    assert set(shapes) == {(2, 2, 3)}
    assert len(model._inbound_nodes) == nodes


def test_build_for_training_creates_slots_and_metrics_and_trains_nothing():
    inputs = keras.Input((3,))
    model = keras.Model(inputs, keras.layers.Dense(2)(inputs))
    model.compile("adam", "mse", metrics=["mae"])
    before = model.get_weights()
    data = (keras.KerasTensor((None, 3)), keras.KerasTensor((None, 2)))
    keras_internals.build_for_training(model, data)
    assert model.optimizer.built
    # Mean and count, of the loss and of the metric.
    assert len(model.metrics_variables) == 4
    for old, new in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)


def test_compiled_loss_leaves_out_regularization():
    inputs = keras.Input((3,))
    layer = keras.layers.Dense(2, kernel_regularizer=keras.regularizers.L2(0.5))
    model = keras.Model(inputs, layer(inputs))
    model.compile("sgd", keras.losses.MeanSquaredError())
    x, y = np.ones((4, 3), "float32"), np.zeros((4, 2), "float32")
    weight = np.array([1.0, 0.0, 2.0, 1.0], "float32")
    y, weight = ops.convert_to_tensor(y), ops.convert_to_tensor(weight)
    outputs = model(x)
    loss = keras_internals.compiled_loss(model)(y, outputs, weight)
    with_regularization = model.compute_loss(
        y=y, y_pred=outputs, sample_weight=weight
    )
    kernel, values = map(ops.convert_to_numpy, (layer.kernel, outputs))
    expected = np.square(values).mean()
    assert float(ops.convert_to_numpy(loss)) == pytest.approx(
        expected, rel=1e-5
    )
    assert float(ops.convert_to_numpy(with_regularization)) == pytest.approx(
        expected + 0.5 * np.square(kernel).sum(), rel=1e-5
    )


def test_compiled_output_losses_are_one_path_and_loss_per_output():
    inputs = keras.Input((3,))
    outputs = {
        "topic": keras.layers.Dense(3, name="topic")(inputs),
        "tone": keras.layers.Dense(1, name="tone")(inputs),
    }
    model = keras.Model(inputs, outputs)
    model.compile(
        "sgd",
        {
            "topic": keras.losses.SparseCategoricalCrossentropy(True),
            "tone": "mse",
        },
    )
    y = {"topic": ops.zeros((2,)), "tone": ops.zeros((2, 1))}
    model.compute_loss(y=y, y_pred=model(np.ones((2, 3))))
    found = dict(keras_internals.compiled_output_losses(model))
    assert set(found) == {("topic",), ("tone",)}
    assert all(isinstance(x, keras.losses.Loss) for x in found.values())
    assert found["topic",].get_config()["from_logits"]


def test_labels_by_path_are_those_that_keras_takes_for_an_output():
    inputs = keras.Input((3,))
    # Neither of these orders is that of the names of the layers.
    outputs = {
        "tone": keras.layers.Dense(1, name="first")(inputs),
        "mood": keras.layers.Dense(1, name="second")(inputs),
    }
    model = keras.Model(inputs, outputs)
    model.compile("sgd", {"tone": "mse", "mood": "mse"})
    labels = [np.full((2, 1), 5.0), np.full((2, 1), 7.0)]
    y_pred = {"tone": ops.zeros((2, 1)), "mood": ops.ones((2, 1))}
    model.compute_loss(y=labels, y_pred=y_pred)
    found = keras_internals.labels_by_path(model, labels)
    losses = {metric.name: float(metric.result()) for metric in model.metrics}
    for path, _ in keras_internals.compiled_output_losses(model):
        (name,) = path
        expected = np.square(found[name] - ops.convert_to_numpy(y_pred[name]))
        assert losses[f"{name}_loss"] == pytest.approx(expected.mean())


@pytest.mark.parametrize("losses", [{"b": "mse"}, {"a": None, "b": "mse"}])
def test_labels_by_path_of_some_outputs_are_those_with_a_loss(losses):
    inputs = keras.Input((3,))
    outputs = {name: keras.layers.Dense(1)(inputs) for name in ("a", "b")}
    model = keras.Model(inputs, outputs)
    model.compile("sgd", losses)
    labels = [np.full((2, 1), 5.0)]
    y_pred = {name: ops.zeros((2, 1)) for name in ("a", "b")}
    model.compute_loss(y=labels, y_pred=y_pred)
    assert keras_internals.labels_by_path(model, labels)["b"] is labels[0]


def test_compiled_output_losses_of_a_single_output_have_an_empty_path():
    model = pooled_model(classes=1)
    model.compile("sgd", "mse")
    model.compute_loss(y=ops.zeros((1, 1)), y_pred=model(np.array([[1, 2]])))
    ((path, loss),) = keras_internals.compiled_output_losses(model)
    assert path == ()
    assert isinstance(loss, keras.losses.Loss)


@pytest.mark.parametrize(
    ("layer", "arguments", "inputs", "expected"),
    [
        ("Dropout", {}, (2, 5, 4), (2, 5, 4)),
        ("Dropout", {"noise_shape": (None, 1, 4)}, (2, 5, 4), (2, 1, 4)),
        ("Dropout", {"noise_shape": (2, 1, None)}, (2, 5, 4), (2, 1, 4)),
        ("SpatialDropout1D", {}, (2, 5, 4), (2, 1, 4)),
        (
            "SpatialDropout2D",
            {"data_format": "channels_last"},
            (2, 5, 6, 4),
            (2, 1, 1, 4),
        ),
    ],
)
def test_noise_shape_is_that_of_the_layers_own_mask(
    layer, arguments, inputs, expected
):
    dropout = getattr(keras.layers, layer)(0.5, **arguments)
    x = ops.ones(inputs)
    assert tuple(keras_internals.noise_shape(dropout, x)) == expected
    # The mask of the layer itself is constant along the axes of size 1.
    dropped = ops.convert_to_numpy(dropout(x, training=True))
    for axis, size in enumerate(expected):
        if size == 1 and inputs[axis] > 1:
            first = dropped.take([0], axis=axis)
            np.testing.assert_array_equal(dropped - first, 0 * dropped)
    assert 0 < (dropped == 0).mean() < 1


@pytest.mark.parametrize(
    ("layer", "arguments", "attribute"),
    [
        ("MultiHeadAttention", {"num_heads": 2, "key_dim": 4}, "_dropout"),
        (
            "GroupQueryAttention",
            {"head_dim": 4, "num_query_heads": 2, "num_key_value_heads": 1},
            "dropout",
        ),
    ],
)
def test_attention_calls_its_dropout_layer_at_rate_zero_on_request(
    layer, arguments, attribute
):
    inputs = keras.Input((3, 4))
    attention = getattr(keras.layers, layer)(**arguments)
    model = keras.Model(inputs, attention(inputs, inputs))
    (dropout,) = [
        found
        for found in keras_internals.sublayers(model)
        if isinstance(found, keras.layers.Dropout)
    ]
    calls = []

    def counted(weights, *args, **kwargs):
        calls.append(tuple(weights.shape))
        return weights

    dropout.call = counted
    x = ops.ones((2, 3, 4))
    plain = ops.convert_to_numpy(model(x, training=True))
    assert calls == []
    with keras_internals.attention_dropout(model):
        reached = ops.convert_to_numpy(model(x, training=True))
    assert calls == [(2, 2, 3, 3)]
    np.testing.assert_allclose(reached, plain, atol=1e-5)
    with (  # noqa: PT012
        pytest.raises(RuntimeError, match="inside"),
        keras_internals.attention_dropout(model),
    ):
        assert getattr(attention, attribute) == 1
        raise RuntimeError("inside")
    assert getattr(attention, attribute) == 0
    model(x, training=True)
    assert len(calls) == 1


def test_layers_that_compute_with_their_rate_keep_it():
    class Own(keras.layers.Layer):
        def __init__(self):
            super().__init__()
            self.dropout = 0
            self.dropping = keras.layers.Dropout(0)

        def call(self, inputs):
            return self.dropping(inputs) * (1 - self.dropout)

    model = keras.Sequential([Own()])
    with keras_internals.attention_dropout(model):
        outputs = ops.convert_to_numpy(model(ops.ones((2, 3))))
    np.testing.assert_array_equal(outputs, 1.0)


def test_carry_mask_gives_the_target_the_mask_of_the_source():
    layer = keras.layers.Embedding(5, 3, mask_zero=True)
    source = layer(np.array([[1, 2, 0]]))
    target = source + 1.0
    pooling = keras.layers.GlobalAveragePooling1D()
    unmasked = ops.convert_to_numpy(pooling(target))
    assert keras_internals.carry_mask(source, target) is target
    values = ops.convert_to_numpy(target)
    np.testing.assert_allclose(unmasked, values.mean(axis=1), rtol=1e-5)
    np.testing.assert_allclose(
        ops.convert_to_numpy(pooling(target)),
        values[:, :2].mean(axis=1),
        rtol=1e-5,
    )


def test_carry_mask_of_a_tensor_without_one_changes_nothing():
    target = ops.ones((1, 3, 2))
    assert keras_internals.carry_mask(ops.ones((1, 3, 2)), target) is target
    pooled = keras.layers.GlobalAveragePooling1D()(target)
    np.testing.assert_array_equal(ops.convert_to_numpy(pooled), [[1.0, 1.0]])


def test_seed_generator_states_finds_all_of_them():
    model = tiny_bert(preprocessor=False, num_layers=2)
    states = keras_internals.seed_generator_states(model)
    # One for each of the 8 dropout layers; an attention layer has another.
    owners = [
        layer.seed_generator.state
        for layer in keras_internals.sublayers(model)
        if getattr(layer, "seed_generator", None) is not None
    ]
    assert len(owners) >= 8
    assert {id(state) for state in states} == {id(state) for state in owners}
    assert len(states) == len(owners)


def test_a_draw_advances_the_seed_generator_state():
    inputs = keras.Input((4,))
    model = keras.Model(inputs, keras.layers.Dropout(0.5, seed=3)(inputs))
    (state,) = keras_internals.seed_generator_states(model)
    before = ops.convert_to_numpy(state).copy()
    model(np.ones((2, 4)), training=True)
    assert (ops.convert_to_numpy(state) != before).any()


GRADIENTS = [np.array([3.0, 4.0]), None, np.array([-0.1, 12.0])]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({}, [[3.0, 4.0], None, [-0.1, 12.0]]),
        ({"clipvalue": 3.5}, [[3.0, 3.5], None, [-0.1, 3.5]]),
        ({"clipnorm": 10.0}, [[3.0, 4.0], None, [-1 / 12, 10.0]]),
        (
            {"global_clipnorm": 1.3},
            [[0.3, 0.4], None, [-0.01, 1.2]],
        ),
    ],
    ids=["none", "value", "norm", "global norm"],
)
def test_applied_gradients_are_what_the_optimizer_applies(arguments, expected):
    optimizer = keras.optimizers.SGD(1.0, **arguments)
    gradients = [
        None if x is None else ops.convert_to_tensor(x, "float32")
        for x in GRADIENTS
    ]
    shapes = [(2,), (2,), (2,)]
    owners = [keras.Variable(np.zeros(shape)) for shape in shapes]
    optimizer.build(owners)
    clipped = keras_internals.applied_gradients(optimizer, gradients, owners)
    assert [x is None for x in clipped] == [False, True, False]
    for value, wanted in zip(clipped, expected, strict=True):
        if wanted is not None:
            np.testing.assert_allclose(
                ops.convert_to_numpy(value), wanted, rtol=1e-3
            )
    # The gradients that were handed in are as they were.
    np.testing.assert_allclose(ops.convert_to_numpy(gradients[2]), [-0.1, 12.0])
    variables = owners[::2]
    optimizer.apply(gradients[::2], variables)
    for variable, value in zip(variables, clipped[::2], strict=True):
        np.testing.assert_allclose(
            ops.convert_to_numpy(variable),
            -ops.convert_to_numpy(value),
            rtol=1e-5,
        )


def test_members_of_an_optimizer_that_a_subclass_goes_by():
    """`SaliencyMaskedOptimizer` reads and extends what its base class keeps."""
    variables = [keras.Variable(ops.zeros(x)) for x in ((2,), (3, 2))]
    optimizer = keras.optimizers.SGD(1.0, gradient_accumulation_steps=2)
    optimizer.build(variables)
    assert optimizer._trainable_variables == variables
    assert [optimizer._get_variable_index(x) for x in variables] == [0, 1]
    shapes = [x.shape for x in optimizer._accumulated_gradients]
    assert shapes == [(2,), (3, 2)]
    assert optimizer._iterations is optimizer._variables[0]
    assert optimizer.variables == optimizer._variables
    for step in range(1, 4):
        optimizer.apply([ops.ones(x.shape) for x in variables], variables)
        assert int(optimizer._iterations) == step
        assert int(optimizer.iterations) == step // 2


def test_moving_averages_are_those_that_finalizing_assigns():
    variable = keras.Variable(ops.zeros((2,)))
    inner = keras.optimizers.SGD(1.0, use_ema=True, ema_momentum=0.5)
    outer = types.SimpleNamespace(inner_optimizer=inner)
    with pytest.raises(AttributeError, match="moving_average"):
        keras_internals.moving_averages(outer)
    inner.build([variable])
    for _ in range(2):
        inner.apply([-ops.ones((2,))], [variable])
    (average,) = keras_internals.moving_averages(outer)
    assert not np.array_equal(*map(ops.convert_to_numpy, (average, variable)))
    inner.finalize_variable_values([variable])
    np.testing.assert_array_equal(
        *map(ops.convert_to_numpy, (average, variable))
    )


@pytest.mark.parametrize(
    ("arguments", "names"),
    [
        ({"mode": "full"}, ["model", "first", "second"]),
        ({"mode": "larger_than"}, ["model", "first", "second"]),
        ({"mode": "list_of_layers", "layer_names": ["second"]}, ["second"]),
        ({"mode": "activations"}, []),
        ({"mode": None}, []),
    ],
)
def test_rematerialized_layers_are_those_of_the_scope(arguments, names):
    inputs = keras.Input((4,))
    with keras.RematScope(**arguments):
        layers = [keras.layers.Dense(2, name=x) for x in ("first", "second")]
        model = keras.Sequential([inputs, *layers], name="model")
    found = keras_internals.rematerialized_layers(model)
    layer_names = {"model", "first", "second"}
    assert [x.name for x in found if x.name in layer_names] == names
