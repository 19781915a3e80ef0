"""One UEGR step in NumPy, derived by hand, to hold the backends against.

The model: embedding -> mean over the positions -> dense tanh -> dense, with
softmax cross-entropy. Parameters are a dict; the update is plain SGD.
"""

import numpy as np


def random_parameters(vocabulary, width, hidden, classes, seed=0):
    rng = np.random.default_rng(seed)
    shapes = {
        "embedding": (vocabulary, width),
        "kernel_1": (width, hidden),
        "bias_1": (hidden,),
        "kernel_2": (hidden, classes),
        "bias_2": (classes,),
    }
    return {name: rng.normal(0, 0.7, shape) for name, shape in shapes.items()}


def forward(parameters, embedded):
    """Logits, and what the backward pass needs."""
    pooled = embedded.mean(axis=1)
    hidden = np.tanh(pooled @ parameters["kernel_1"] + parameters["bias_1"])
    logits = hidden @ parameters["kernel_2"] + parameters["bias_2"]
    return logits, (pooled, hidden)


def backward(parameters, token_ids, cache, logits_gradient):
    """Gradients of the parameters, and of the embedded tokens."""
    pooled, hidden = cache
    gradients = {
        "kernel_2": hidden.T @ logits_gradient,
        "bias_2": logits_gradient.sum(axis=0),
    }
    before_tanh = (logits_gradient @ parameters["kernel_2"].T) * (1 - hidden**2)
    gradients["kernel_1"] = pooled.T @ before_tanh
    gradients["bias_1"] = before_tanh.sum(axis=0)
    length = token_ids.shape[1]
    embedded = (before_tanh @ parameters["kernel_1"].T)[:, None, :] / length
    embedded = np.repeat(embedded, length, axis=1)
    gradients["embedding"] = np.zeros_like(parameters["embedding"])
    np.add.at(gradients["embedding"], token_ids, embedded)
    return gradients, embedded


def softmax(logits):
    exponential = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return exponential / exponential.sum(axis=-1, keepdims=True)


def cross_entropy_gradient(logits, labels):
    return (softmax(logits) - np.eye(logits.shape[-1])[labels]) / len(labels)


def jensen_shannon(members):
    """Divergence `(B,)` of the distributions `(K, B, C)`."""
    mixture = members.mean(axis=0)
    return (members * np.log(members / mixture)).sum(axis=-1).mean(axis=0)


def jensen_shannon_gradient(members, k):
    """Gradient of the batch mean with respect to the logits of member `k`."""
    log_ratio = np.log(members[k] / members.mean(axis=0))
    relative_entropy = (members[k] * log_ratio).sum(axis=-1, keepdims=True)
    gradient = members[k] * (log_ratio - relative_entropy)
    return gradient / (len(members) * members.shape[1])


def fast_gradient(gradient, embedded, epsilon, norm, relative):
    if norm == "l2":
        size = np.sqrt((gradient**2).sum(axis=(1, 2), keepdims=True))
        scale = np.sqrt((embedded**2).sum(axis=(1, 2), keepdims=True))
        direction = gradient / size
    else:
        scale = np.sqrt((embedded**2).mean(axis=(1, 2), keepdims=True))
        direction = np.sign(gradient)
    return epsilon * (scale if relative else 1.0) * direction


def uegr_step(
    parameters,
    token_ids,
    labels,
    perturb,
    sub_models,
    adversarial_weight,
    consistency_weight,
    learning_rate,
):
    """Parameters after one step, dropout at rate 0, clean member included."""
    embedded = parameters["embedding"][token_ids]
    clean_logits, cache = forward(parameters, embedded)
    gradients, embedded_gradient = backward(
        parameters,
        token_ids,
        cache,
        cross_entropy_gradient(clean_logits, labels),
    )
    delta = perturb(embedded_gradient, embedded)
    logits, cache = forward(parameters, embedded + delta)
    members = np.stack([softmax(logits)] * sub_models + [softmax(clean_logits)])
    for k in range(sub_models):
        # The clean member is a constant, and has no gradient.
        logits_gradient = (
            adversarial_weight
            / sub_models
            * cross_entropy_gradient(logits, labels)
            + consistency_weight * jensen_shannon_gradient(members, k)
        )
        extra, _ = backward(parameters, token_ids, cache, logits_gradient)
        for name in gradients:
            gradients[name] = gradients[name] + extra[name]
    return {
        name: value - learning_rate * gradients[name]
        for name, value in parameters.items()
    }
