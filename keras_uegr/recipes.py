"""The published methods as settings of this package's parts.

Each recipe takes a classifier and gives the wrapped model and the optimizer to
compile it with; further arguments, such as `embedding`, are those of
`UEGRModel`. The defaults are those of the released code or, where there is
none, of the widely copied one; where a recipe is known to depart from that
code, it says so. They were made for other models: "All methods" in
`examples/benchmarks/RESULTS.md` has the settings that suit MiniLM. On GitHub
the codes are `zhuchen03/FreeLB`, `namisan/mt-dnn` (SMART), `dropreg/R-Drop`,
`facebookresearch/fairseq` (R3F), `alibaba/AliceMind` (Child-Tuning),
`song-wx/SIFT`, `bbuing9/RoAST`, `jiangllan/ROSE` and `davda54/sam`. What holds
for all:

- The optimizer is AdamW at one learning rate, with its own weight decay.
- Padding is never perturbed.
- Nothing warms up, but in `uegr`.
- A pass over the clean input comes first, also where its loss isn't trained on.
  In `pgd` it gives the first gradient of the ascent; in `freelb` and `rdrop` it
  is one forward pass more than they need.
- A divergence is a mean per example, so its weight doesn't depend on the batch
  size.
- Of a regression it is the variance: of two outputs, a quarter of their squared
  difference.
- The token's embedding is moved as the embedding layer gives it: before
  positions are added and, in BERT, before the normalization.
- The clean output is a constant in a divergence; the released codes also take
  the gradient through it, so that their weight counts about twice.
"""

import keras

from keras_uegr import model_parts, value_checks
from keras_uegr.optimizers import SaliencyMaskedOptimizer
from keras_uegr.optimizers.noisy_selection import density_of
from keras_uegr.perturbations import (
    FastGradient,
    GaussianNoise,
    ProjectedGradient,
)
from keras_uegr.uegr_model import UEGRModel


def finetune(classifier, learning_rate, **kwargs):
    """Plain fine-tuning, what `fit` does without this package.

    Args:
        classifier: A `keras.Model`.
        learning_rate: Float or schedule.
        **kwargs: Further arguments of `UEGRModel`.

    Returns:
        Tuple of the `UEGRModel` and the optimizer.
    """
    model = _without_warm_up(
        classifier,
        kwargs,
        adversarial_weight=0,
        consistency_weight=0,
    )
    return model, keras.optimizers.AdamW(learning_rate)


def fgm(classifier, learning_rate, epsilon=1.0, **kwargs):
    """Clean loss, and the loss at one gradient step on the embeddings.

    The norm of the step is per example, as in the paper, on embeddings as they
    are: the paper's length of 5 is for normalized ones. The default is that of
    bert4keras, which moves the embedding table, by one norm for the whole
    batch, and trains at the moved table alone. Per example that length moves
    much further; 0.3 did well for MiniLM.

    Args:
        classifier: A `keras.Model`.
        learning_rate: Float or schedule.
        epsilon: Float, the length of the step (L2), in units of the embedding.
            Defaults to `1.0`.
        **kwargs: Further arguments of `UEGRModel`.

    Returns:
        Tuple of the `UEGRModel` and the optimizer.

    Reference:
        - [Miyato et al., 2017](https://arxiv.org/abs/1605.07725)
    """
    model = _without_warm_up(
        classifier,
        kwargs,
        perturbation=FastGradient(epsilon, relative=False),
        dropout=None,
        sub_models=1,
        consistency_weight=0,
    )
    return model, keras.optimizers.AdamW(learning_rate)


