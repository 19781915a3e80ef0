"""NumPy twins of the scores, the selection and the masked step."""

import numpy as np


def scores(saliency, theta, gradient):
    return {
        "taylor": np.abs(theta * gradient),
        "gradient": np.abs(gradient),
        "fisher": 0.01 * gradient**2,
    }[saliency]


def top_mask(score, density):
    """The round(density * n) largest of the n non-zero scores."""
    positive = np.sort(score[score > 0])[::-1]
    count = int(np.round(density * len(positive)))
    if count == 0:
        return np.zeros(score.shape, bool)
    return (score >= positive[count - 1]) & (score > 0)


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

    def __init__(self, inner, density, saliency, decay):
        self.inner = inner
        self.density = density
        self.saliency = saliency
        self.decay = decay
        self.averages = {}

    def step(self, values, gradients):
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
            mask = top_mask(score, self.density)
            new_values[item] = np.where(mask, new_values[item], value)
        return new_values
