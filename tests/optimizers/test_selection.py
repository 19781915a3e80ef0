import types

import keras
import numpy as np
import pytest
from keras import ops

from keras_uegr import UEGRModel
from keras_uegr.optimizers import selection
from keras_uegr.optimizers.scores import Scores
from keras_uegr.trainers import restore
from tests.optimizers import reference
from tests.pooled_model import pooled_model


def random_scores(shape, live_rows=None, seed=0):
    rng = np.random.default_rng(seed)
    scores = np.abs(rng.standard_t(2, shape) * rng.normal(size=shape))
    if live_rows is not None:
        dead = rng.permutation(shape[0])[live_rows:]
        scores[dead] = 0.0
    return scores.astype("float32")


def select(*scores, density, **options):
    tensors = [Scores(ops.abs, [ops.convert_to_tensor(x)]) for x in scores]
    thresholds, count = selection.find_thresholds(tensors, density, **options)
    masks = [
        mask_of(x, threshold)
        for x, threshold in zip(tensors, thresholds, strict=True)
    ]
    return masks, float(ops.convert_to_numpy(count))


def mask_of(scores, threshold):
    """Which entries keep their new value, in a variable of ones, once zeros."""
    variable = keras.Variable(ops.ones(scores.shape))
    restore(variable, ops.zeros(scores.shape), scores, threshold)
    return ops.convert_to_numpy(variable) == 1


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
def test_only_finite_scores_from_the_threshold_on_keep_the_new_value(dtype):
    if dtype == "float64" and keras.backend.backend() == "jax":
        pytest.skip("JAX has float64 only where `jax_enable_x64` is set")
    scores = np.array([-9, -np.inf, np.nan, -np.nan, np.inf, 0, 1, 2, 3, 2])
    new = np.array([np.nan, np.inf, 5, 5, 5, 5, np.nan, 5, -0.0, np.nan])
    old = np.array([0.0, -0.0, 1, 1, 1, -np.inf, 1, 1, 1, np.nan])
    expected = np.where([0, 0, 0, 0, 0, 0, 0, 1, 1, 1], new, old)
    variable = keras.Variable(new, dtype=dtype)
    one_by_one = Scores(lambda x: x, [ops.convert_to_tensor(scores, "float32")])
    threshold = ops.convert_to_tensor(2.0)
    restore(variable, ops.convert_to_tensor(old, dtype), one_by_one, threshold)
    kept = ops.convert_to_numpy(ops.cast(variable, "float32"))
    np.testing.assert_array_equal(kept, expected)
    np.testing.assert_array_equal(np.signbit(kept), np.signbit(expected))


@pytest.mark.parametrize(("device", "reads"), [("cpu", 4), ("meta", 1)])
def test_only_a_cpu_reads_a_variable_in_parts(device, reads, monkeypatch):
    if keras.backend.backend() != "torch":
        pytest.skip("other backends compile what selects")
    import torch

    from keras_uegr.trainers import torch_trainer

    monkeypatch.setattr(torch_trainer, "_CHUNK_SIZE", 6)
    shapes = []

    def score(x):
        shapes.append(x.shape)
        return x

    old, new, scored = (torch.ones((7, 3), device=device) for _ in range(3))
    restore(
        types.SimpleNamespace(value=new),
        old,
        Scores(score, [scored]),
        torch.ones((), device=device),
    )
    assert len(shapes) == reads
    assert sum(rows for rows, _ in shapes) == 7


@pytest.mark.parametrize("density", [0.05, 0.3, 0.7, 1.0])
def test_exact_threshold_selects_the_top(density):
    scores = random_scores((40, 30), live_rows=25)
    (mask,), count = select(scores, density=density, exact=True)
    np.testing.assert_array_equal(mask, reference.top_mask(scores, density))
    assert count == mask.sum()


