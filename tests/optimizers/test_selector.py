"""How long a selection lasts, and what is selected as a whole."""

import keras
import numpy as np
import pytest
from keras import ops

from keras_uegr import SaliencyMaskedOptimizer
from keras_uegr.optimizers import noisy_selection
from tests.optimizers import reference
from tests.optimizers.test_saliency_masked_optimizer import (
    apply,
    gradients,
    new_variables,
    stateless_apply,
    tensors,
    values,
)


def changed(optimizer, arrays, variables):
    """Which entries of each variable a step changes."""
    before = values(variables)
    apply(optimizer, arrays, variables)
    return [
        after != old
        for after, old in zip(values(variables), before, strict=True)
    ]


def assert_same(found, expected):
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.slow
@pytest.mark.parametrize("saliency", ["taylor", "gradient", "fisher"])
def test_a_selection_lasts_as_in_the_numpy_twin(saliency):
    variables = new_variables()
    expected = [value.astype("float64") for value in values(variables)]
    twin = reference.SaliencyMasked(
        reference.AdamW(0.01, 0.1), 0.4, saliency, decay=0.8, refresh_steps=3
    )
    optimizer = SaliencyMaskedOptimizer(
        keras.optimizers.AdamW(0.01, weight_decay=0.1),
        density=0.4,
        saliency=saliency,
        fisher_decay=0.8,
        exact=True,
        refresh_steps=3,
    )
    for step in range(8):
        expected = twin.step(expected, gradients(step))
        stateless_apply(optimizer, gradients(step), variables)
        for wanted, found in zip(expected, values(variables), strict=True):
            np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-5)


@pytest.mark.parametrize("noise", [0.0, 0.3])
@pytest.mark.parametrize("scope", ["variable", "global"])
def test_between_two_selections_the_same_entries_are_updated(scope, noise):
    variables = new_variables()
    optimizer = SaliencyMaskedOptimizer(
        "adam",
        density=0.4,
        saliency="gradient",
        scope=scope,
        rank_noise=noise,
        refresh_steps=2,
        seed=0,
    )
    masks = [
        changed(optimizer, gradients(step), variables) for step in range(4)
    ]
    # Their momentum moves also what has no gradient in the second step.
    assert_same(masks[1], masks[0])
    assert_same(masks[3], masks[2])
    for one, other in zip(masks[0][:3], masks[2], strict=False):
        assert (one != other).any()
    selected = sum(mask.sum() for mask in masks[3])
    entries = sum(mask.size for mask in masks[3])
    fraction = float(ops.convert_to_numpy(optimizer.updated_fraction))
    assert fraction == pytest.approx(selected / entries, abs=1e-6)


def test_updates_count_and_not_the_batches_that_are_accumulated():
    variables = new_variables()
    optimizer = SaliencyMaskedOptimizer(
        "adam",
        saliency="gradient",
        gradient_accumulation_steps=2,
        refresh_steps=2,
    )
    masks = []
    for update in range(4):
        before = values(variables)
        for micro in range(2):
            stateless_apply(optimizer, gradients(2 * update + micro), variables)
        masks.append(values(variables)[1] != before[1])
    np.testing.assert_array_equal(masks[1], masks[0])
    np.testing.assert_array_equal(masks[3], masks[2])
    assert (masks[2] != masks[1]).any()


def kept_masks(optimizer):
    return [v for v in optimizer.variables if v.path.endswith("_mask")]


def test_only_a_selection_that_lasts_takes_memory():
    for settings, shapes in [
        ({}, []),
        ({"rank_noise": 0.1}, []),
        ({"scope": "tensor"}, []),
        ({"density": 0.0, "refresh_steps": 2}, []),
        ({"refresh_steps": 2}, [(12, 4), (6, 5), (3, 2, 4)]),
        ({"refresh_steps": None}, [(12, 4), (6, 5), (3, 2, 4)]),
        ({"refresh_steps": 2, "scope": "tensor"}, [(), (), ()]),
    ]:
        optimizer = SaliencyMaskedOptimizer("sgd", **settings)
        optimizer.build(new_variables())
        masks = kept_masks(optimizer)
        assert [tuple(mask.shape) for mask in masks] == shapes
        assert {mask.dtype for mask in masks} <= {"bool"}


