import math

import h5py
import keras
import numpy as np
import pytest
from keras import ops

from keras_uegr import SaliencyMaskedOptimizer
from tests.optimizers import reference

SHAPES = {"table": (12, 4), "kernel": (6, 5), "cube": (3, 2, 4), "bias": (5,)}

INNER = {
    "sgd": lambda: keras.optimizers.SGD(0.1),
    "momentum": lambda: keras.optimizers.SGD(0.1, momentum=0.9, nesterov=True),
    "adam": lambda: keras.optimizers.Adam(0.1),
    "adamw": lambda: keras.optimizers.AdamW(0.1, weight_decay=0.1),
    "adamw_clipnorm": lambda: keras.optimizers.AdamW(0.1, clipnorm=0.1),
    "adamw_clipvalue": lambda: keras.optimizers.AdamW(0.1, clipvalue=0.2),
    "adam_global_clipnorm": lambda: keras.optimizers.Adam(
        0.1, global_clipnorm=0.1
    ),
    "adamw_ema": lambda: keras.optimizers.AdamW(
        0.1, use_ema=True, ema_momentum=0.5, ema_overwrite_frequency=3
    ),
    "rmsprop_schedule": lambda: keras.optimizers.RMSprop(
        keras.optimizers.schedules.ExponentialDecay(0.1, 2, 0.5)
    ),
}


def new_variables(dtype="float32", seed=0):
    rng = np.random.default_rng(seed)
    return [
        keras.Variable(rng.normal(size=shape), dtype=dtype, name=name)
        for name, shape in SHAPES.items()
    ]


def gradients(step, dtype="float32"):
    rng = np.random.default_rng([1, step])
    arrays = [rng.normal(size=shape) for shape in SHAPES.values()]
    # Tokens that are not in the batch: other rows in each step.
    arrays[0][rng.permutation(12)[:8]] = 0.0
    return [array.astype("float32") for array in arrays]


def tensors(arrays, dtype="float32"):
    return [ops.convert_to_tensor(array, dtype=dtype) for array in arrays]


def apply(optimizer, arrays, variables):
    optimizer.apply(tensors(arrays, variables[0].dtype), variables)


def stateless_apply(optimizer, arrays, variables):
    """`apply`, by way of `stateless_apply` on JAX, as Keras does in `fit`."""
    if keras.backend.backend() != "jax":
        apply(optimizer, arrays, variables)
        return
    optimizer.build(variables)
    new_values, new_state = optimizer.stateless_apply(
        [variable.value for variable in optimizer.variables],
        tensors(arrays),
        [variable.value for variable in variables],
    )
    for variable, value in zip(
        variables + optimizer.variables, new_values + new_state, strict=True
    ):
        variable.assign(value)


def values(variables):
    return [ops.convert_to_numpy(variable) for variable in variables]


@pytest.mark.parametrize("inner", INNER)
def test_density_one_is_the_inner_optimizer_bit_for_bit(inner):
    plain, masked = new_variables(), new_variables()
    optimizer = INNER[inner]()
    wrapped = SaliencyMaskedOptimizer(INNER[inner](), density=1)
    for step in range(10):
        apply(optimizer, gradients(step), plain)
        apply(wrapped, gradients(step), masked)
    for expected, actual in zip(values(plain), values(masked), strict=True):
        np.testing.assert_array_equal(actual, expected)


@pytest.mark.parametrize("inner", INNER)
def test_density_zero_leaves_every_bit_but_of_dense_variables(inner):
    variables = new_variables()
    start = values(variables)
    optimizer = SaliencyMaskedOptimizer(INNER[inner](), density=0.0)
    for step in range(10):
        apply(optimizer, gradients(step), variables)
    for before, after in zip(start[:3], values(variables), strict=False):
        np.testing.assert_array_equal(after, before)
    assert np.abs(values(variables)[3] - start[3]).min() > 0


