"""How a `UEGRModel` is written to a file, and read back."""

import copy
import inspect

import keras
import numpy as np

from keras_uegr import (
    checksums,
    frozen_layers,
    keras_internals,
    model_attributes,
)

# The attributes that lead to layers of the wrapped model, or its optimizer.
_PARTS = (
    "embedding",
    "dropout_layers",
    "_found_dropout_layers",
    "masked_optimizer",
)
_LAYOUT = "layout"


class Saving:
    """The part of `UEGRModel` that `save` and `load_model` call."""

    _lists_parts = False

    def __dir__(self):
        # Keras puts a layer's weights where it first comes across the layer,
        # going through these names: it would depend on the settings.
        names = super().__dir__()
        if self._lists_parts:
            return names
        return [name for name in names if name not in _PARTS]

    def compile(self, *args, **kwargs):
        super().compile(*args, **kwargs)
        arguments = inspect.signature(super().compile).bind(*args, **kwargs)
        self._jit_compile_argument = arguments.arguments.get(
            "jit_compile", "auto"
        )

    def get_compile_config(self):
        config = super().get_compile_config()
        if config:
            # Keras stores what "auto" means on this backend: a file from JAX
            # would have PyTorch compile for a minute.
            config["jit_compile"] = self._jit_compile_argument
        return config

    def compile_from_config(self, config):
        # A torch optimizer's own module would import torch on any backend.
        optimizer = keras.optimizers.deserialize(
            copy.deepcopy(config["optimizer"])
        )
        config = {k: v for k, v in config.items() if k != "optimizer"}
        self.compile(optimizer, **keras.saving.deserialize_keras_object(config))
        if self.built:
            self.optimizer.build(self.trainable_variables)

    def export(self, filepath, *args, **kwargs):
        """Exports the wrapped model, as its own `export` does.

        `keras_uegr.export_saved_model` writes a SavedModel from every backend,
        and one that takes strings.

        Args:
            filepath: String or path.
            *args: Further arguments of `keras.Model.export`.
            **kwargs: Further arguments of `keras.Model.export`.
        """
        self.model.export(filepath, *args, **kwargs)

    def save_weights(self, filepath, *args, **kwargs):
        """Saves weights as Keras does, with a checksum.

        Args:
            filepath: String or path that ends in `.weights.h5` or, with
                `max_shard_size`, in `.weights.json`.
            *args: Further arguments of `keras.Model.save_weights`.
            **kwargs: Further arguments of `keras.Model.save_weights`.
        """
        super().save_weights(filepath, *args, **kwargs)
        checksums.write(filepath)

    def load_weights(self, filepath, *args, **kwargs):
        """Loads weights as Keras does, or leaves the model as it was.

        Args:
            filepath: String or path, a file that `save_weights` wrote.
            *args: Further arguments of `keras.Model.load_weights`.
            **kwargs: Further arguments of `keras.Model.load_weights`.

        Raises:
            OSError: If the file was cut short, or changed since it was saved.
        """
        checksums.check(filepath)
        variables = list(self.variables)
        if self.compiled:
            variables += self.optimizer.variables
        # Copies: on PyTorch the arrays would be views of the variables.
        before = [
            np.array(keras.ops.convert_to_numpy(variable))
            for variable in variables
        ]
        try:
            super().load_weights(filepath, *args, **kwargs)
        except Exception:
            for variable, value in zip(variables, before, strict=True):
                variable.assign(value)
            raise

    def save_own_variables(self, store):
        super().save_own_variables(store)
        for i, state in enumerate(keras_internals.seed_generator_states(self)):
            store[f"seed_{i}"] = keras.ops.convert_to_numpy(state)
        self.save_random_state(store)
        self._lists_parts = False
        store[_LAYOUT] = np.asarray(1)

    def load_own_variables(self, store):
        positions = [int(key) for key in store.keys() if key.isdigit()]  # noqa: SIM118
        own = self.state.completed([store[str(i)] for i in sorted(positions)])
        super().load_own_variables({str(i): x for i, x in enumerate(own)})
        for i, state in enumerate(keras_internals.seed_generator_states(self)):
            # A dropout layer of rate 0 has no seed, and left none in the file.
            if f"seed_{i}" in store:
                # Backends disagree on the integer type of a seed.
                state.assign(np.asarray(store[f"seed_{i}"]).astype(state.dtype))
        self.load_random_state(store)
        # Files of earlier versions have layers under the names of parts.
        self._lists_parts = _LAYOUT not in store

    def get_config(self):
        model = keras.saving.serialize_keras_object(self.model)
        # The wrapper is what is trained; a KerasHub task, which compiles
        # itself, would warn on loading that it can't do so again.
        model.pop("compile_config", None)
        frozen = frozen_layers.serialize(self.model)
        return {
            "model": model,
            "model_attributes": model_attributes.serialize(
                self.model, model["config"]
            ),
            **({"frozen_layers": frozen} if frozen else {}),
            "perturbation": keras.saving.serialize_keras_object(
                self.perturbation
            ),
            "dropout": keras.saving.serialize_keras_object(self.dropout),
            "sub_models": self.sub_models,
            "token_share": self.token_share,
            "adversarial_weight": self.adversarial_weight,
            "consistency_weight": self.consistency_weight,
            "clean_weight": self.clean_weight,
            "divergence": self.divergence,
            "sharpness_radius": self.sharpness_radius,
            "include_clean": self.include_clean,
            "warmup_steps": self.warmup_steps,
            "sub_models_select": self.sub_models_select,
            "skip_nonfinite": self.skip_nonfinite,
            "output_kind": self.output_kind,
            "consistency_outputs": self.consistency_outputs,
            "embedding": self._embedding,
            "embedded_input": self.chosen_input,
            "dropout_layers": self._dropout_layers,
            "unperturbed_token_ids": self.unperturbed_token_ids,
            "preprocessor": keras.saving.serialize_keras_object(
                self.own_preprocessor
            ),
            "name": self.name,
        }

    @classmethod
    def from_config(cls, config):
        # Keras' `deserialize` changes what it is given.
        config = _copied(config)
        for name in ("model", "perturbation", "dropout", "preprocessor"):
            config[name] = keras.saving.deserialize_keras_object(config[name])
        # Files of earlier versions have none of either; they moved all tokens.
        config.setdefault("token_share", 1.0)
        attributes = config.pop("model_attributes", {})
        model_attributes.restore(config["model"], attributes)
        frozen = config.pop("frozen_layers", [])
        if frozen:
            frozen_layers.restore(config["model"], frozen)
        return cls(**config)


def _copied(config):
    """`config` with structures of its own; what is in them may be anything."""
    if isinstance(config, dict):
        return {key: _copied(value) for key, value in config.items()}
    if isinstance(config, list):
        return [_copied(value) for value in config]
    return config
