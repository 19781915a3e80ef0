"""Perturbations of the token embeddings: the adversary of the forward stage.

Algorithm. `e` is an example's embedding, `(T, D)`, `g = dL/de`, `E` the radius
in units of the embedding, all norms over the positions that may move:

    scale s  = ||e||_2 (L2) or RMS(e) (L-infinity), or 1 when not `relative`
    E        = epsilon * s * strength
    delta_0  = 0, or uniform in the E-ball           (start)
    repeat `steps` times:
        delta <- delta + step_size * s * normalize(g(e + delta))    (ascend)
        delta <- projection of delta on the E-ball                  (project)

with `normalize(g) = g / ||g||_2` (L2; Miyato et al., arXiv:1605.07725) or
`sign(g)` (L-infinity; Goodfellow et al., arXiv:1412.6572): what raises the loss
most inside of the ball, to first order. With `direction="gradient"` it is
`g / ||g||_inf` in L-infinity, as in SMART (arXiv:1911.03437) and RoAST
(arXiv:2312.04032). One step of size `epsilon` is the fast gradient; several are
projected gradient (Madry et al., arXiv:1706.06083). `strength`, in `[0, 1]`, is
the warm-up.

Where texts and released code disagree: FGM in bert4keras takes one norm over
the whole batch, here it is per example; FreeLB (arXiv:1909.11764) masks the
padding at the start only, here every step does; SMART uses epsilon only in the
denominator, here the norm is the radius that was asked for.

A perturbation is a pure function of its inputs; variants change only *start*,
*normalize* and *project*.
"""

import keras
from keras import ops

from keras_uegr import value_checks


class Perturbation:
    """Base class of the perturbations.

    Subclasses implement `start`, and, if they use gradients, set
    `gradient_steps` and implement `ascend`. They set `size_is_l2_norm` if their
    size is the L2 norm of a whole example: `UEGRModel(token_share=...)` keeps
    that norm then, and otherwise leaves each token or entry its size.

    Args:
        relative: Boolean. If `True` (default), sizes are in units of the
            example's own embedding, so that one value serves every backbone.
    """

    gradient_steps = 0
    random_start = False
    objective = "loss"
    train_on_steps = False
    size_is_l2_norm = False

    def __init__(self, relative=True):
        self.relative = relative

    @property
    def starts_from_clean_gradient(self):
        """Whether the first gradient is that of the clean pass."""
        return (
            self.gradient_steps > 0
            and not self.random_start
            and self.objective == "loss"
            and not self.train_on_steps
        )

    def start(self, embedding, mask, strength, seed):
        """The perturbation before the first gradient step.

        Args:
            embedding: Float tensor of shape `(B, T, D)`.
            mask: Float tensor of shape `(B, T, 1)`, 1 where a position may
                move and 0 elsewhere.
            strength: Scalar tensor in `[0, 1]`, a factor on the radius.
            seed: `keras.random.SeedGenerator`.

        Returns:
            A float32 tensor of shape `(B, T, D)`, 0 where `mask` is 0.
        """
        raise NotImplementedError

    def ascend(self, delta, gradient, embedding, mask, strength):
        """`delta` after one step along `gradient`; shapes as in `start`."""
        raise NotImplementedError

    def get_config(self):
        return {"relative": self.relative}

    @classmethod
    def from_config(cls, config):
        return cls(**config)


class _NormBall(Perturbation):
    """Gradient ascent inside a ball: what fast and projected gradient share."""

    def __init__(
        self,
        epsilon,
        steps,
        random_start,
        norm,
        per_token,
        relative,
        direction,
    ):
        super().__init__(relative)
        value_checks.check_sizes(epsilon=epsilon)
        value_checks.check_choice("norm", norm, ("l2", "linf"))
        value_checks.check_choice(
            "direction", direction, ("steepest", "gradient")
        )
        self.epsilon = epsilon
        self.gradient_steps = steps
        self.random_start = random_start
        self.norm = norm
        self.per_token = per_token
        self.direction = direction

    def start(self, embedding, mask, strength, seed):
        if not self.random_start:
            return ops.zeros_like(embedding, dtype="float32")
        radius = self.epsilon * strength * self._scale(embedding, mask)
        shape = ops.shape(embedding)
        if self.norm == "linf":
            noise = keras.random.uniform(
                shape, -1.0, 1.0, dtype="float32", seed=seed
            )
            return radius * noise * mask
        direction = self._normalize(
            keras.random.normal(shape, dtype="float32", seed=seed) * mask
        )
        # A point uniform in a ball of dimension n lies at radius u^(1/n).
        dimension = embedding.shape[-1] * ops.sum(
            mask, axis=self._axes, keepdims=True
        )
        uniform = keras.random.uniform(
            ops.shape(dimension), dtype="float32", seed=seed
        )
        distance = uniform ** (1.0 / ops.maximum(dimension, 1.0))
        return radius * distance * direction

    def ascend(self, delta, gradient, embedding, mask, strength):
        scale = strength * self._scale(embedding, mask)
        gradient = ops.cast(gradient, "float32") * mask
        delta = delta + self.step_size * scale * self._normalize(gradient)
        return self._project(delta, self.epsilon * scale)

    @property
    def size_is_l2_norm(self):
        return self.norm == "l2" and not self.per_token

    @property
    def _axes(self):
        if self.per_token:
            return -1
        return (-2, -1)

    def _scale(self, embedding, mask):
        if not self.relative:
            return 1.0
        embedding = ops.cast(embedding, "float32")
        square = ops.sum(
            ops.square(embedding) * mask, axis=self._axes, keepdims=True
        )
        if self.norm == "linf":
            count = ops.sum(mask, axis=self._axes, keepdims=True)
            square = square / ops.maximum(count * embedding.shape[-1], 1.0)
        return ops.sqrt(square)

    def _normalize(self, gradient):
        if self.norm == "linf" and self.direction == "steepest":
            return ops.sign(gradient)
        # Also in L2: it keeps tiny gradients, whose squares underflow, from
        # vanishing.
        gradient = divide(
            gradient, ops.max(ops.abs(gradient), axis=self._axes, keepdims=True)
        )
        if self.norm == "linf":
            return gradient
        return divide(gradient, l2_norm(gradient, self._axes))

    def _project(self, delta, radius):
        if self.norm == "linf":
            return ops.maximum(ops.minimum(delta, radius), -radius)
        norm = l2_norm(delta, self._axes)
        return ops.where(norm > radius, radius * divide(delta, norm), delta)

    def get_config(self):
        return {
            **super().get_config(),
            "epsilon": self.epsilon,
            "norm": self.norm,
            "per_token": self.per_token,
            "direction": self.direction,
        }