def pgd(
    classifier,
    learning_rate,
    epsilon=1.0,
    steps=3,
    step_size=0.3,
    **kwargs,
):
    """The loss after several projected gradient steps, and no other.

    The defaults are those of the widely copied class `PGD` of `epsilon=1.0`,
    `alpha=0.3` and three steps, which moves the embedding table, by one norm
    for the whole batch, and adds the clean gradient. Per example that radius
    moves much further: MiniLM didn't learn with 0.3, and did with a radius of
    0.15 and steps of 0.05. The paper's ball is L-infinity, with a random start.

    Args:
        classifier: A `keras.Model`.
        learning_rate: Float or schedule.
        epsilon: Float, the radius of the ball (L2), in units of the
            embedding. Defaults to `1.0`.
        steps: Positive integer. Defaults to `3`.
        step_size: Float. Defaults to `0.3`.
        **kwargs: Further arguments of `UEGRModel`.

    Returns:
        Tuple of the `UEGRModel` and the optimizer.

    Reference:
        - [Madry et al., 2018](https://arxiv.org/abs/1706.06083)
    """
    model = _without_warm_up(
        classifier,
        kwargs,
        perturbation=ProjectedGradient(
            epsilon, steps, step_size, relative=False
        ),
        dropout=None,
        sub_models=1,
        clean_weight=0,
        consistency_weight=0,
    )
    return model, keras.optimizers.AdamW(learning_rate)


def freelb(
    classifier,
    learning_rate,
    epsilon=0.6,
    steps=3,
    step_size=0.1,
    **kwargs,
):
    """The mean loss over the steps of the ascent, from a random start.

    The defaults are those of the released script for SST-2 with ALBERT,
    `huggingface-transformers/launch/run_glue.sh`; 0.3 did well for MiniLM as
    the radius.

    Departures: the start is uniform in the ball itself, and so, in as many
    dimensions, at its border, where the released scripts start at 0.2 to 0.96
    of the radius; each step draws its own dropout mask; padding stays 0 in
    every step, not at the start alone.

    Args:
        classifier: A `keras.Model`.
        learning_rate: Float or schedule.
        epsilon: Float, the radius of the ball (L2), in units of the
            embedding. Defaults to `0.6`.
        steps: Positive integer. Defaults to `3`.
        step_size: Float. Defaults to `0.1`.
        **kwargs: Further arguments of `UEGRModel`.

    Returns:
        Tuple of the `UEGRModel` and the optimizer.

    Reference:
        - [Zhu et al., 2020](https://arxiv.org/abs/1909.11764)
    """
    model = _without_warm_up(
        classifier,
        kwargs,
        perturbation=ProjectedGradient(
            epsilon,
            steps,
            step_size,
            random_start=True,
            relative=False,
            train_on_steps=True,
        ),
        dropout=None,
        sub_models=1,
        clean_weight=0,
        consistency_weight=0,
    )
    return model, keras.optimizers.AdamW(learning_rate)


def smart(
    classifier,
    learning_rate,
    weight=1.0,
    epsilon=1e-3,
    steps=1,
    direction="gradient",
    **kwargs,
):
    """Clean loss, and the symmetric divergence from it at its worst nearby.

    Departures: the start is uniform in the ball, and not normal with a standard
    deviation of 0.00001; the steps raise both directions of the divergence; the
    radius is `epsilon` and not about 1; there is no proximal term (Bregman),
    the divergence from the outputs of a running mean of the weights.

    Args:
        classifier: A `keras.Model`.
        learning_rate: Float or schedule.
        weight: Float, `alpha` in the paper; for a regression twice that, for
            the released code weighs the squared difference. Defaults to `1.0`.
        epsilon: Float, the radius (L-infinity), in units of the embedding.
            Defaults to `0.001`.
        steps: Positive integer. Defaults to `1`.
        direction: `"gradient"` (default), each token's divided by its largest
            entry, or `"steepest"`, its sign.
        **kwargs: Further arguments of `UEGRModel`.

    Returns:
        Tuple of the `UEGRModel` and the optimizer.

    Reference:
        - [Jiang et al., 2020](https://arxiv.org/abs/1911.03437)
    """
    perturbation = ProjectedGradient(
        epsilon,
        steps,
        step_size=epsilon,
        random_start=True,
        norm="linf",
        per_token=True,
        relative=False,
        objective="divergence",
        direction=direction,
    )
    return _divergence_from_clean(
        classifier, kwargs, perturbation, weight
    ), keras.optimizers.AdamW(learning_rate)