@pytest.mark.slow
@pytest.mark.parametrize("scope", ["variable", "global"])
@pytest.mark.parametrize("inner", INNER)
def test_ten_steps_equal_the_twin_and_keep_unselected_bits(inner, scope):
    variables, twin = new_variables(), new_variables()
    optimizer = SaliencyMaskedOptimizer(
        INNER[inner](), density=0.4, scope=scope, exact=True
    )
    plain = INNER[inner]()
    plain.build(twin)
    for step in range(10):
        before = values(variables)
        arrays = gradients(step)
        clipped = [
            ops.convert_to_numpy(x)
            for x in plain._clip_gradients(tensors(arrays))
        ]
        scores = [np.abs(a * b) for a, b in zip(before, clipped, strict=True)]
        if scope == "global":
            pooled = np.concatenate([x.ravel() for x in scores[:3]])
            selected = reference.top_mask(pooled, 0.4)
            ends = np.cumsum([x.size for x in scores[:3]])[:-1]
            masks = [
                part.reshape(x.shape)
                for part, x in zip(
                    np.split(selected, ends), scores[:3], strict=True
                )
            ]
        else:
            masks = [reference.top_mask(x, 0.4) for x in scores[:3]]
        masks.append(np.ones(5, bool))
        for variable, value in zip(twin, before, strict=True):
            variable.assign(value)
        apply(plain, arrays, twin)
        apply(optimizer, arrays, variables)
        for mask, old, stepped, new in zip(
            masks, before, values(twin), values(variables), strict=True
        ):
            np.testing.assert_array_equal(new[~mask], old[~mask])
            np.testing.assert_allclose(new[mask], stepped[mask], atol=1e-5)
            assert (new[mask] != old[mask]).any()
        fraction = sum(x.sum() for x in masks) / sum(x.size for x in masks)
        assert float(
            ops.convert_to_numpy(optimizer.updated_fraction)
        ) == pytest.approx(fraction, abs=1e-6)


@pytest.mark.parametrize("saliency", ["taylor", "gradient", "fisher"])
def test_a_single_step_selects_the_top_by_saliency(saliency):
    variables = new_variables()
    start = values(variables)
    optimizer = SaliencyMaskedOptimizer(
        "adam", density=0.3, saliency=saliency, exact=True
    )
    apply(optimizer, gradients(0), variables)
    for before, gradient, after in zip(
        start[:3], gradients(0), values(variables), strict=False
    ):
        score = reference.scores(saliency, before, gradient)
        np.testing.assert_array_equal(
            after != before, reference.top_mask(score, 0.3)
        )


def test_a_callable_saliency_is_used():
    variables = new_variables()
    start = values(variables)
    optimizer = SaliencyMaskedOptimizer(
        "sgd", density=0.3, saliency=lambda theta, g: ops.exp(theta), exact=True
    )
    apply(optimizer, gradients(0), variables)
    np.testing.assert_array_equal(
        values(variables)[1] != start[1],
        reference.top_mask(np.exp(start[1]), 0.3),
    )


def least_sensitive_first(theta, gradient):
    del theta
    return 1.0 / (1.0 + ops.abs(gradient))


@pytest.mark.parametrize("scope", ["variable", "global"])
@pytest.mark.parametrize("refresh_steps", [1, 2])
def test_scores_of_a_function_may_all_be_nearly_the_same(scope, refresh_steps):
    rng = np.random.default_rng(0)
    variable = keras.Variable(rng.normal(size=(90, 80)))
    gradient = rng.normal(size=(90, 80)).astype("float32") * 1e-3
    before = values([variable])[0]
    optimizer = SaliencyMaskedOptimizer(
        keras.optimizers.SGD(1e3),
        density=0.3,
        saliency=least_sensitive_first,
        scope=scope,
        refresh_steps=refresh_steps,
    )
    apply(optimizer, [gradient], [variable])
    updated = (values([variable])[0] != before).mean()
    assert updated == pytest.approx(0.3, abs=0.01)


def test_fisher_averages_over_steps():
    variables = new_variables()
    optimizer = SaliencyMaskedOptimizer(
        keras.optimizers.SGD(0.1), 0.3, "fisher", exact=True, fisher_decay=0.5
    )
    mean_square = 0.0
    for step in range(4):
        before = values(variables)[1]
        gradient = gradients(step)[1]
        mean_square = 0.5 * mean_square + 0.5 * gradient**2
        apply(optimizer, gradients(step), variables)
        np.testing.assert_array_equal(
            values(variables)[1] != before,
            reference.top_mask(mean_square, 0.3),
        )


def test_scores_are_float32_for_half_precision_variables():
    dtypes = set()

    def taylor(theta, gradient):
        dtypes.add(keras.backend.standardize_dtype(gradient.dtype))
        return ops.abs(theta * gradient)

    variables = new_variables("float16")
    optimizer = SaliencyMaskedOptimizer("sgd", 0.5, taylor, exact=True)
    # Products of about 1e-9 would all round to 0 in float16.
    arrays = [1e-3 * x for x in gradients(0)]
    for variable in variables:
        variable.assign(variable * 1e-4)
    apply(optimizer, arrays, variables)
    assert dtypes == {"float32"}
    assert {variable.dtype for variable in variables} == {"float16"}
    fraction = float(ops.convert_to_numpy(optimizer.updated_fraction))
    assert 0.3 < fraction < 0.7


def test_fisher_averages_of_half_precision_do_not_underflow():
    variables = new_variables("float16")
    optimizer = SaliencyMaskedOptimizer("sgd", 0.3, "fisher", fisher_decay=0.5)
    apply(optimizer, [1e-4 * x for x in gradients(0)], variables)
    averages = [v for v in optimizer.variables if "fisher" in v.path]
    assert len(averages) == 3
    for average, gradient in zip(averages, gradients(0), strict=False):
        np.testing.assert_allclose(
            values([average])[0], 0.5e-8 * gradient**2, rtol=0.01, atol=1e-13
        )