@pytest.mark.filterwarnings("ignore:Gradients do not exist")
def test_without_a_gradient_nothing_is_updated_until_the_next_selection():
    variables = new_variables()
    optimizer = SaliencyMaskedOptimizer("adamw", refresh_steps=2)
    start = values(variables)[1]
    for step in range(3):
        arrays = tensors(gradients(step))
        if step == 0:
            arrays[1] = None
        optimizer.apply(arrays, variables)
        assert (values(variables)[1] != start).any() == (step == 2)


@pytest.mark.parametrize("density", [0.0, 1.0])
def test_none_and_all_need_no_selection(density):
    plain, masked = new_variables(), new_variables()
    start = values(masked)
    optimizer = keras.optimizers.Adam(0.1)
    wrapped = SaliencyMaskedOptimizer(
        keras.optimizers.Adam(0.1), density=density, refresh_steps=2
    )
    for step in range(3):
        apply(optimizer, gradients(step), plain)
        apply(wrapped, gradients(step), masked)
    expected = values(plain) if density else [*start[:3], values(plain)[3]]
    assert_same(values(masked), expected)


def top_tensors(saliency, theta, arrays, density):
    """The share of the first three variables, ranked by their norms."""
    score = np.array(
        [
            reference.scores(saliency, reference.norm(v), reference.norm(g))
            for v, g in zip(theta[:3], arrays, strict=False)
        ]
    )
    return reference.top_mask(score, density)


@pytest.mark.parametrize(
    "saliency", ["taylor", "gradient", "inverse_gradient", "fisher"]
)
@pytest.mark.parametrize("density", [0.3, 0.7])
def test_tensors_are_updated_as_a_whole(saliency, density):
    variables = new_variables()
    optimizer = SaliencyMaskedOptimizer(
        "adamw", density=density, saliency=saliency, scope="tensor"
    )
    # Values and gradients rank the variables in different orders.
    arrays = gradients(0)
    for variable, array, factors in zip(
        variables, arrays, [(1, 0.1), (9, 3), (0.1, 9), (1, 1)], strict=True
    ):
        variable.assign(variable * factors[0])
        array *= factors[1]
    expected = top_tensors(saliency, values(variables), arrays, density)
    masks = changed(optimizer, arrays, variables)
    assert [mask.all() for mask in masks[:3]] == list(expected)
    assert [mask.any() for mask in masks[:3]] == list(expected)
    assert masks[3].all()
    selected = sum(mask.sum() for mask in masks)
    fraction = float(ops.convert_to_numpy(optimizer.updated_fraction))
    entries = sum(mask.size for mask in masks)
    assert fraction == pytest.approx(selected / entries, abs=1e-6)


def test_a_tensors_average_is_that_of_its_squared_norm():
    variables = new_variables()
    optimizer = SaliencyMaskedOptimizer(
        "sgd", saliency="fisher", scope="tensor", fisher_decay=0.5
    )
    optimizer.build(variables)
    # As a preparing pass does, with the squares of all entries.
    optimizer.set_fisher_averages(tensors([x**2 for x in gradients(1)]))
    apply(optimizer, gradients(0), variables)
    averages = [v for v in optimizer.variables if "fisher" in v.path]
    for average, last, first in zip(
        averages, gradients(0), gradients(1), strict=False
    ):
        expected = (reference.norm(last) ** 2 + reference.norm(first) ** 2) / 2
        assert float(ops.convert_to_numpy(average)) == pytest.approx(
            expected, rel=1e-5
        )


def test_a_tensor_whose_gradient_is_not_finite_is_left_alone():
    variables = new_variables()
    optimizer = SaliencyMaskedOptimizer(
        "adam", density=0.9, saliency="gradient", scope="tensor"
    )
    arrays = gradients(0)
    arrays[1][0, 0] = np.inf
    masks = changed(optimizer, arrays, variables)
    assert [mask.any() for mask in masks[:3]] == [True, False, True]


