"""Measures how a trained model stands up to an adversary."""

from keras_uegr.evaluation.calibration import (
    expected_calibration_error as expected_calibration_error,
)
from keras_uegr.evaluation.landscape import LossLandscape as LossLandscape
from keras_uegr.evaluation.model_wrapper import (
    TextAttackModelWrapper as TextAttackModelWrapper,
)
from keras_uegr.evaluation.noise import add_noise as add_noise
from keras_uegr.evaluation.robust_accuracy import (
    RobustAccuracy as RobustAccuracy,
)
from keras_uegr.evaluation.robustness_report import Condition as Condition
from keras_uegr.evaluation.robustness_report import (
    RobustnessReport as RobustnessReport,
)
from keras_uegr.evaluation.robustness_report import (
    robustness_report as robustness_report,
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
from keras_uegr.evaluation.text_attacks import (
    AttackedExample as AttackedExample,
)
from keras_uegr.evaluation.text_attacks import (
    TextAttackResult as TextAttackResult,
)
from keras_uegr.evaluation.text_attacks import attack_texts as attack_texts
from keras_uegr.evaluation.white_box import (
    attacked_curve as attacked_curve,
)
from keras_uegr.evaluation.white_box import (
    attacked_predictions as attacked_predictions,
)