@pytest.mark.parametrize("inner", ["sgd", "adamw_clipvalue"])
def test_micro_batches_equal_one_batch(inner):
    whole, parts = new_variables(), new_variables()
    plain = SaliencyMaskedOptimizer(INNER[inner](), density=0.4)
    accumulating = SaliencyMaskedOptimizer(
        INNER[inner](), density=0.4, gradient_accumulation_steps=2
    )
    for update in range(2):
        micro = [gradients(2 * update + k) for k in range(2)]
        apply(
            plain, [np.mean(x, axis=0) for x in zip(*micro, strict=True)], whole
        )
        for k in range(2):
            before = values(parts)
            apply(accumulating, micro[k], parts)
            if k == 0:
                for old, new in zip(before, values(parts), strict=True):
                    np.testing.assert_array_equal(new, old)
        for expected, actual in zip(values(whole), values(parts), strict=True):
            np.testing.assert_allclose(actual, expected, atol=1e-5)
    assert int(ops.convert_to_numpy(accumulating.iterations)) == 2


def test_under_loss_scaling_the_mask_is_the_same():
    plain, scaled = new_variables(), new_variables()
    optimizer = SaliencyMaskedOptimizer(INNER["adamw"](), density=0.4)
    outer = keras.optimizers.LossScaleOptimizer(
        SaliencyMaskedOptimizer(INNER["adamw"](), density=0.4),
        initial_scale=1024.0,
    )
    for step in range(3):
        apply(optimizer, gradients(step), plain)
        stateless_apply(outer, [1024.0 * x for x in gradients(step)], scaled)
    for expected, actual in zip(values(plain), values(scaled), strict=True):
        np.testing.assert_allclose(actual, expected, atol=1e-6)
    before = values(scaled)
    stateless_apply(
        outer, [np.full_like(x, np.inf) for x in gradients(0)], scaled
    )
    for old, new in zip(before, values(scaled), strict=True):
        np.testing.assert_array_equal(new, old)


def test_zero_gradients_stay_finite_and_change_no_masked_variable():
    variables = new_variables()
    start = values(variables)
    optimizer = SaliencyMaskedOptimizer(INNER["adamw"](), density=0.4)
    apply(optimizer, [0.0 * x for x in gradients(0)], variables)
    for old, new in zip(start[:3], values(variables), strict=False):
        np.testing.assert_array_equal(new, old)
    assert np.isfinite(values(variables)[3]).all()


def test_rows_that_are_not_in_the_batch_are_never_updated():
    variables = new_variables()
    optimizer = SaliencyMaskedOptimizer(INNER["adamw"](), density=0.9)
    for step in range(5):
        before = values(variables)[0]
        apply(optimizer, gradients(step), variables)
        dead = (gradients(step)[0] == 0).all(axis=1)
        np.testing.assert_array_equal(values(variables)[0][dead], before[dead])


@pytest.mark.parametrize(
    ("saliency", "rows"),
    [("taylor", [2]), ("fisher", [1, 2]), ("inverse_gradient", [0, 1])],
)
def test_which_rows_without_a_gradient_are_updated(saliency, rows):
    table = keras.Variable(np.ones((3, 4)), name="table")
    optimizer = SaliencyMaskedOptimizer(
        INNER["adamw"](), 0.6, saliency, exact=True
    )
    # Row 0 is never in the batch, row 1 in the first, row 2 in the second.
    for step in range(2):
        before = values([table])[0]
        gradient = np.zeros((3, 4), "float32")
        gradient[step + 1] = 1.0
        apply(optimizer, [gradient], [table])
    updated = (values([table])[0] != before).any(axis=1)
    np.testing.assert_array_equal(np.flatnonzero(updated), rows)


def test_dense_variables_by_list_name_and_rank():
    variables = new_variables()
    start = values(variables)
    optimizer = SaliencyMaskedOptimizer(
        "adam", density=0.0, dense_variables=["^tab"]
    )
    optimizer.exclude_from_masking(var_list=[variables[2]])
    apply(optimizer, gradients(0), variables)
    changed = [
        (after != before).any()
        for before, after in zip(start, values(variables), strict=True)
    ]
    assert changed == [True, False, True, True]
    with pytest.raises(ValueError, match="before the optimizer is built"):
        optimizer.exclude_from_masking(var_names=["kern"])


def test_patterns_that_match_no_variable_are_told():
    patterns = ["^tab", "logit", "heads?$"]
    optimizer = SaliencyMaskedOptimizer("sgd", dense_variables=patterns)
    message = (
        r"path of no trainable variable: \['logit', 'heads\?\$'\].*'table'"
    )
    with pytest.warns(UserWarning, match=message):
        optimizer.build(new_variables())
    assert optimizer._is_masked == [False, True, True, False]


