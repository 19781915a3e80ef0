"""`UEGRModel`: a Keras model that trains the model it wraps with UEGR.

Sun et al., "Unified Enhancement of the Generalization and Robustness of
Language Models" (arXiv:2503.16550). The forward stage is in `objective.py`,
the backward stage in `optimizers/`, their order in `training_step.py`.
"""

import functools

import keras

from keras_uegr import (
    argument_checks,
    classifiers,
    model_parts,
    sharpness,
    sub_model_checks,
    training_metrics,
    value_checks,
)
from keras_uegr.changed_settings import ChangedSettings
from keras_uegr.data_methods import DataMethods
from keras_uegr.saving import Saving
from keras_uegr.trainers import Trainer
from keras_uegr.training_state import TrainingState
from keras_uegr.training_step import training_step


@keras.saving.register_keras_serializable("keras_uegr")
class UEGRModel(Saving, DataMethods, ChangedSettings, Trainer, keras.Model):
    """Fine-tunes a model for generalization and robustness.

    Wraps any `keras.Model` or KerasHub task. `fit` adds to the compiled loss
    the loss of `sub_models` dropout sub-models on perturbed embeddings, and
    the Jensen-Shannon divergence between them. `evaluate`, `predict` and
    export run the wrapped model alone, which stays available, unchanged, as
    `model.model`.

    A training step costs about `1 + sub_models` plain ones. With both weights
    0 it is a plain one.

    Args:
        model: A `keras.Model` or `keras_hub.models.Task`.
        perturbation: A perturbation such as `keras_uegr.FastGradient`, or
            `None` for sub-models of the clean input. Defaults to
            `"fast_gradient"`, that is `FastGradient()`.
        dropout: A `keras_uegr.AdaptiveDropout`, or `None` for the model's own
            rates. Defaults to `"adaptive"`, that is `AdaptiveDropout()`.
        sub_models: Positive integer, the number `K` of dropout passes.
            Defaults to `2`.
        token_share: Float in `(0, 1]`, the share of the tokens that the
            perturbation moves, drawn for each sub-model in each step. If its
            size is the L2 norm of an example, those that move, move farther,
            so that the norm stays; in L-infinity, with a ball for each token,
            and with noise they move as far as before. Defaults to `0.15`.
        adversarial_weight: Float, at least 0. Weight of the sub-models' mean
            loss. Defaults to `1.0`.
        consistency_weight: Float, at least 0. Weight of the divergence.
            Defaults to `5.0`.
        clean_weight: Float, at least 0. Weight of the clean loss. With 0 the
            clean pass still guides the perturbation and the dropout rates.
            Defaults to `1.0`.
        divergence: `"jensen_shannon"` or `"symmetric_kl"`, the mean
            Kullback-Leibler divergence of all ordered pairs. Defaults to
            `"jensen_shannon"`.
        sharpness_radius: Float, at least 0. If positive, the gradient is
            taken where the weights have moved by this distance along their
            own gradient, at the cost of another gradient of everything.
            Weights of half precision round the move, and `compile` warns.
            Defaults to `0.0`.
        include_clean: Boolean. If `True`, the clean output, as a constant, is
            a member of the divergence too. Defaults to `False`.
        warmup_steps: Integer, at least 0. Number of steps over which the
            radius of the perturbation and both weights rise from 0. Defaults
            to `None`, 10 % of the steps of the first `fit`; training without
            `fit` has no warm-up then. Steps that are left out count too.
        sub_models_select: Boolean. If `True`, the sub-models' losses aren't
            trained on: their gradient selects what is updated, with both
            weights in full from the first step on. It takes a
            `SaliencyMaskedOptimizer` of `refresh_steps=None`. Defaults to
            `False`.
        skip_nonfinite: Boolean. If `True`, a step whose gradient has a NaN or
            infinite entry updates neither weights nor optimizer nor the
            statistics of layers, and the metric `skipped_steps` counts it.
            Defaults to `False`.
        output_kind: `"softmax"`, `"sigmoid"` or `"regression"`: how the
            divergence reads the outputs. Defaults to `None`, which takes it
            from the compiled loss. With one that is made for several kinds,
            such as `Dice`, or is not Keras' own it has to be set. Outputs are
            logits to the latter, and probabilities to `Dice` and `Tversky`.
        consistency_outputs: List of names of the outputs that take part in
            the divergence, or of positions where the model gives a list.
            Defaults to `None`, all that have a loss.
        embedding: The token embedding layer, or its name. Defaults to `None`,
            KerasHub's `backbone.token_embedding` or else the model's only
            `Embedding`.
        embedded_input: The name of the input whose embedding is perturbed,
            where that layer embeds more than one. Defaults to `None`, the one
            that the model embeds first, such as an encoder's.
        dropout_layers: List of layers at which the sub-models drop. Defaults
            to `None`: all dropout layers or, in a model without any, the
            embedding and the transformer blocks.
        unperturbed_token_ids: List or array of token ids that are never
            perturbed, or `"special"` for the special tokens of the
            preprocessor's tokenizer. Padding never is either, where it is
            told: by an input `padding_mask` or else by the embedding's
            `mask_zero=True` or else by the tokenizer. Defaults to `()`.
        preprocessor: A `keras_hub.models.Preprocessor` that `fit`, `evaluate`
            and `predict` apply to raw strings. Defaults to `None`, that of
            `model`, if any.
        name: Optional string, the name of the model.

    Raises:
        TypeError: If `model` is not a `keras.Model`.
        ValueError: If another argument is not as above, or the model has no
            embedding or dropout layer to work on.

    Example:

    ```python
    classifier = keras_hub.models.BertTextClassifier.from_preset(
        "bert_tiny_en_uncased", num_classes=2
    )
    model = keras_uegr.UEGRModel(classifier)
    model.compile(
        optimizer=keras_uegr.SaliencyMaskedOptimizer("adamw"),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    )
    model.fit(["a delight", "a bore"], [1, 0])
    ```

    Reference:
        - [Sun et al., 2025](https://arxiv.org/abs/2503.16550)
        - [Foret et al., 2021](https://arxiv.org/abs/2010.01412), the sharpness
    """

    def __init__(
        self,
        model,
        perturbation="fast_gradient",
        dropout="adaptive",
        sub_models=2,
        token_share=0.15,
        adversarial_weight=1.0,
        consistency_weight=5.0,
        clean_weight=1.0,
        divergence="jensen_shannon",
        sharpness_radius=0.0,
        include_clean=False,
        warmup_steps=None,
        sub_models_select=False,
        skip_nonfinite=False,
        output_kind=None,
        consistency_outputs=None,
        embedding=None,
        embedded_input=None,
        dropout_layers=None,
        unperturbed_token_ids=(),
        preprocessor=None,
        name=None,
    ):
        argument_checks.check_model(model)
        argument_checks.check_objective(
            sub_models,
            adversarial_weight,
            consistency_weight,
            clean_weight,
            divergence,
            include_clean,
            output_kind,
        )
        super().__init__(name=name, dtype=model.dtype_policy)
        self.model = model
        self.perturbation = argument_checks.get_perturbation(perturbation)
        self.dropout = argument_checks.get_dropout(dropout)
        self.sub_models = sub_models
        self.token_share = sub_model_checks.get_token_share(token_share)
        self.adversarial_weight = adversarial_weight
        self.consistency_weight = consistency_weight
        self.clean_weight = clean_weight
        self.divergence = divergence
        self.sharpness_radius = sharpness_radius
        self.include_clean = include_clean
        self.output_kind = output_kind
        self.consistency_outputs = argument_checks.get_outputs(
            consistency_outputs
        )
        self.own_preprocessor = preprocessor
        self.unperturbed_token_ids = argument_checks.get_token_ids(
            unperturbed_token_ids, self.preprocessor
        )
        self._embedding = model_parts.layer_names(embedding)
        self.chosen_input = embedded_input
        self._dropout_layers = model_parts.layer_names(dropout_layers)
        self.seed_generator = keras.random.SeedGenerator()
        self.state = TrainingState(self, warmup_steps)
        self.sub_models_select = sub_models_select
        self.skip_nonfinite = skip_nonfinite
        self.training_metrics = training_metrics.create(skip_nonfinite)
        self.built = model.built
        self._check_parts()

    @classmethod
    def from_preset(cls, preset, num_classes, load_weights=True, **kwargs):
        """Wraps the text classifier of a KerasHub preset.

        Args:
            preset: String: a preset's name, handle or folder.
            num_classes: Positive integer, the width of the output.
            load_weights: Boolean, `False` for random weights. Defaults to
                `True`.
            **kwargs: Arguments of `UEGRModel`.

        Returns:
            A `UEGRModel`.
        """
        classifier = classifiers.classifier_from_preset(
            preset, num_classes, load_weights
        )
        return cls(classifier, **kwargs)

    @classmethod
    def from_backbone(cls, backbone, num_classes, preprocessor=None, **kwargs):
        """Wraps a new text classifier around a KerasHub backbone.

        Args:
            backbone: A `keras_hub.models.Backbone`.
            num_classes: Positive integer, the width of the output.
            preprocessor: Optional `keras_hub.models.Preprocessor` for raw
                strings.
            **kwargs: Arguments of `UEGRModel`.

        Returns:
            A `UEGRModel`. Its `model` is the backbone's KerasHub classifier
            or, where there is none, a `PooledClassifier`.
        """
        classifier = classifiers.classifier_from_backbone(
            backbone, num_classes, preprocessor
        )
        if getattr(classifier, "preprocessor", None) is None:
            kwargs["preprocessor"] = preprocessor
        return cls(classifier, **kwargs)

    @property
    def preprocessor(self):
        """The preprocessor for raw strings, or `None`."""
        own = self.own_preprocessor
        return own or getattr(self.model, "preprocessor", None)

    @property
    def padding_token_id(self):
        """What the preprocessor's tokenizer pads with, or `None`."""
        tokenizer = getattr(self.preprocessor, "tokenizer", None)
        return getattr(tokenizer, "pad_token_id", None)

    @property
    def masked_optimizer(self):
        """The `SaliencyMaskedOptimizer` that it is compiled with, or `None`."""
        return model_parts.find_masked_optimizer(self.optimizer)

    @property
    def has_sub_models(self):
        """Whether a training step runs sub-models at all."""
        return self.adversarial_weight > 0 or self.consistency_weight > 0

    @property
    def needs_embedding_gradient(self):
        """Whether the clean backward pass serves the perturbation too."""
        return (
            self.has_sub_models
            and self.perturbation is not None
            and self.perturbation.starts_from_clean_gradient
        )

    @property
    def trains_on_steps(self):
        """Whether the adversarial loss is that of the steps of the ascent."""
        return (
            self.adversarial_weight > 0
            and self.perturbation is not None
            and self.perturbation.train_on_steps
        )

    @property
    def needs_sub_model_pass(self):
        """Whether a step runs the sub-models at the final perturbation."""
        return self.consistency_weight > 0 or not self.trains_on_steps

    @property
    def needs_divergence(self):
        """Whether the divergence is more than a metric."""
        return (
            self.consistency_weight > 0
            or getattr(self.perturbation, "objective", "") == "divergence"
            or sub_model_checks.follows_divergence(self.dropout)
        )

    @property
    def output_names(self):
        """The names that losses, metrics and labels go by, or `None`."""
        return getattr(self.model, "output_names", None)

    # Cached properties stay out of Keras' tracking, which would otherwise save
    # the wrapped model's layers a second time, under other paths.
    @functools.cached_property
    def embedding(self):
        """The embedding layer that is perturbed, or `None`."""
        found = model_parts.find_embedding(
            self.model, self._embedding, required=self.perturbation is not None
        )
        model_parts.check_rematerialization(self.model, [found])
        return found

    @functools.cached_property
    def embedded_input(self):
        """The name of the input whose embedding is perturbed, or `""`."""
        if self.chosen_input is not None:
            return self.chosen_input
        return model_parts.embedded_input(self.model, self.embedding)

    @property
    def dropout_layers(self):
        """The layers at which the sub-models drop."""
        return [] if self.dropout is None else self._found_dropout_layers

    @functools.cached_property
    def _found_dropout_layers(self):
        found = model_parts.find_dropout_layers(
            self.model, self.embedding, self._dropout_layers
        )
        model_parts.check_rematerialization(self.model, found)
        return found

    def _check_parts(self):
        """What the model is known to lack is told at once."""
        argument_checks.check_settings(self)
        value_checks.check_sizes(sharpness_radius=self.sharpness_radius)
        sub_model_checks.check_pass(self)
        sub_model_checks.check_states(self)
        sub_model_checks.warn_if_alike(self)
        model_parts.check_embedded_input(self.model, self.chosen_input)
        argument_checks.check_layer_names(
            self.model, self._embedding, self._dropout_layers
        )
        if self.model.built and self.has_sub_models:
            self.embedding, self.dropout_layers  # noqa: B018
        self.note_settings()

    def build(self, input_shape):
        # Without a method of its own it is built by its first call, and keeps
        # the shapes that its file needs.
        has_build = type(self.model).build is not keras.Model.build
        if has_build and not self.model.built:
            self.model.build(input_shape)
        self.built = True

    def call(self, inputs, training=None):
        # `training` reaches the wrapped model through Keras' call context.
        return self.model(inputs)

    def compile(
        self,
        optimizer="rmsprop",
        loss=None,
        loss_weights=None,
        metrics=None,
        weighted_metrics=None,
        *args,
        **kwargs,
    ):
        """Configures the training, as `keras.Model.compile` does.

        A `SaliencyMaskedOptimizer` is told to update the variables outside
        the backbone, such as a new classification head, in full.

        Args:
            optimizer: A Keras optimizer, or its name.
            loss: A Keras loss, its name, or a structure of them.
            loss_weights: Optional weights of the losses of several outputs.
            metrics: Optional Keras metrics, or their names.
            weighted_metrics: Such metrics, weighted by `sample_weight`.
            *args: Further arguments of `keras.Model.compile`.
            **kwargs: Further arguments of `keras.Model.compile`.
        """
        super().compile(
            optimizer,
            loss,
            loss_weights,
            metrics,
            weighted_metrics,
            *args,
            **kwargs,
        )
        argument_checks.check_replicas(
            self.replicas, self.optimizer, self.skip_nonfinite
        )
        if self.sharpness_radius:
            sharpness.check_precision(self)
        if self.sub_models_select:
            sub_model_checks.check_selecting(self)
        masked = self.masked_optimizer
        if masked is not None:
            # A layer that wasn't called yet has no variables yet.
            outside = functools.partial(
                model_parts.variables_outside_backbone, self.model
            )
            masked.exclude_from_masking(var_list=[outside])

    def training_step(self, data):
        """Trains on a batch, as the backend's `train_step` calls for."""
        return training_step(self, data)

    def finish_step(self, batch, step, applied):
        """Counts a training step and returns all metrics so far.

        Args:
            batch: The `objective.Batch`.
            step: Its `training_step.Objective`.
            applied: Boolean, may be a tensor: whether weights were updated.
        """
        self.state.advance()
        for metric in self.metrics:
            if metric.name == "loss":
                metric.update_state(
                    step.loss * self.replicas, sample_weight=batch.examples
                )
        masked = self.masked_optimizer
        training_metrics.update(
            self.training_metrics,
            batch,
            step,
            self.replicas,
            1.0 if masked is None else masked.updated_fraction,
            applied,
        )
        self.compute_metrics(
            batch.x, batch.y, step.clean.outputs, batch.sample_weight
        )
        return self.get_metrics_result()

    def compute_metrics(self, x, y, y_pred, sample_weight=None):
        """Updates the compiled metrics; leaves out those of training."""
        logs = super().compute_metrics(x, y, y_pred, sample_weight)
        return {
            name: value
            for name, value in logs.items()
            if name not in self.training_metrics
        }