def r3f(classifier, learning_rate, weight=1.0, stddev=1e-5, **kwargs):
    """Clean loss, and the symmetric divergence from it under noise.

    Departures: the noise is normal; that of fairseq is uniform by default. Its
    noised pass doesn't train the embeddings, and for a regression it has no
    divergence; here half of `weight` is that of the squared difference.

    Args:
        classifier: A `keras.Model`.
        learning_rate: Float or schedule.
        weight: Float, `lambda` in the paper. Defaults to `1.0`.
        stddev: Float, of the normal noise, in units of the embedding. Defaults
            to `0.00001`.
        **kwargs: Further arguments of `UEGRModel`.

    Returns:
        Tuple of the `UEGRModel` and the optimizer.

    Reference:
        - [Aghajanyan et al., 2021](https://arxiv.org/abs/2008.03156)
    """
    return _divergence_from_clean(
        classifier, kwargs, GaussianNoise(stddev, relative=False), weight
    ), keras.optimizers.AdamW(learning_rate)


def rdrop(classifier, learning_rate, weight=1.0, **kwargs):
    """Mean loss of two dropout passes, and their symmetric divergence.

    Args:
        classifier: A `keras.Model` with dropout layers.
        learning_rate: Float or schedule.
        weight: Float, half of `alpha` in the paper, which adds both passes'
            losses up. It is of the mean of both directions per example; the
            released code sums over the batch. For a regression a quarter of it
            is the weight of the squared difference, 0.8 in the released code.
            Defaults to `1.0`.
        **kwargs: Further arguments of `UEGRModel`.

    Returns:
        Tuple of the `UEGRModel` and the optimizer.

    Reference:
        - [Liang et al., 2021](https://arxiv.org/abs/2106.14448)
    """
    model = _without_warm_up(
        classifier,
        kwargs,
        perturbation=None,
        dropout=None,
        sub_models=2,
        clean_weight=0,
        consistency_weight=weight,
        divergence="symmetric_kl",
    )
    return model, keras.optimizers.AdamW(learning_rate)


def child_tuning_f(classifier, learning_rate, density=0.3, **kwargs):
    """Updates a random share of the weights, another one in every step.

    The default is that of the released `run.sh`, for RTE with BERT-large.
    Departures: the update is masked, so that weight decay and momentum don't
    move what isn't drawn; the released code masks the gradient, and scales it
    by `1 / density`, which AdamW undoes. A weight so moves by about `density`
    of what plain AdamW moves it, in the released code by the square root of
    that. Biases, normalization and head are updated in full.

    Args:
        classifier: A `keras.Model`.
        learning_rate: Float or schedule.
        density: Float, the share. Defaults to `0.3`.
        **kwargs: Further arguments of `UEGRModel`.

    Returns:
        Tuple of the `UEGRModel` and the optimizer.

    Reference:
        - [Xu et al., 2021](https://arxiv.org/abs/2109.05687)
    """
    model, optimizer = finetune(classifier, learning_rate, **kwargs)
    return model, SaliencyMaskedOptimizer(
        optimizer, density=density, saliency="random"
    )


def child_tuning_d(classifier, learning_rate, density=0.3, **kwargs):
    """Updates the weights of the highest mean squared gradient, always those.

    Call `keras_uegr.prepare_saliency` with the training data after `compile`.
    The default is that of the released `run.sh`, for RTE with BERT-large.
    Departures: the update is masked, so that weight decay and momentum don't
    move what isn't selected; the released code masks the gradient. Biases and
    normalization are updated in full; there those of the encoder's layers
    compete with its weights. A pooler that belongs to the backbone competes
    here, and is updated in full there, as embeddings and head are in both. The
    weights are scored without dropout, by gradients that aren't clipped.

    Args:
        classifier: A `keras.Model`.
        learning_rate: Float or schedule.
        density: Float, the share over all variables that aren't updated in
            full. Defaults to `0.3`.
        **kwargs: Further arguments of `UEGRModel`.

    Returns:
        Tuple of the `UEGRModel` and the optimizer.

    Reference:
        - [Xu et al., 2021](https://arxiv.org/abs/2109.05687)
    """
    model, optimizer = finetune(classifier, learning_rate, **kwargs)
    return model, SaliencyMaskedOptimizer(
        optimizer,
        density=density,
        saliency="fisher",
        scope="global",
        dense_variables=model_parts.embedding_patterns(model.model),
        fisher_decay=1.0,
    )