@keras.saving.register_keras_serializable("keras_uegr")
class FastGradient(_NormBall):
    """One gradient step to the border of the epsilon-ball.

    It needs no pass of its own: the gradient is the one of the clean loss.

    Args:
        epsilon: Float, at least 0. Radius of the ball: with `relative=True` a
            fraction of the example's embedding norm (L2) or of its root mean
            square (L-infinity), otherwise in units of the embedding.
            Defaults to `0.06`.
        norm: `"l2"` (default) or `"linf"`.
        per_token: Boolean. If `True`, each token has a ball of its own;
            otherwise (default) one ball for the whole example.
        relative: Boolean, see `epsilon`. Defaults to `True`.
        direction: `"steepest"` (default), which in L-infinity is the sign of
            the gradient, or `"gradient"`, there the gradient divided by its
            largest entry: of the same radius, and shorter in L2. With
            `norm="l2"` they are the same.

    Raises:
        ValueError: If `epsilon` is negative or not finite, or `norm` or
            `direction` unknown.

    Example:

    >>> perturbation = keras_uegr.FastGradient(epsilon=0.06, norm="l2")

    Reference:
        - [Goodfellow et al., 2015](https://arxiv.org/abs/1412.6572)
        - [Miyato et al., 2017](https://arxiv.org/abs/1605.07725)
    """

    def __init__(
        self,
        epsilon=0.06,
        norm="l2",
        per_token=False,
        relative=True,
        direction="steepest",
    ):
        super().__init__(
            epsilon=epsilon,
            steps=1,
            random_start=False,
            norm=norm,
            per_token=per_token,
            relative=relative,
            direction=direction,
        )

    @property
    def step_size(self):
        return self.epsilon


@keras.saving.register_keras_serializable("keras_uegr")
class ProjectedGradient(_NormBall):
    """Several gradient steps, projected on the epsilon-ball after each.

    Every step but the first costs one more forward and backward pass; with
    `random_start=True` the first does too.

    Args:
        epsilon: Float, at least 0. Radius of the ball, as in `FastGradient`.
            Defaults to `0.05`.
        steps: Positive integer, the number of gradient steps. Defaults to `3`.
        step_size: Float, at least 0, in the unit of `epsilon`. Defaults to
            `2.5 * epsilon / steps`, which lets every point of the ball be
            reached.
        random_start: Boolean. If `True`, start at a point uniform in the
            ball, otherwise (default) at the embedding itself.
        norm: `"l2"` (default) or `"linf"`.
        per_token: Boolean. If `True`, each token has a ball of its own.
            Defaults to `False`.
        relative: Boolean, as in `FastGradient`. Defaults to `True`.
        objective: `"loss"` (default), what the steps raise, or
            `"divergence"`: that from the clean outputs, which are constants.
            It has no gradient at the embedding itself, so it needs
            `random_start=True`.
        train_on_steps: Boolean. If `True`, the adversarial loss in training
            is the mean over the points that the gradients are taken at, which
            needs no pass more; otherwise (default) it is the sub-models' at
            the last point.
        direction: `"steepest"` (default) or `"gradient"`, as in
            `FastGradient`.

    Raises:
        ValueError: If a size is negative or not finite, `steps` is not a
            positive integer, `norm`, `objective` or `direction` is unknown,
            or `objective="divergence"` starts at the embedding or trains on
            its steps.

    Example:

    >>> perturbation = keras_uegr.ProjectedGradient(epsilon=0.05, steps=3)

    Reference:
        - [Madry et al., 2018](https://arxiv.org/abs/1706.06083)
        - [Jiang et al., 2020](https://arxiv.org/abs/1911.03437), the
          divergence
        - [Zhu et al., 2020](https://arxiv.org/abs/1909.11764), training on
          the steps
    """

    def __init__(
        self,
        epsilon=0.05,
        steps=3,
        step_size=None,
        random_start=False,
        norm="l2",
        per_token=False,
        relative=True,
        objective="loss",
        train_on_steps=False,
        direction="steepest",
    ):
        value_checks.check_positive_integers(steps=steps)
        if step_size is not None:
            value_checks.check_sizes(step_size=step_size)
        _check_objective(objective, random_start, train_on_steps)
        self.objective = objective
        self.train_on_steps = train_on_steps
        self._given_step_size = step_size
        super().__init__(
            epsilon=epsilon,
            steps=steps,
            random_start=random_start,
            norm=norm,
            per_token=per_token,
            relative=relative,
            direction=direction,
        )

    @property
    def steps(self):
        return self.gradient_steps

    @steps.setter
    def steps(self, steps):
        self.gradient_steps = steps

    @property
    def step_size(self):
        if self._given_step_size is None:
            # It follows a radius that is changed later.
            return 2.5 * self.epsilon / self.gradient_steps
        return self._given_step_size

    @step_size.setter
    def step_size(self, step_size):
        self._given_step_size = step_size

    def get_config(self):
        return {
            **super().get_config(),
            "steps": self.steps,
            "step_size": self._given_step_size,
            "random_start": self.random_start,
            "objective": self.objective,
            "train_on_steps": self.train_on_steps,
        }