def test_tensors_can_be_drawn_too():
    variables = new_variables()
    optimizer = SaliencyMaskedOptimizer(
        "adam", density=0.5, scope="tensor", rank_noise=1.0, seed=3
    )
    masks = [
        [mask.any() for mask in changed(optimizer, gradients(i), variables)]
        for i in range(30)
    ]
    assert np.mean(masks, axis=0)[:3].min() > 0.2
    assert np.mean(masks, axis=0)[:3].max() < 0.8


def test_other_gradients_can_select():
    variables = new_variables()
    optimizer = SaliencyMaskedOptimizer(
        "adam", density=0.4, saliency="gradient", refresh_steps=None, exact=True
    )
    optimizer.build(variables)
    optimizer.select(tensors(gradients(5)))
    expected = [reference.top_mask(np.abs(x), 0.4) for x in gradients(5)[:3]]
    for step in range(2):
        masks = changed(optimizer, gradients(step)[1:], variables[1:])
        assert_same(masks[:2], expected[1:])
    # What has no gradient stays as it was selected.
    other = tensors(gradients(6))
    other[1] = None
    optimizer.select(other)
    masks = changed(optimizer, gradients(2)[1:], variables[1:])
    np.testing.assert_array_equal(masks[0], expected[1])
    np.testing.assert_array_equal(
        masks[1], reference.top_mask(np.abs(gradients(6)[2]), 0.4)
    )


def test_what_nothing_selected_is_told():
    variables = new_variables()
    optimizer = SaliencyMaskedOptimizer("sgd", refresh_steps=None)
    message = r"method `select\(gradients\)` .* Received: refresh_steps=None"
    with pytest.raises(ValueError, match=message):
        apply(optimizer, gradients(0), variables)
    optimizer.build(variables)
    optimizer.select([None] * 4)
    apply(optimizer, gradients(0), variables)
    # What was selected is known from a file.
    optimizer.select(tensors(gradients(0)))
    twin = SaliencyMaskedOptimizer("sgd", refresh_steps=None)
    twin.build(variables)
    twin.set_weights(values(optimizer.variables))
    apply(twin, gradients(0), variables)


@pytest.mark.slow
def test_noise_selects_the_density_and_follows_the_seed():
    def masks_of(seed, **settings):
        variables = new_variables()
        optimizer = SaliencyMaskedOptimizer(
            "adam",
            density=0.3,
            saliency="gradient",
            rank_noise=0.5,
            seed=seed,
            **settings,
        )
        return [
            np.concatenate(
                [
                    x.ravel()
                    for x in changed(optimizer, gradients(0), variables)[1:3]
                ]
            )
            for _ in range(20)
        ]

    first, again, other = masks_of(1), masks_of(1), masks_of(2)
    assert_same(first, again)
    assert any((a != b).any() for a, b in zip(first, other, strict=True))
    assert np.mean(first) == pytest.approx(0.3, abs=0.06)
    assert (first[0] != first[1]).any()


def test_noise_is_drawn_by_the_rank_of_the_score():
    variables = new_variables()
    optimizer = SaliencyMaskedOptimizer(
        "adam", 0.4, "gradient", rank_noise=0.2, seed=7, exact=True
    )
    same = keras.random.SeedGenerator(7)
    masks = changed(optimizer, gradients(0), variables)
    for mask, gradient in zip(masks[:3], gradients(0), strict=False):
        uniform = keras.random.uniform(gradient.shape, seed=same)
        expected = reference.drawn_mask(
            np.abs(gradient),
            noisy_selection.center(0.4, 0.2),
            0.2,
            ops.convert_to_numpy(uniform).astype("float64"),
        )
        np.testing.assert_array_equal(mask, expected)


@pytest.mark.parametrize(
    "settings", [{"rank_noise": 0.5}, {"saliency": "random"}]
)
def test_between_two_selections_nothing_is_drawn(settings):
    variables = new_variables()
    optimizer = SaliencyMaskedOptimizer("sgd", refresh_steps=2, **settings)
    states = []
    for step in range(3):
        stateless_apply(optimizer, gradients(step), variables)
        (state,) = (v for v in optimizer.variables if "seed" in v.path)
        states.append(values([state])[0].tolist())
    assert states[0] == states[1] != states[2]
