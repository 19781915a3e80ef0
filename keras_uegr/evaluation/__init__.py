"""Measures how a trained model stands up to an adversary."""

from keras_uegr.evaluation.calibration import (
    expected_calibration_error as expected_calibration_error,
)
from keras_uegr.evaluation.robust_accuracy import (
    RobustAccuracy as RobustAccuracy,
)
from keras_uegr.evaluation.statistics import Interval as Interval
from keras_uegr.evaluation.statistics import PairedTest as PairedTest
from keras_uegr.evaluation.statistics import (
    bootstrap_interval as bootstrap_interval,
)
from keras_uegr.evaluation.statistics import mcnemar_test as mcnemar_test
from keras_uegr.evaluation.statistics import (
    paired_permutation_test as paired_permutation_test,
)
from keras_uegr.evaluation.statistics import paired_t_test as paired_t_test
from keras_uegr.evaluation.statistics import t_interval as t_interval
from keras_uegr.evaluation.white_box import (
    attacked_predictions as attacked_predictions,
)