def test_config_round_trip():
    optimizer = SaliencyMaskedOptimizer(
        keras.optimizers.AdamW(0.25, weight_decay=0.1),
        density=0.2,
        saliency="fisher",
        scope="global",
        dense_variables=["logits"],
        gradient_accumulation_steps=3,
        fisher_decay=0.5,
        exact=True,
        seed=3,
        rank_noise=0.1,
        refresh_steps=4,
    )
    config = keras.optimizers.serialize(optimizer)
    twin = keras.optimizers.deserialize(config)
    assert keras.optimizers.serialize(twin) == config
    assert twin.inner_optimizer.weight_decay == 0.1
    assert float(ops.convert_to_numpy(twin.learning_rate)) == 0.25


def test_learning_rate_is_the_inner_optimizers():
    optimizer = SaliencyMaskedOptimizer("sgd")
    optimizer.learning_rate = 0.5
    rate = optimizer.inner_optimizer.learning_rate
    assert float(ops.convert_to_numpy(rate)) == 0.5


def small_model():
    return keras.Sequential(
        [
            keras.Input((4,)),
            keras.layers.Dense(6, activation="tanh"),
            keras.layers.Dense(3),
        ]
    )


def test_a_file_holds_the_inner_optimizer_once(tmp_path):
    model = small_model()
    model.compile(SaliencyMaskedOptimizer("adamw"), "mse")
    model.train_on_batch(np.ones((8, 4)), np.ones((8, 3)))
    path = tmp_path / "model.weights.h5"
    model.save_weights(path)
    sizes = []
    with h5py.File(path) as file:
        file["optimizer"].visititems(
            lambda _, item: sizes.append(getattr(item, "size", 0))
        )
    sizes_of_state = [
        math.prod(variable.shape) for variable in model.optimizer.variables
    ]
    assert sum(sizes) == sum(sizes_of_state)


def test_a_file_that_holds_it_twice_is_read():
    """As earlier versions wrote it."""
    saved, loaded = (SaliencyMaskedOptimizer("adamw") for _ in range(2))
    variables = new_variables()
    for optimizer in (saved, loaded):
        optimizer.build(variables)
    apply(saved, gradients(0), variables)
    store = dict(enumerate(values(saved.variables)))
    loaded.load_own_variables({str(key): x for key, x in store.items()})
    assert float(loaded.updated_fraction) == float(saved.updated_fraction) > 0
    for one, other in zip(
        values(loaded.variables), store.values(), strict=True
    ):
        np.testing.assert_array_equal(one, other)


@pytest.mark.slow
@pytest.mark.parametrize(
    "settings",
    [
        {"saliency": "fisher", "gradient_accumulation_steps": 2},
        {"saliency": "fisher", "refresh_steps": 4},
        {"rank_noise": 0.3, "refresh_steps": 4},
        {"scope": "tensor", "refresh_steps": 4},
        {"refresh_steps": 2, "gradient_accumulation_steps": 2},
    ],
)
def test_saved_model_resumes_identically(settings, tmp_path):
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(8, 4)), rng.normal(size=(8, 3))
    model = small_model()
    optimizer = SaliencyMaskedOptimizer("adamw", 0.3, **settings)
    model.compile(optimizer, "mse")
    for _ in range(3):
        model.train_on_batch(x, y)
    model.save(tmp_path / "model.keras")
    resumed = keras.saving.load_model(tmp_path / "model.keras")
    # Other batches: a selection that is made anew would be another.
    x, y = rng.normal(size=(8, 4)), rng.normal(size=(8, 3))
    for _ in range(3):
        model.train_on_batch(x, y)
        resumed.train_on_batch(x, y)
    for expected, actual in zip(
        model.weights + model.optimizer.variables,
        resumed.weights + resumed.optimizer.variables,
        strict=True,
    ):
        np.testing.assert_array_equal(
            ops.convert_to_numpy(actual), ops.convert_to_numpy(expected)
        )


@pytest.mark.parametrize("refresh_steps", [1, 2])
def test_the_second_step_is_not_traced_again(refresh_steps):
    traces = []

    def counting(theta, gradient):
        traces.append(1)
        return ops.abs(theta * gradient)

    model = small_model()
    optimizer = SaliencyMaskedOptimizer(
        "adam", 0.3, counting, refresh_steps=refresh_steps
    )
    model.compile(optimizer, "mse")
    x, y = np.ones((8, 4), "float32"), np.ones((8, 3), "float32")
    model.fit(x, y, batch_size=8, verbose=0)
    first = len(traces)
    model.fit(x, y, batch_size=8, epochs=3, verbose=0)
    # Not traced at all, it is called whenever it selects.
    calls = 4 // refresh_steps if keras.backend.backend() == "torch" else 1
    assert len(traces) == calls * first


