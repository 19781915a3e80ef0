"""Measures how a trained model stands up to an adversary."""

from keras_uegr.evaluation.model_wrapper import (
    TextAttackModelWrapper as TextAttackModelWrapper,
)
from keras_uegr.evaluation.noise import add_noise as add_noise
from keras_uegr.evaluation.text_attacks import (
    AttackedExample as AttackedExample,
)
from keras_uegr.evaluation.text_attacks import (
    TextAttackResult as TextAttackResult,
)
from keras_uegr.evaluation.text_attacks import attack_texts as attack_texts
from keras_uegr.evaluation.white_box import (
    attacked_predictions as attacked_predictions,
)
