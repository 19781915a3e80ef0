"""White-box attack: the perturbations of training, turned on the result.

    delta = perturbation of e that raises l(y, f(e + delta)), in inference
    answer = f(e + delta)

The gradient is exact and the model's own (no dropout), so a perturbation of
several steps gives an upper bound on the accuracy that an adversary with that
radius leaves.
"""

import functools
import operator
import warnings

import keras
import numpy as np
from keras import ops

from keras_uegr import (
    argument_checks,
    forward_pass,
    objective,
    value_checks,
)
from keras_uegr.batches import batches
from keras_uegr.evaluation.finite_gradients import differentiate
from keras_uegr.evaluation.labelled_data import preprocessed

# Draws of one batch that are left before those of the next one begin.
_DRAWS = 2**16


def attacked_predictions(model, x, y, perturbation, batch_size=32, seed=0):
    """The outputs of `model` on perturbed embeddings.

    The loss has to have a gradient: compile a model that gives logits. Keras
    clips probabilities, so that where one is 0 or 1 the gradient is 0, nothing
    is moved, and the model looks more robust than it is. A warning tells how
    many examples that were.

    Args:
        model: A compiled `keras_uegr.UEGRModel`; its loss is attacked.
        x: List of strings, or arrays, of `N` examples, as for `predict`.
        y: Array of `N` labels, the true ones; a list or dictionary of arrays
            for a model of several outputs; `None` where the preprocessor makes
            the labels, as those of language models do.
        perturbation: A perturbation such as
            `keras_uegr.ProjectedGradient(epsilon=0.05, steps=10)`.
        batch_size: Positive integer, examples at once. Defaults to `32`.
        seed: Integer, for perturbations that draw. Defaults to `0`.

    Returns:
        NumPy array of shape `(N, ...)`, or a structure of them, what `predict`
        would return if the embeddings were perturbed. The model is as it was.

    Raises:
        ValueError: If the model is not a `UEGRModel`, not compiled with a
            loss, not built, or has no embedding to perturb, if `perturbation`
            is not a perturbation, or if `x` and `y` don't fit to each other
            or to the model.

    Example:

    >>> attack = keras_uegr.ProjectedGradient(epsilon=0.05, steps=10)
    >>> logits = attacked_predictions(model, texts, labels, attack)
    >>> accuracy = (logits.argmax(axis=-1) == labels).mean()

    Reference:
        - [Madry et al., 2018](https://arxiv.org/abs/1706.06083)
    """
    attack = compile_attack(model, perturbation)
    data = preprocessed(model, x, y)
    outputs, stuck = run_attack(attack, data, batch_size, seed)
    warn_if_stuck(stuck, stacklevel=2)
    return outputs


def attacked_curve(model, x, y, perturbation, epsilons, batch_size=32, seed=0):
    """The outputs of `model` under one attack, at several radii.

    Compiled once, it takes less time than `attacked_predictions` for each. As
    there, the loss has to have a gradient, best of logits.

    Args:
        model: A compiled `keras_uegr.UEGRModel`; its loss is attacked.
        x: List of strings, or arrays, of `N` examples, as for `predict`.
        y: Array of `N` labels, the true ones; a list or dictionary of arrays
            for a model of several outputs; `None` where the preprocessor makes
            the labels, as those of language models do.
        perturbation: A perturbation with a positive `epsilon`, such as
            `keras_uegr.ProjectedGradient(steps=10)`. Its step size grows and
            shrinks with the radius.
        epsilons: List of floats, at least 0: the radii, each in place of the
            perturbation's `epsilon`.
        batch_size: Positive integer, examples at once. Defaults to `32`.
        seed: Integer, for perturbations that draw. Defaults to `0`.

    Returns:
        Dictionary by radius of what `attacked_predictions` returns.

    Raises:
        ValueError: If `perturbation` has no positive `epsilon`, or one of
            `epsilons` isn't finite and at least 0; else as
            `attacked_predictions`.

    Example:

    >>> attack = keras_uegr.ProjectedGradient(steps=3)
    >>> curve = keras_uegr.evaluation.attacked_curve(
    ...     model, texts, labels, attack, epsilons=[0.01, 0.05]
    ... )
    >>> {epsilon: logits.shape[-1] for epsilon, logits in curve.items()}
    {0.01: 2, 0.05: 2}

    Reference:
        - [Madry et al., 2018](https://arxiv.org/abs/1706.06083)
    """
    epsilons = list(epsilons)
    attack = compile_attack(model, perturbation)
    argument_checks.check_epsilons(perturbation, epsilons)
    data = preprocessed(model, x, y)
    curve, stuck = {}, False
    for epsilon in epsilons:
        strength = epsilon / perturbation.epsilon
        curve[epsilon], found = run_attack(
            attack, data, batch_size, seed, strength
        )
        stuck = np.logical_or(stuck, found)
    warn_if_stuck(stuck, stacklevel=2)
    return curve