@pytest.mark.slow
@pytest.mark.parametrize("density", [0.1, 0.3, 0.8])
@pytest.mark.parametrize(
    ("shape", "live_rows"),
    [
        ((30522, 384), 500),  # an embedding table of BERT in a batch
        ((30522, 384), 3),
        ((384, 1536), None),
        ((384, 12, 32), None),
        ((512, 384), 48),
        ((7, 3), None),
        ((1, 9000), None),
        ((9000, 1), 2000),
    ],
)
def test_sampled_density_is_near_the_one_asked_for(shape, live_rows, density):
    scores = random_scores(shape, live_rows)
    (mask,), count = select(scores, density=density)
    positive = (scores > 0).sum()
    assert not mask[scores == 0].any()
    tolerance = 0.02 + 1 / positive
    assert mask.sum() / positive == pytest.approx(density, abs=tolerance)
    assert count / positive == pytest.approx(density, abs=tolerance)


@pytest.mark.parametrize(
    "shape",
    [(90, 100), (128, 128), (64, 256), (128, 512), (384, 384), (96, 8, 96)],
)
@pytest.mark.parametrize("rows", ["high at the end", "dead at the start"])
def test_all_rows_are_sampled(shape, rows):
    scores = random_scores(shape)
    if rows == "high at the end":
        scores[int(0.9 * shape[0]) :] *= 100
    else:
        scores[: shape[0] // 2] = 0.0
    (mask,), count = select(scores, density=0.3)
    live = scores > 0
    assert mask[live].mean() == pytest.approx(0.3, abs=0.02)
    assert count / mask.sum() == pytest.approx(1.0, abs=0.05)


def test_scores_that_depend_on_the_column_do_not_bias_the_sample():
    columns = np.linspace(1e-6, 1.0, 384, dtype="float32")
    (mask,), _ = select(np.tile(columns, (600, 1)), density=0.3)
    assert mask.mean() == pytest.approx(0.3, abs=0.02)


@pytest.mark.parametrize("exact", [False, True])
def test_global_scope_pools_all_variables(exact):
    small, large = random_scores((300, 100)), 10 * random_scores((50, 40))
    masks, count = select(
        small, large, density=0.1, scope="global", exact=exact
    )
    pooled = np.concatenate([small.ravel(), large.ravel()])
    expected = reference.top_mask(pooled, 0.1)
    expected = [expected[: small.size].mean(), expected[small.size :].mean()]
    assert masks[0].mean() == pytest.approx(expected[0], abs=0.02)
    assert masks[1].mean() == pytest.approx(expected[1], abs=0.02)
    assert expected[1] > 2 * expected[0]
    assert count / pooled.size == pytest.approx(0.1, abs=0.02)


def test_dead_columns_do_not_thin_the_sample_out():
    scores = random_scores((800, 400))
    scores[:, np.arange(400) % 10 != 3] = 0.0
    (mask,), _ = select(scores, density=0.3)
    assert mask[scores > 0].mean() == pytest.approx(0.3, abs=0.02)


def test_all_probed_columns_may_be_dead():
    scores = random_scores((800, 400))
    scores[:, 150:250] = 0.0
    (mask,), _ = select(scores, density=0.3)
    assert mask[scores > 0].mean() == pytest.approx(0.3, abs=0.02)


@pytest.mark.parametrize("exact", [False, True])
def test_rows_of_a_table_count_by_their_live_entries(exact):
    table, kernel = random_scores((5000, 20), 200), random_scores((60, 400))
    masks, count = select(
        table, 30 * kernel, density=0.3, scope="global", exact=exact
    )
    selected = masks[0].sum() + masks[1].sum()
    live = (table > 0).sum() + (kernel > 0).sum()
    assert selected / live == pytest.approx(0.3, abs=0.02)
    assert count / selected == pytest.approx(1.0, abs=0.05)
    assert masks[1].mean() > masks[0][table > 0].mean()


def test_small_variables_are_ranked_in_full():
    arrays = [random_scores((13, 7)), random_scores((30, 40))]
    masks, count = select(*arrays, density=0.25)
    for mask, scores in zip(masks, arrays, strict=True):
        expected = reference.top_mask(scores, 0.25)
        assert abs(int(mask.sum()) - int(expected.sum())) <= 1
    assert count == sum(mask.sum() for mask in masks)


@pytest.mark.parametrize("exact", [False, True])
def test_subnormal_scores_do_not_pull_zeros_in(exact):
    scores = np.zeros((6, 5), "float32")
    scores[0] = 1e-40
    (mask,), _ = select(scores, density=0.5, exact=exact)
    assert not mask.any()


@pytest.mark.parametrize("exact", [False, True])
def test_one_entry_is_selected_at_least(exact):
    scores = np.zeros((3, 3), "float32")
    scores[1, 2] = 1e-9
    (mask,), _ = select(scores, density=0.01, exact=exact)
    np.testing.assert_array_equal(mask, scores > 0)


@pytest.mark.parametrize("exact", [False, True])
def test_entries_that_tie_with_the_threshold_are_all_selected(exact):
    scores = np.repeat(np.array([[4.0], [2.0], [1.0]], "float32"), 10, axis=1)
    (mask,), _ = select(scores, density=0.5, exact=exact)
    np.testing.assert_array_equal(mask, scores >= 2.0)


@pytest.mark.parametrize("power", [-60, -20, 20, 60])
def test_magnitude_does_not_matter(power):
    scores = random_scores((30, 40))
    scaled = scores * np.float32(2.0**power)
    (mask,), _ = select(scaled, density=0.3, exact=True)
    np.testing.assert_array_equal(mask, reference.top_mask(scores, 0.3))


@pytest.mark.parametrize("exact", [False, True])
@pytest.mark.parametrize("scope", selection.SCOPES)
def test_scores_without_a_finite_value_are_never_selected(scope, exact):
    scores = random_scores((20, 10))
    scores[::2, ::3], scores[1::2, ::3] = np.nan, np.inf
    (mask,), _ = select(scores, density=0.4, scope=scope, exact=exact)
    assert not mask[:, ::3].any()
    assert mask.sum() == pytest.approx(0.4 * np.isfinite(scores).sum(), abs=1)


def test_ties_are_all_selected():
    (mask,), _ = select(np.ones((150, 150), "float32"), density=0.3)
    assert mask.all()


def test_all_zero_and_non_finite_scores_are_never_selected():
    (mask,), count = select(np.zeros((200, 100), "float32"), density=0.5)
    assert not mask.any()
    assert count == 0
    scores = random_scores((200, 100))
    scores[0, 0], scores[1, 1] = np.nan, np.inf
    (mask,), _ = select(scores, density=0.5)
    assert not mask[0, 0]
    assert not mask[1, 1]
    assert 0.45 < mask.mean() < 0.55


def test_columns_that_a_stride_could_miss_do_not_bias_the_sample():
    scores = random_scores((384, 1536))
    # The longest stride, 72, shares the factor 24 with the columns.
    scores[:, ::24] *= 1e3
    (mask,), _ = select(scores, density=0.3)
    assert mask.mean() == pytest.approx(0.3, abs=0.02)


@pytest.fixture
def passes(monkeypatch):
    """Gets an entry for each pass over the scores that is run or traced."""
    passes = []

    def count(*arguments):
        passes.append(arguments)
        return counted(*arguments)

    counted = selection._count
    monkeypatch.setattr(selection, "_count", count)
    # A loop that an earlier test has traced is not traced again.
    selection._bit_decider.cache_clear()
    return passes


@pytest.mark.skipif(
    keras.backend.backend() == "torch", reason="PyTorch traces nothing"
)
@pytest.mark.parametrize("exact", [False, True])
def test_passes_are_traced_as_one_loop(exact, passes):
    model = UEGRModel(pooled_model())
    find = model.compile_inference(
        lambda x: selection.find_thresholds(
            [Scores(ops.abs, [x])], 0.5, exact=exact
        )
    )
    find(ops.convert_to_tensor(random_scores((4, 5))))
    # One before the loop, one after it; a loop may be traced more than once.
    assert 3 <= len(passes) <= 5


@pytest.mark.skipif(
    keras.backend.backend() != "jax", reason="only JAX compiles a lone loop"
)
def test_a_loop_that_is_not_part_of_a_step_is_traced_once(passes):
    scores = random_scores((4, 5))
    select(scores, density=0.5)
    passes.clear()
    select(scores, density=0.5)
    assert len(passes) == 2  # one before the loop, one after it
