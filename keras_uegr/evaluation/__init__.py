"""Measures how a trained model stands up to an adversary."""

from keras_uegr.evaluation.robust_accuracy import (
    RobustAccuracy as RobustAccuracy,
)
from keras_uegr.evaluation.white_box import (
    attacked_predictions as attacked_predictions,
)
