"""Optimizers that update the most salient entries only."""

from keras_uegr.optimizers.saliency_masked_optimizer import (
    SaliencyMaskedOptimizer as SaliencyMaskedOptimizer,
)