def test_duplicate_rows_of_a_sparse_gradient_are_added_up():
    if keras.backend.backend() != "tensorflow":
        pytest.skip("only TensorFlow has sparse gradients")
    import tensorflow as tf

    table = keras.Variable(np.ones((6, 2)), name="table")
    slices = tf.IndexedSlices(
        tf.constant([[1.0, 3.0], [-1.0, 2.0], [0.5, 0.5]]),
        tf.constant([2, 2, 4]),
        tf.constant([6, 2]),
    )
    optimizer = SaliencyMaskedOptimizer("sgd", density=0.34, exact=True)
    optimizer.apply([slices], [table])
    # Row 2 adds up to (0, 5): its first entry has no saliency at all.
    changed = ops.convert_to_numpy(table) != 1
    np.testing.assert_array_equal(np.argwhere(changed), [[2, 1]])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"density": -0.1}, "`density` must be .* 0 and 1.*-0.1"),
        ({"density": float("nan")}, "`density` must be .*nan"),
        ({"density": 1.5}, "`density` must be .*1.5"),
        ({"density": True}, "`density` must be .*True"),
        ({"exact": "no"}, "`exact` must be `True` or `False`.*exact='no'"),
        ({"exact": 1}, "`exact` must be .*exact=1"),
        ({"dense_variables": "kernel"}, "list of regular.*='kernel'"),
        ({"dense_variables": ["a", "("]}, r"list of regular.*=\['a', '\('\]"),
        ({"dense_variables": [3]}, r"list of regular.*=\[3\]"),
        ({"dense_variables": [b"a"]}, r"list of regular.*=\[b'a'\]"),
        ({"saliency": "hessian"}, "`saliency` must be one of .*hessian"),
        ({"scope": "layer"}, "`scope` must be .*layer"),
        ({"fisher_decay": 1.5}, "`fisher_decay` must be .*1.5"),
        ({"rank_noise": -0.1}, "`rank_noise` must be .*-0.1"),
        ({"rank_noise": float("inf")}, "`rank_noise` must be .*inf"),
        (
            {"rank_noise": 1e-4, "density": 1e-4},
            "`density` must be 0 or at least 1/1024.*y=0.0001, rank_noise=0.00",
        ),
        ({"seed": "x"}, "`seed` must be an integer or `None`.*seed='x'"),
        ({"seed": 1.5}, "`seed` must be .*seed=1.5"),
        ({"refresh_steps": 0}, "`refresh_steps` must be .*steps=0"),
        ({"refresh_steps": 1.5}, "`refresh_steps` must be .*steps=1.5"),
        ({"clipnorm": 1.0}, "set `clipnorm` on the `inner_optimizer`"),
        (
            {"weight_decay": 0.1},
            "set `weight_decay` on the `inner_optimizer`",
        ),
        ({"use_ema": True}, "set `use_ema` on the `inner_optimizer`"),
        (
            {"learning_rate": 0.1},
            "set `learning_rate` on the `inner_optimizer`",
        ),
        (
            {"loss_scale_factor": 2},
            "set `loss_scale_factor` on the `inner_optimizer`",
        ),
        ({"gradient_accumulation_steps": 1}, "gradient_accumulation_steps"),
    ],
)
def test_wrong_arguments_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        SaliencyMaskedOptimizer("adam", **arguments)


@pytest.mark.parametrize(
    ("inner", "message"),
    [
        (
            lambda: keras.optimizers.Adam(gradient_accumulation_steps=2),
            "gradient_accumulation_steps.*instead of on the inner",
        ),
        (
            lambda: keras.optimizers.LossScaleOptimizer(
                keras.optimizers.Adam()
            ),
            "which goes outside",
        ),
        (
            lambda: SaliencyMaskedOptimizer("adam"),
            "one mask is enough",
        ),
        (lambda: 3, "optimizer"),
        (lambda: None, "Optimizer` or its name.*inner_optimizer=None"),
    ],
)
def test_wrong_inner_optimizers_are_refused(inner, message):
    with pytest.raises(ValueError, match=message):
        SaliencyMaskedOptimizer(inner())


def test_unknown_variables_and_unbuilt_use_are_refused():
    optimizer = SaliencyMaskedOptimizer("adam")
    with pytest.raises(ValueError, match="must already be built"):
        optimizer.apply(tensors(gradients(0)))
    variables = new_variables()
    apply(optimizer, gradients(0), variables)
    with pytest.raises(ValueError, match="Unknown variable"):
        apply(optimizer, gradients(0), new_variables())


def test_another_number_of_gradients_is_told():
    optimizer = SaliencyMaskedOptimizer("adam")
    optimizer.build(new_variables())
    message = "one gradient for each variable .*, 4. Received: 3 gradients"
    with pytest.raises(ValueError, match=message):
        optimizer.apply(tensors(gradients(0))[:3])


