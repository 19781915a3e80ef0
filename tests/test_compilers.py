"""What makes the suite fast is in force, and absent where it must be."""

import keras
import pytest

pytestmark = pytest.mark.skipif(
    keras.backend.backend() != "tensorflow",
    reason="only TensorFlow keeps a stack for each operation",
)


def stacks_of_two_operations():
    import tensorflow as tf

    with tf.Graph().as_default():
        one = tf.constant(1.0)
        other = tf.constant(2.0)
    return [str(tensor.op.traceback) for tensor in (one, other)]


def test_operations_share_one_stack():
    one, other = stacks_of_two_operations()
    assert one == other


@pytest.mark.optimized
def test_operations_of_an_optimized_test_have_their_own():
    one, other = stacks_of_two_operations()
    assert one != other