def sift(classifier, learning_rate, density=0.01, **kwargs):
    """Updates the highest gradients of each variable, always the same ones.

    Call `keras_uegr.prepare_saliency` with the training data, or a few batches
    of it, after `compile`. Departures: weights are ranked by their mean squared
    gradient; biases, normalization and head are updated in full. The released
    scripts for classification select among the weights of the attention, and
    freeze all others but the head.

    Args:
        classifier: A `keras.Model`.
        learning_rate: Float or schedule.
        density: Float, the share of each variable. Defaults to `0.01`.
        **kwargs: Further arguments of `UEGRModel`.

    Returns:
        Tuple of the `UEGRModel` and the optimizer.

    Reference:
        - [Song et al., 2024](https://arxiv.org/abs/2312.11875)
    """
    model, optimizer = finetune(classifier, learning_rate, **kwargs)
    return model, SaliencyMaskedOptimizer(
        optimizer, density=density, saliency="fisher", fisher_decay=1.0
    )


def roast(
    classifier,
    learning_rate,
    weight=0.01,
    epsilon=0.1,
    alpha=0.9,
    beta=10.0,
    refresh_steps=100,
    **kwargs,
):
    """Adversarial loss and divergence from clean, and a selective update.

    An entry is updated with probability `sigmoid(2 * beta * (rank - alpha))`,
    its rank being that of its mean squared gradient among all, from 0 to 1, and
    drawn again every epoch. The defaults are those for sentiment; for
    entailment they are `alpha=0.6, beta=1.0`. The first draw is by the first
    batch, or, as in the released code, by a pass over the data, if you call
    `keras_uegr.prepare_saliency` with it after `compile`.

    Departures: the released code moves embeddings after their normalization;
    a step of 0.1 there is as long as one of 0.011 here in MiniLM. It takes that
    step along the gradient at embeddings with a noise of up to 0.00001, here at
    the clean ones, and the pass at its end doesn't train the embeddings. The
    mean is a running one, over about as many steps; entries without any
    gradient are never drawn; biases and normalization are updated in full, and
    a pooler that belongs to the backbone isn't; there it is the other way
    round. The update is masked, so that weight decay and momentum don't move
    what isn't drawn; the released code masks the gradient, and divides it by
    the probability, which AdamW undoes. Its adversarial loss is in code that is
    never reached; here it counts.

    Args:
        classifier: A `keras.Model`.
        learning_rate: Float or schedule.
        weight: Float, `lambda` of both directions of the divergence together,
            per example. The released code takes the mean of the two, sums over
            the batch and halves the clean loss: at its batch of 16 its `0.01`
            is `0.16` here, and for a regression `0.04`. Defaults to `0.01`.
        epsilon: Float, the step of each token along its gradient
            (L-infinity), in units of the embedding. Defaults to `0.1`.
        alpha: Float, the rank that is drawn with probability 1/2. Defaults to
            `0.9`.
        beta: Positive float, how much the rank decides. Defaults to `10.0`.
        refresh_steps: Positive integer, the number of steps in an epoch.
            Defaults to `100`.
        **kwargs: Further arguments of `UEGRModel`.

    Returns:
        Tuple of the `UEGRModel` and the optimizer.

    Reference:
        - [Kim et al., 2023](https://arxiv.org/abs/2312.04032)
    """
    value_checks.check_positive(beta=beta)
    value_checks.check_positive_integers(refresh_steps=refresh_steps)
    model = _without_warm_up(
        classifier,
        kwargs,
        perturbation=FastGradient(
            epsilon,
            norm="linf",
            per_token=True,
            relative=False,
            direction="gradient",
        ),
        dropout=None,
        sub_models=1,
        consistency_weight=2 * weight,
        divergence="symmetric_kl",
        include_clean=True,
    )
    noise = 1 / (2 * beta)
    optimizer = SaliencyMaskedOptimizer(
        keras.optimizers.AdamW(learning_rate),
        density=density_of(alpha, noise),
        saliency="fisher",
        scope="global",
        dense_variables=model_parts.embedding_patterns(model.model),
        fisher_decay=1 - 1 / refresh_steps,
        rank_noise=noise,
        refresh_steps=refresh_steps,
    )
    return model, optimizer


