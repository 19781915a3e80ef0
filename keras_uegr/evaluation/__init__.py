"""Measures how a trained model stands up to an adversary."""

from keras_uegr.evaluation.white_box import (
    attacked_predictions as attacked_predictions,
)