def test_arguments_of_no_optimizer_are_told():
    with pytest.raises(ValueError, match="support arguments: `nesterov`"):
        SaliencyMaskedOptimizer("adam", nesterov=True)


@pytest.mark.parametrize("saliency", ["taylor", "gradient", "fisher"])
def test_many_steps_equal_the_numpy_twin(saliency):
    variables = new_variables()
    expected = [value.astype("float64") for value in values(variables)]
    twin = reference.SaliencyMasked(
        reference.AdamW(0.01, 0.1), 0.4, saliency, decay=0.8
    )
    optimizer = SaliencyMaskedOptimizer(
        keras.optimizers.AdamW(0.01, weight_decay=0.1),
        density=0.4,
        saliency=saliency,
        fisher_decay=0.8,
        exact=True,
    )
    for step in range(10):
        expected = twin.step(expected, gradients(step))
        apply(optimizer, gradients(step), variables)
        for wanted, found in zip(expected, values(variables), strict=True):
            np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-5)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("saliency", ["taylor", "gradient", "fisher"])
def test_gradients_that_are_not_finite_are_never_applied(saliency, bad):
    variables = new_variables()
    start = values(variables)
    arrays = gradients(0)
    arrays[1][::2] = bad
    optimizer = SaliencyMaskedOptimizer("adam", 0.5, saliency)
    apply(optimizer, arrays, variables)
    kernel = values(variables)[1]
    np.testing.assert_array_equal(kernel[::2], start[1][::2])
    assert np.isfinite(kernel).all()
    assert (kernel != start[1]).sum() == 8  # round(0.5 * 15 finite entries)


def test_constraints_do_not_move_unselected_entries():
    rng = np.random.default_rng(0)
    kernel = keras.Variable(rng.normal(size=(6, 5)), name="kernel")
    kernel.constraint = keras.constraints.MaxNorm(0.1)
    before = values([kernel])[0]
    optimizer = SaliencyMaskedOptimizer("sgd", 0.3, exact=True)
    gradient = rng.normal(size=(6, 5)).astype("float32")
    apply(optimizer, [gradient], [kernel])
    np.testing.assert_array_equal(
        values([kernel])[0] != before,
        reference.top_mask(np.abs(before * gradient), 0.3),
    )


@pytest.mark.filterwarnings("ignore:Gradients do not exist")
@pytest.mark.parametrize("inner", ["adamw", "adamw_ema"])
def test_a_variable_without_a_gradient_keeps_its_value(inner):
    variables = new_variables()
    before = values(variables)[1]
    optimizer = SaliencyMaskedOptimizer(INNER[inner](), 0.5)
    for step in range(4):
        arrays = tensors(gradients(step))
        arrays[1] = None
        optimizer.apply(arrays, variables)
    np.testing.assert_array_equal(values(variables)[1], before)


@pytest.mark.filterwarnings("ignore:Gradients do not exist")
def test_updated_fraction_leaves_out_what_has_no_gradient():
    variables = new_variables()
    optimizer = SaliencyMaskedOptimizer("sgd", density=1)
    arrays = tensors(gradients(0))
    arrays[3] = None
    optimizer.apply(arrays, variables)
    sizes = [value.size for value in values(variables)]
    assert float(
        ops.convert_to_numpy(optimizer.updated_fraction)
    ) == pytest.approx(1 - sizes[3] / sum(sizes))


def test_the_gradients_and_the_inner_state_are_untouched():
    plain, masked = new_variables(), new_variables()
    inner, wrapped_inner = INNER["adam"](), INNER["adam"]()
    optimizer = SaliencyMaskedOptimizer(wrapped_inner, 0.4)
    for step in range(3):
        passed = tensors(gradients(step))
        optimizer.apply(passed, masked)
        apply(inner, gradients(step), plain)
        for tensor, array in zip(passed, gradients(step), strict=True):
            np.testing.assert_array_equal(ops.convert_to_numpy(tensor), array)
    for expected, found in zip(
        values(inner.variables), values(wrapped_inner.variables), strict=True
    ):
        np.testing.assert_array_equal(found, expected)


def test_density_one_accumulates_as_the_inner_optimizer_would():
    plain, masked = new_variables(), new_variables()
    optimizer = keras.optimizers.Adam(0.1, gradient_accumulation_steps=2)
    wrapped = SaliencyMaskedOptimizer(
        keras.optimizers.Adam(0.1), density=1, gradient_accumulation_steps=2
    )
    for step in range(6):
        apply(optimizer, gradients(step), plain)
        apply(wrapped, gradients(step), masked)
        for expected, found in zip(values(plain), values(masked), strict=True):
            # JAX compiles the two branches differently.
            tolerance = 1e-6 if keras.backend.backend() == "jax" else 0
            np.testing.assert_allclose(found, expected, rtol=0, atol=tolerance)


