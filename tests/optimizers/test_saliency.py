import numpy as np
import pytest
from keras import ops

from keras_uegr.optimizers import saliency
from tests.optimizers import reference


@pytest.mark.parametrize("name", ["taylor", "gradient"])
def test_scores_equal_the_formula(name):
    rng = np.random.default_rng(0)
    theta, gradient = rng.normal(size=(2, 4, 3)).astype("float32")
    scores = saliency.get(name)(
        ops.convert_to_tensor(theta), ops.convert_to_tensor(gradient)
    )
    np.testing.assert_allclose(
        ops.convert_to_numpy(scores),
        reference.scores(name, theta, gradient),
        rtol=1e-6,
    )


def test_unknown_name_is_refused():
    with pytest.raises(ValueError, match=r"must be one of .*'taylor'.*hessian"):
        saliency.get("hessian")