class _Noise(Perturbation):
    """Independent noise on each entry; needs no gradient."""

    def _draw(self, shape, seed):
        raise NotImplementedError

    def start(self, embedding, mask, strength, seed):
        noise = self._draw(ops.shape(embedding), seed) * strength * mask
        if not self.relative:
            return noise
        embedding = ops.cast(embedding, "float32") * mask
        count = ops.sum(mask, axis=(-2, -1), keepdims=True)
        mean_square = ops.sum(
            ops.square(embedding), axis=(-2, -1), keepdims=True
        ) / ops.maximum(count * embedding.shape[-1], 1.0)
        return noise * ops.sqrt(mean_square)


@keras.saving.register_keras_serializable("keras_uegr")
class GaussianNoise(_Noise):
    """Normal noise of mean 0 on each entry of the embedding.

    Args:
        stddev: Float, at least 0. Standard deviation: with `relative=True` a
            fraction of the root mean square of the example's embedding.
            Defaults to `0.05`.
        relative: Boolean, see `stddev`. Defaults to `True`.

    Raises:
        ValueError: If `stddev` is negative or not finite.

    Example:

    >>> perturbation = keras_uegr.GaussianNoise(stddev=0.1)
    """

    def __init__(self, stddev=0.05, relative=True):
        super().__init__(relative)
        value_checks.check_sizes(stddev=stddev)
        self.stddev = stddev

    def _draw(self, shape, seed):
        return self.stddev * keras.random.normal(
            shape, dtype="float32", seed=seed
        )

    def get_config(self):
        return {**super().get_config(), "stddev": self.stddev}


@keras.saving.register_keras_serializable("keras_uegr")
class UniformNoise(_Noise):
    """Uniform noise in `[-epsilon, epsilon]` on each entry of the embedding.

    Args:
        epsilon: Float, at least 0. Half the width: with `relative=True` a
            fraction of the root mean square of the example's embedding.
            Defaults to `0.05`.
        relative: Boolean, see `epsilon`. Defaults to `True`.

    Raises:
        ValueError: If `epsilon` is negative or not finite.

    Example:

    >>> perturbation = keras_uegr.UniformNoise(epsilon=0.1)
    """

    def __init__(self, epsilon=0.05, relative=True):
        super().__init__(relative)
        value_checks.check_sizes(epsilon=epsilon)
        self.epsilon = epsilon

    def _draw(self, shape, seed):
        return keras.random.uniform(
            shape, -self.epsilon, self.epsilon, dtype="float32", seed=seed
        )

    def get_config(self):
        return {**super().get_config(), "epsilon": self.epsilon}


def _check_objective(objective, random_start, train_on_steps):
    value_checks.check_choice("objective", objective, ("loss", "divergence"))
    if objective == "divergence" and not random_start:
        raise ValueError(
            'With `objective="divergence"` the first gradient is 0 unless '
            "`random_start=True`. Received: random_start=False"
        )
    if objective == "divergence" and train_on_steps:
        raise ValueError(
            "`train_on_steps=True` trains on the loss, so `objective` must "
            'be "loss". Received: objective=divergence'
        )


def l2_norm(x, axes):
    """The L2 norm over the axes, which stay with length 1."""
    return ops.sqrt(ops.sum(ops.square(x), axis=axes, keepdims=True))


def divide(x, y):
    """`x / y`, and 0 where `y` is 0."""
    return x / ops.where(y > 0, y, ops.ones_like(y)) * ops.cast(y > 0, x.dtype)