def test_micro_steps_change_nothing_but_the_accumulators():
    variables = new_variables()
    optimizer = SaliencyMaskedOptimizer(
        INNER["adamw_ema"](), 0.4, "fisher", gradient_accumulation_steps=2
    )
    for step in range(2):
        stateless_apply(optimizer, gradients(step), variables)
    own = [v for v in optimizer.variables if "accumulator" not in v.path]
    own.remove(optimizer._iterations)
    before = values(own)
    stateless_apply(optimizer, gradients(2), variables)
    for old, new in zip(before, values(own), strict=True):
        np.testing.assert_array_equal(new, old)
    assert 0 < float(ops.convert_to_numpy(optimizer.updated_fraction)) < 1


def test_what_is_overwritten_is_not_averaged_while_it_accumulates():
    scale = keras.Variable(np.ones(2), name="scale")
    scale.overwrite_with_gradient = True
    kernel = keras.Variable(np.ones((2, 2)), name="kernel")
    optimizer = SaliencyMaskedOptimizer("sgd", gradient_accumulation_steps=2)
    for value in ([3.0, 2.0], [2.0, 5.0]):
        apply(optimizer, [np.array(value), np.ones((2, 2))], [scale, kernel])
    np.testing.assert_array_equal(values([scale])[0], [3.0, 5.0])


def test_the_clipped_gradient_is_what_is_scored():
    variables = new_variables()
    start = values(variables)
    optimizer = SaliencyMaskedOptimizer(
        keras.optimizers.SGD(0.1, clipvalue=0.2), 0.3, exact=True
    )
    apply(optimizer, gradients(0), variables)
    clipped = np.clip(gradients(0)[1], -0.2, 0.2)
    np.testing.assert_array_equal(
        values(variables)[1] != start[1],
        reference.top_mask(np.abs(start[1] * clipped), 0.3),
    )
    unclipped = np.abs(start[1] * gradients(0)[1])
    assert (
        reference.top_mask(unclipped, 0.3) != (values(variables)[1] != start[1])
    ).any()


def test_multi_optimizer_inside():
    def multi():
        return keras.optimizers.MultiOptimizer(
            keras.optimizers.OptimizerMap(
                keras.optimizers.SGD(0.1, clipvalue=0.2),
                {"kernel": keras.optimizers.Adam(0.1)},
            )
        )

    plain, masked = new_variables(), new_variables()
    start = values(masked)
    optimizer = multi()
    wrapped = SaliencyMaskedOptimizer(multi(), density=0.3, exact=True)
    apply(optimizer, gradients(0), plain)
    apply(wrapped, gradients(0), masked)
    clipped = [np.clip(x, -0.2, 0.2) for x in gradients(0)]
    clipped[1] = gradients(0)[1]
    for item in range(3):
        mask = reference.top_mask(np.abs(start[item] * clipped[item]), 0.3)
        np.testing.assert_array_equal(
            values(masked)[item],
            np.where(mask, values(plain)[item], start[item]),
        )


def test_a_loss_scale_factor_is_unscaled_before_clipping():
    variables = new_variables()
    start = values(variables)
    optimizer = SaliencyMaskedOptimizer(
        keras.optimizers.SGD(0.1, clipvalue=0.2, loss_scale_factor=64.0),
        density=0.3,
        exact=True,
    )
    assert float(optimizer.scale_loss(2.0)) == 128.0
    apply(optimizer, [64.0 * x for x in gradients(0)], variables)
    score = np.abs(start[1] * np.clip(gradients(0)[1], -0.2, 0.2))
    np.testing.assert_array_equal(
        values(variables)[1] != start[1], reference.top_mask(score, 0.3)
    )


def test_weights_can_be_set():
    first, second = new_variables(), new_variables()
    optimizer = SaliencyMaskedOptimizer("adam", saliency="fisher")
    apply(optimizer, gradients(0), first)
    twin = SaliencyMaskedOptimizer("adam", saliency="fisher")
    twin.build(second)
    twin.set_weights(values(optimizer.variables))
    for expected, found in zip(
        values(optimizer._variables + optimizer.inner_optimizer.variables),
        values(twin._variables + twin.inner_optimizer.variables),
        strict=True,
    ):
        np.testing.assert_array_equal(found, expected)


def test_repeated_exclusion_of_the_same_variable_is_accepted():
    variables = new_variables()
    optimizer = SaliencyMaskedOptimizer("adam")
    optimizer.exclude_from_masking(var_list=variables[:1])
    optimizer.exclude_from_masking(var_names=["kern"])
    optimizer.build(variables)
    optimizer.exclude_from_masking(var_list=variables[:1])
    assert optimizer._is_masked == [False, False, True, False]
    config = SaliencyMaskedOptimizer.from_config(optimizer.get_config())
    assert config.get_config()["dense_variables"] == ["kern"]


