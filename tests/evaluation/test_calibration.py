import keras
import numpy as np
import pytest

from keras_uegr.evaluation import expected_calibration_error


def test_by_hand():
    probabilities = [
        [0.9, 0.1],  # right
        [0.95, 0.05],  # wrong
        [0.4, 0.6],  # right
        [0.3, 0.7],  # right
    ]
    # Of four bins, the third holds 0.6 and 0.7 and the last 0.9 and 0.95.
    third, last = abs(1 - 0.65), abs(0.5 - 0.925)
    error = expected_calibration_error(probabilities, [0, 1, 1, 1], bins=4)
    assert error == pytest.approx(0.5 * third + 0.5 * last)


def test_one_bin_is_the_gap_of_the_means():
    probabilities = [[0.9, 0.1], [0.2, 0.8], [0.6, 0.4]]
    error = expected_calibration_error(probabilities, [0, 0, 1], bins=1)
    assert error == pytest.approx((0.9 + 0.8 + 0.6 - 1) / 3)


def test_upper_edge_belongs_to_the_bin():
    # 0.5 is in the first of two bins, 0.75 in the second: no gaps cancel.
    probabilities = [[0.5, 0.5], [0.75, 0.25]]
    error = expected_calibration_error(probabilities, [0, 1], bins=2)
    assert error == pytest.approx((0.5 + 0.75) / 2)


def test_certain_and_right_is_calibrated():
    probabilities = np.eye(3, dtype="float32")
    assert expected_calibration_error(probabilities, [0, 1, 2]) == 0
    # A float32 softmax may exceed 1.
    probabilities[0, 0] = np.nextafter(np.float32(1), np.float32(2))
    assert expected_calibration_error(probabilities, [0, 1, 2]) < 1e-6


def test_a_model_that_says_how_often_it_is_right_is_calibrated():
    generator = np.random.default_rng(0)
    first = generator.uniform(0, 1, 200_000)
    labels = (generator.uniform(0, 1, 200_000) > first).astype(int)
    probabilities = np.stack([first, 1 - first], axis=-1)
    assert expected_calibration_error(probabilities, labels) < 0.01
    assert expected_calibration_error(probabilities, 1 - labels) > 0.3


def test_bins_may_be_an_integer_of_numpy():
    arguments = [[0.9, 0.1], [0.2, 0.8], [0.6, 0.4]], [0, 0, 1]
    expected = expected_calibration_error(*arguments, bins=3)
    assert expected_calibration_error(*arguments, bins=np.int64(3)) == expected


@pytest.mark.parametrize("bins", [0, 1.5, True])
def test_bins_are_checked(bins):
    with pytest.raises(ValueError, match=f"Received: bins={bins}"):
        expected_calibration_error([[1.0, 0.0]], [0], bins=bins)


@pytest.mark.parametrize(
    ("probabilities", "labels"),
    [([0.5, 0.5], [0, 1]), ([[0.5, 0.5]], [0, 1]), (np.ones((0, 2)), [])],
)
def test_shapes_are_checked(probabilities, labels):
    with pytest.raises(ValueError, match=r"must have shape `\(N, C\)`"):
        expected_calibration_error(probabilities, labels)


@pytest.mark.parametrize("label", [2, -1, 0.5, "0", np.nan])
def test_labels_are_checked(label):
    message = f"`labels` must be integers from 0 to 1, .*labels={label}$"
    with pytest.raises(ValueError, match=message):
        expected_calibration_error([[0.5, 0.5]], [label])


@pytest.mark.parametrize("dtype", ["bool", "uint8", "float32"])
def test_labels_may_be_whole_numbers_of_any_type(dtype):
    labels = np.array([0, 1], dtype)
    assert expected_calibration_error(np.eye(2), labels) == 0


@pytest.mark.parametrize("row", [[2.0, -1.0], [3.0, 1.0], [0.5, 0.52]])
def test_logits_are_refused(row):
    with pytest.raises(ValueError, match="Apply a softmax to logits first"):
        expected_calibration_error([row], [0])


def test_takes_tensors_of_any_backend():
    """Also such as NumPy can't read, here because of their gradient."""
    logits = keras.Variable([[2.0, 0.0], [0.0, 2.0]])
    share = 1 / (1 + np.exp(-2.0))
    assert expected_calibration_error(
        keras.ops.softmax(logits), keras.ops.convert_to_tensor([0, 1])
    ) == pytest.approx(1 - share, rel=1e-5)