def rose(classifier, learning_rate, density=0.6, **kwargs):
    """Updates the weights that two dropout passes agree on.

    The share `density` of the weight tensors is updated, those of the lowest
    gradient of the symmetric divergence between two dropout passes, in each
    step anew. The divergence isn't trained on. It is the first-order method of
    the paper, with the quantiles from 0 to 0.6 that the released code shows.

    Departures: the loss is that of a third pass, where the released code takes
    the mean of the two; it selects from the first step on, and not after the
    warm-up of the learning rate; normalization is updated in full, as are
    biases, embeddings and head. The moments of what isn't updated go on with
    the gradient, and not with the first moment in its place. Gradients aren't
    accumulated over batches, of which each selects for itself: `compile`
    refuses it, where the released code loses those of the earlier batches.

    Args:
        classifier: A `keras.Model` with dropout layers.
        learning_rate: Float or schedule.
        density: Float, the share of the weight tensors. Defaults to `0.6`.
        **kwargs: Further arguments of `UEGRModel`.

    Returns:
        Tuple of the `UEGRModel` and the optimizer.

    Reference:
        - [Jiang et al., 2022](https://arxiv.org/abs/2210.09658)
    """
    model = _without_warm_up(
        classifier,
        kwargs,
        perturbation=None,
        dropout=None,
        sub_models=2,
        adversarial_weight=0,
        consistency_weight=1,
        divergence="symmetric_kl",
        sub_models_select=True,
    )
    optimizer = SaliencyMaskedOptimizer(
        keras.optimizers.AdamW(learning_rate),
        density=density,
        saliency="inverse_gradient",
        scope="tensor",
        dense_variables=model_parts.embedding_patterns(model.model),
        refresh_steps=None,
    )
    return model, optimizer


def sam(classifier, learning_rate, radius=0.05, **kwargs):
    """The gradient where the loss is highest nearby, in weight space.

    Departures: the second pass draws its own dropout mask.

    Args:
        classifier: A `keras.Model`.
        learning_rate: Float or schedule.
        radius: Float, `rho` in the paper. Defaults to `0.05`.
        **kwargs: Further arguments of `UEGRModel`.

    Returns:
        Tuple of the `UEGRModel` and the optimizer.

    Reference:
        - [Foret et al., 2021](https://arxiv.org/abs/2010.01412)
    """
    model = _without_warm_up(
        classifier,
        kwargs,
        adversarial_weight=0,
        consistency_weight=0,
        sharpness_radius=radius,
    )
    return model, keras.optimizers.AdamW(learning_rate)


def uegr(classifier, learning_rate, **kwargs):
    """This package's method, with its defaults.

    Args:
        classifier: A `keras.Model`.
        learning_rate: Float or schedule.
        **kwargs: Further arguments of `UEGRModel`.

    Returns:
        Tuple of the `UEGRModel` and the optimizer.

    Reference:
        - [Sun et al., 2025](https://arxiv.org/abs/2503.16550)
    """
    return UEGRModel(classifier, **kwargs), SaliencyMaskedOptimizer(
        keras.optimizers.AdamW(learning_rate)
    )


def _divergence_from_clean(classifier, further, perturbation, weight):
    """Clean loss, and both directions of the divergence from it."""
    return _without_warm_up(
        classifier,
        further,
        perturbation=perturbation,
        dropout=None,
        sub_models=1,
        adversarial_weight=0,
        # The divergence is the mean of the two, theirs is the sum.
        consistency_weight=2 * weight,
        divergence="symmetric_kl",
        include_clean=True,
    )


def _without_warm_up(classifier, further, **settings):
    """The published codes move all tokens, at full strength from the start."""
    settings = {"token_share": 1, "warmup_steps": 0, **settings}
    fixed = sorted(settings.keys() & further.keys())
    if fixed:
        raise TypeError(
            f"A recipe sets {fixed} itself: for other values wrap the model "
            "by `UEGRModel`. Received: "
            f"{ {name: further[name] for name in fixed} }"
        )
    return UEGRModel(classifier, **settings, **further)


RECIPES = {
    recipe.__name__: recipe
    for recipe in (
        finetune,
        fgm,
        pgd,
        freelb,
        smart,
        r3f,
        rdrop,
        child_tuning_f,
        child_tuning_d,
        roast,
        rose,
        sam,
        sift,
        uegr,
    )
}