def test_biases_of_attention_layers_are_updated_in_full():
    layer = keras.layers.MultiHeadAttention(num_heads=2, key_dim=3)
    layer.build((1, 4, 6), (1, 4, 6))
    optimizer = SaliencyMaskedOptimizer("sgd", density=0.3)
    optimizer.build(layer.trainable_variables)
    names = [variable.name for variable in layer.trainable_variables]
    masked = [name == "kernel" for name in names]
    assert len(layer.trainable_variables[1].shape) == 2
    assert names[1] == "bias"
    assert optimizer._is_masked == masked


def test_the_factors_of_lora_are_updated_in_full():
    layer = keras.layers.Embedding(6, 4)
    layer.build()
    layer.enable_lora(2)
    variables = [*layer.trainable_variables, *new_variables()[:1]]
    optimizer = SaliencyMaskedOptimizer("sgd", density=0.3)
    optimizer.build(variables)
    assert [v.name for v in variables[:2]] == [
        "lora_embeddings_a",
        "lora_embeddings_b",
    ]
    assert optimizer._is_masked == [False, False, True]


def test_the_seed_decides_what_random_saliency_draws():
    def updated(seed):
        variables = new_variables()
        optimizer = SaliencyMaskedOptimizer(
            "sgd", density=0.3, saliency="random", seed=seed
        )
        apply(optimizer, gradients(0), variables)
        return values(variables)

    first, again, other = updated(1), updated(1), updated(2)
    for one, two in zip(first, again, strict=True):
        np.testing.assert_array_equal(one, two)
    assert any((a != b).any() for a, b in zip(first, other, strict=True))


def test_fixed_scores_that_were_not_set_are_told():
    variables = new_variables()
    optimizer = SaliencyMaskedOptimizer(
        "sgd", saliency="fisher", fisher_decay=1.0
    )
    with pytest.raises(ValueError, match=r"prepare_saliency\(model, x, y\)"):
        apply(optimizer, gradients(0), variables)
    assert not optimizer.built
    # The decay is that of "fisher" alone.
    apply(
        SaliencyMaskedOptimizer("sgd", fisher_decay=1.0),
        gradients(0),
        variables,
    )


def test_scores_that_a_file_lacks_were_not_set():
    variables = new_variables()
    optimizer = SaliencyMaskedOptimizer(
        "sgd", saliency="fisher", fisher_decay=1.0
    )
    optimizer.build(variables)
    with pytest.warns(UserWarning, match="Skipping variable loading"):
        optimizer.load_own_variables({"0": np.zeros(())})
    with pytest.raises(ValueError, match=r"prepare_saliency\(model, x, y\)"):
        apply(optimizer, gradients(0), variables)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"saliency": "fisher", "fisher_decay": 1.0},
            r"prepare_saliency\(model, x, y\)",
        ),
        ({"refresh_steps": None}, r"method `select\(gradients\)`"),
        ({"refresh_steps": None, "scope": "tensor"}, "method `select"),
    ],
)
@pytest.mark.parametrize("by", ["file", "weights"])
def test_what_was_not_set_before_saving_is_told_after_loading(
    settings, message, by
):
    def built():
        optimizer = SaliencyMaskedOptimizer("sgd", **settings)
        optimizer.build(new_variables())
        return optimizer

    def loaded(optimizer):
        store = {str(i): x for i, x in enumerate(values(optimizer.variables))}
        twin = built()
        if by == "file":
            twin.load_own_variables(store)
        else:
            twin.set_weights(list(store.values()))
        return twin

    optimizer = built()
    twin = loaded(optimizer)
    with pytest.raises(ValueError, match=message):
        twin.apply(tensors(gradients(0)))
    optimizer.set_fisher_averages(tensors([x**2 for x in gradients(1)]))
    optimizer.select(tensors(gradients(1)))
    loaded(optimizer).apply(tensors(gradients(0)))


@pytest.mark.parametrize(
    "settings",
    [{"scope": "global"}, {"scope": "tensor"}, {"rank_noise": 0.1}, {}],
)
def test_a_variable_without_entries_changes_nothing(settings):
    first, second = (
        SaliencyMaskedOptimizer("adam", seed=0, **settings) for _ in range(2)
    )
    variables, others = new_variables(), new_variables()
    empty = keras.Variable(np.zeros((0, 4), "float32"))
    apply(first, gradients(0), variables)
    first_values = values(variables)
    second.apply([*tensors(gradients(0)), ops.zeros((0, 4))], [*others, empty])
    for one, other in zip(first_values, values(others), strict=True):
        np.testing.assert_array_equal(one, other)
    assert float(first.updated_fraction) == float(second.updated_fraction)
