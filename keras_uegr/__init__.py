"""UEGR for Keras 3: fine-tuning for generalization and robustness."""

from keras_uegr import evaluation as evaluation
from keras_uegr import recipes as recipes
from keras_uegr.adaptive_dropout import AdaptiveDropout as AdaptiveDropout
from keras_uegr.adaptive_dropout import ConfidencePolicy as ConfidencePolicy
from keras_uegr.adaptive_dropout import DivergencePolicy as DivergencePolicy
from keras_uegr.adaptive_dropout import DropoutPolicy as DropoutPolicy
from keras_uegr.adaptive_dropout import DropoutSignals as DropoutSignals
from keras_uegr.adaptive_dropout import ScheduledPolicy as ScheduledPolicy
from keras_uegr.adaptive_dropout import UniformPolicy as UniformPolicy
from keras_uegr.exporting import export_saved_model as export_saved_model
from keras_uegr.optimizers.saliency_masked_optimizer import (
    SaliencyMaskedOptimizer as SaliencyMaskedOptimizer,
)
from keras_uegr.perturbations import FastGradient as FastGradient
from keras_uegr.perturbations import GaussianNoise as GaussianNoise
from keras_uegr.perturbations import Perturbation as Perturbation
from keras_uegr.perturbations import ProjectedGradient as ProjectedGradient
from keras_uegr.perturbations import UniformNoise as UniformNoise
from keras_uegr.preparation import prepare_saliency as prepare_saliency
from keras_uegr.uegr_model import UEGRModel as UEGRModel

__version__ = "0.1.0"
