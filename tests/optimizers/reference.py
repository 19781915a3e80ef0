"""NumPy twins of the scores, the selection and the masked step."""

import numpy as np


def scores(saliency, theta, gradient):
    return {
        "taylor": np.abs(theta * gradient),
        "gradient": np.abs(gradient),
        "inverse_gradient": 1 / (np.abs(gradient) + 1e-30),
        "fisher": 0.01 * gradient**2,
    }[saliency]


def top_mask(score, density):
    """The round(density * n) largest of the n non-zero scores."""
    positive = np.sort(score[score > 0])[::-1]
    count = int(np.round(density * len(positive)))
    if count == 0:
        return np.zeros(score.shape, bool)
    return (score >= positive[count - 1]) & (score > 0)


def ranks(score):
    """The rank of each entry among the non-zero scores, from 0 to 1."""
    live = score[score > 0]
    return ((live < score[..., None]).sum(axis=-1) + 0.5) / live.size


def selection_probability(score, center, noise):
    """That of each entry, by its rank."""
    probability = 1 / (1 + np.exp(-(ranks(score) - center) / noise))
    return np.where(score > 0, probability, 0.0)


def drawn_mask(score, center, noise, uniform, steps=1024):
    """What the draws `uniform` select, to so many steps of the rank."""
    wanted = center + noise * (np.log(uniform) - np.log1p(-uniform))
    return (score > 0) & (ranks(score) >= np.round(wanted * steps) / steps)


def norm(tensor):
    return np.sqrt((tensor**2).sum())


class AdamW:
    """Keras' AdamW with its default momenta."""

    def __init__(self, learning_rate, weight_decay):
        self.learning_rate = learning_rate
        self.weight_decay = weight_decay
        self.steps = 0
        self.moments = {}

    def step(self, values, gradients):
        self.steps += 1
        rate = self.learning_rate
        rate *= np.sqrt(1 - 0.999**self.steps) / (1 - 0.9**self.steps)
        new_values = []
        for item, (value, g) in enumerate(zip(values, gradients, strict=True)):
            m, v = self.moments.get(item, (0.0, 0.0))
            m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g**2
            self.moments[item] = m, v
            value = value * (1 - self.weight_decay * self.learning_rate)
            new_values.append(value - rate * m / (np.sqrt(v) + 1e-7))
        return new_values


class SaliencyMasked:
    """The masked step around another optimizer of this module."""

    def __init__(self, inner, density, saliency, decay, refresh_steps=1):
        self.inner = inner
        self.density = density
        self.saliency = saliency
        self.decay = decay
        self.refresh_steps = refresh_steps
        self.averages = {}
        self.masks = {}
        self.steps = 0

    def step(self, values, gradients):
        is_due = self.steps % self.refresh_steps == 0
        self.steps += 1
        new_values = self.inner.step(values, gradients)
        for item, (value, g) in enumerate(zip(values, gradients, strict=True)):
            if value.ndim < 2:
                continue
            if self.saliency == "fisher":
                past = self.averages.get(item, 0.0)
                score = self.decay * past + (1 - self.decay) * g**2
                self.averages[item] = score
            else:
                score = scores(self.saliency, value, g)
            if is_due:
                self.masks[item] = top_mask(score, self.density)
            new_values[item] = np.where(
                self.masks[item], new_values[item], value
            )
        return new_values
