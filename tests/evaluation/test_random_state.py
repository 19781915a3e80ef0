import random

import numpy as np
import pytest

from keras_uegr.evaluation import random_state


def draws(*seeds):
    with random_state.seeded(*seeds):
        return random.random(), np.random.random()


def test_seeds_decide_together_what_is_drawn():
    assert draws(1, 2) == draws(1, 2)
    assert len({draws(1, 2), draws(2, 1), draws(1, 3), draws(1)}) == 4


@pytest.mark.parametrize("integer", [np.int64, np.int32, np.uint8])
def test_an_integer_of_numpy_draws_what_that_of_python_does(integer):
    assert draws(integer(1), integer(2)) == draws(1, 2)


@pytest.mark.parametrize("seed", [-1, 0.5, "film"])
def test_generators_are_put_back_after_any_error(seed):
    before = random.getstate(), np.random.get_state()[1].copy()
    with pytest.raises((TypeError, ValueError)), random_state.seeded(seed):
        pass
    assert random.getstate() == before[0]
    np.testing.assert_array_equal(np.random.get_state()[1], before[1])
    with (  # noqa: PT012
        pytest.raises(RuntimeError, match="inside"),
        random_state.seeded(1),
    ):
        random.random()
        raise RuntimeError("inside")
    assert random.getstate() == before[0]
    np.testing.assert_array_equal(np.random.get_state()[1], before[1])