def compile_attack(model, perturbation):
    """A function of a batch, a strength and a seed to what `run_attack` joins.

    It reads the weights that the model has when it is called.

    Args:
        model: A compiled `UEGRModel`.
        perturbation: A perturbation.
    """
    argument_checks.check_compiled(model)
    argument_checks.check_built(model)
    argument_checks.check_attack(model, perturbation)
    return model.compile_inference(
        functools.partial(
            _attack, model, perturbation, keras.random.SeedGenerator(0)
        )
    )


def run_attack(attack, data, batch_size, seed=0, strength=1.0):
    """The outputs of what `compile_attack` made, batch by batch.

    Args:
        attack: A function of a batch, a strength and a seed.
        data: Tuple `(x, y, sample_weight)` of `N` preprocessed examples.
        batch_size: Positive integer.
        seed: Integer. Each batch draws anew, each call the same. Defaults to
            `0`.
        strength: Float, a factor on the perturbation's sizes. Defaults to
            `1.0`.

    Returns:
        Tuple of a NumPy array of shape `(N, ...)`, or a structure of them, and
        of an array of `N` booleans: whether every gradient was 0, so that an
        example that may be moved was not.
    """
    value_checks.check_positive_integers(batch_size=batch_size)
    # Tensors, for new numbers would be traced anew.
    strength = ops.convert_to_tensor(strength, "float32")
    # Keras takes no integer of NumPy.
    seed = operator.index(seed)
    start = ops.convert_to_numpy(keras.random.SeedGenerator(seed).state)
    x, y, sample_weight = data
    found = []
    for index, batch in enumerate(batches(x, y, batch_size, sample_weight)):
        # Half of a state has 32 bits.
        carry, place = divmod(index * _DRAWS, 2**32)
        state = start + np.array([carry, place]).astype(start.dtype)
        arguments = (batch, strength, ops.convert_to_tensor(state))
        found.append(
            keras.tree.map_structure(ops.convert_to_numpy, attack(arguments))
        )
    return keras.tree.map_structure(
        lambda *parts: np.concatenate(parts), *found
    )


def warn_if_stuck(stuck, stacklevel):
    """Tells of examples that look robust because nothing moved them.

    Args:
        stuck: Array of booleans, as `run_attack` returns them.
        stacklevel: Integer, as of `warnings.warn` where this is called.
    """
    if np.any(stuck):
        warnings.warn(
            f"The gradient of the loss is 0 for {np.mean(stuck):.1%} of the "
            "examples, so the attack could not move them. Keras clips "
            "probabilities: let the model give logits, and compile it with a "
            "loss that has `from_logits=True`.",
            stacklevel=stacklevel + 1,
        )


def _attack(model, perturbation, seed, arguments):
    data, strength, seed_state = arguments
    batch = objective.Batch(*data)
    _, seen = forward_pass.run(model, batch.x, None, training=False)
    embedded = forward_pass.embedded_batch(model, batch.x, seen)
    at = (embedded.embedding, embedded.movable)
    shifted = functools.partial(
        objective.perturbed_pass, model, batch, training=False
    )
    # In a compiled function a generator would draw the same in every batch.
    with keras.StatelessScope([(seed.state, seed_state)]):
        delta = perturbation.start(*at, strength, seed)
    # Only what may be moved, and along a gradient, can be stuck.
    steps = perturbation.gradient_steps
    stuck = ops.any(embedded.movable * steps > 0, axis=(1, 2))
    for _ in range(steps):
        _, _, [gradient] = differentiate(
            model, functools.partial(shifted, delta), [], watch_embedding=True
        )
        argument_checks.check_embedding_gradient(model, gradient)
        delta = perturbation.ascend(delta, gradient, *at, strength)
        stuck = ops.logical_and(stuck, ops.all(gradient == 0, axis=(1, 2)))
    return shifted(delta)[1], stuck
