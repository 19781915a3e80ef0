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
