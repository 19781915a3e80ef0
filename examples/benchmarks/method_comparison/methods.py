"""What is compared: recipes by name, and settings of UEGR.

A method is a dictionary that a JSON file can hold. `{"recipe": "rdrop"}` is a
recipe of `keras_uegr.recipes` with its own defaults, and further keys are
arguments of that recipe: `{"recipe": "fgm", "epsilon": 0.2}`. Without
`"recipe"` the keys are settings of UEGR, see `UnifiedSettings`.

A method whose name ends with ", equal cost" trains as many steps as the time of
UEGR buys. The method of the name without that ending tells what a step costs.
"""

import dataclasses
import inspect

import keras

import keras_uegr
from keras_uegr import recipes, value_checks
from method_comparison import cells

EQUAL_COST = ", equal cost"


@dataclasses.dataclass(frozen=True)
class UnifiedSettings:
    """Every part of UEGR as a number or a word.

    Args:
        sub_models: integer. `0` trains on the clean loss alone.
        token_share: float. The share of the tokens that is perturbed.
        perturbation: string. `"fast_gradient"`, `"projected_gradient"`, or
            `"none"`.
        epsilon: float. Its radius.
        norm: string. `"l2"` or `"linf"`.
        steps: integer. Those of `"projected_gradient"`.
        random_start: boolean. Whether `"projected_gradient"` starts at noise.
        perturb_special_tokens: boolean.
        dropout: string. A policy of `AdaptiveDropout`, or `"none"`.
        low: float. The smallest dropout rate.
        high: float. The largest dropout rate.
        clean_weight: float.
        adversarial_weight: float.
        consistency_weight: float.
        include_clean: boolean.
        warmup_share: float. The share of the training that warms up.
        density: float. `1` updates everything.
        saliency: string.
        scope: string. `"variable"` or `"global"`.
    """

    sub_models: int = 2
    token_share: float = 0.15
    perturbation: str = "fast_gradient"
    epsilon: float = 0.06
    norm: str = "l2"
    steps: int = 3
    random_start: bool = False
    perturb_special_tokens: bool = True
    dropout: str = "confidence"
    low: float = 0.05
    high: float = 0.3
    clean_weight: float = 1.0
    adversarial_weight: float = 1.0
    consistency_weight: float = 5.0
    include_clean: bool = False
    warmup_share: float = 0.1
    density: float = 0.8
    saliency: str = "taylor"
    scope: str = "variable"


def check(chosen):
    """Refuse what `build` would, before anything is trained.

    Args:
        chosen: dict of methods by name.
    """
    _check_files(chosen)
    for name, method in chosen.items():
        _check_names(name, method)
        _check_values(name, method)


def _check_files(names):
    """Refuse two names of one file: one result would replace the other."""
    seen = {}
    for name in names:
        other = seen.setdefault(cells.name_in_files(name), name)
        if other != name:
            raise ValueError(
                "The names of methods must differ in letters, digits or "
                "'=.,-', for the names of their files have no other signs: "
                f"rename one. Received: {other!r} and {name!r}"
            )


def _check_names(name, method):
    if not isinstance(method, dict):
        raise ValueError(
            f"{name!r} must be a dictionary of settings, see methods.py. "
            f"Received: {method!r}"
        )
    recipe = method.get("recipe")
    # A list, because a file may hold what has no hash.
    if "recipe" in method and recipe not in list(recipes.RECIPES):
        raise ValueError(
            f"The recipe of {name!r} must be one of "
            f"{sorted(recipes.RECIPES)}. Received: recipe={recipe}"
        )
    made_by = recipes.RECIPES.get(recipe, UnifiedSettings)
    known = ["recipe", *_settings_of(made_by)]
    unknown = set(method) - set(known)
    if unknown:
        raise ValueError(
            f"The settings of {name!r} must be among {known}. "
            f"Received: {sorted(unknown)}"
        )


def _settings_of(function):
    parameters = inspect.signature(function).parameters.values()
    given = ("classifier", "learning_rate")
    return [
        x.name
        for x in parameters
        if x.kind is not x.VAR_KEYWORD and x.name not in given
    ]


def _check_values(name, method):
    if "recipe" not in method:
        # The small model has no tokenizer that knows which tokens these are.
        method = {**method, "perturb_special_tokens": True}
    try:
        build(method, _small_classifier(), learning_rate=1.0, total_steps=1)
    except (TypeError, ValueError) as error:
        raise ValueError(f"The settings of {name!r} are wrong: {error}") from (
            error
        )


def _small_classifier():
    """Return a model that has what a method may ask for."""
    classifier = keras.Sequential(
        [
            keras.layers.Embedding(2, 1),
            keras.layers.GlobalAveragePooling1D(),
            keras.layers.Dropout(0.1),
            keras.layers.Dense(2),
        ]
    )
    classifier.build((None, 1))
    return classifier


def build(method, classifier, learning_rate, total_steps, steps_per_epoch=None):
    """Return the wrapped model and the optimizer of a method.

    Args:
        method: dict, see above.
        classifier: `keras.Model`.
        learning_rate: float.
        total_steps: integer. Training steps to come.
        steps_per_epoch: integer. Defaults to `None`, all in one epoch.
    """
    if "recipe" not in method:
        settings = UnifiedSettings(**method)
        return _unified(settings, classifier, learning_rate, total_steps)
    recipe = recipes.RECIPES[method["recipe"]]
    known = inspect.signature(recipe).parameters
    lengths = {
        "total_steps": total_steps,
        # What a method does once an epoch.
        "refresh_steps": steps_per_epoch or total_steps,
    }
    arguments = {k: v for k, v in lengths.items() if k in known}
    arguments |= {k: v for k, v in method.items() if k != "recipe"}
    return recipe(classifier, learning_rate, **arguments)


def _unified(settings, classifier, learning_rate, total_steps):
    optimizer = _optimizer(settings, learning_rate)
    if settings.sub_models == 0:
        model, _ = recipes.finetune(classifier, learning_rate)
        return model, optimizer
    alone = settings.sub_models == 1 and not settings.include_clean
    model = keras_uegr.UEGRModel(
        classifier,
        perturbation=_perturbation(settings),
        dropout=_dropout(settings, total_steps),
        sub_models=settings.sub_models,
        token_share=settings.token_share,
        clean_weight=settings.clean_weight,
        adversarial_weight=settings.adversarial_weight,
        # A single sub-model has nothing to agree with.
        consistency_weight=0 if alone else settings.consistency_weight,
        include_clean=settings.include_clean,
        warmup_steps=_warmup_steps(settings, total_steps),
        unperturbed_token_ids=(
            () if settings.perturb_special_tokens else "special"
        ),
    )
    return model, optimizer


def _warmup_steps(settings, total_steps):
    """Return as many steps as `UEGRModel` takes for its own share."""
    share = settings.warmup_share
    value_checks.check_sizes(warmup_share=share)
    return max(1, round(share * total_steps)) if share else 0


def _optimizer(settings, learning_rate):
    return keras_uegr.SaliencyMaskedOptimizer(
        keras.optimizers.AdamW(learning_rate),
        density=settings.density,
        saliency=settings.saliency,
        scope=settings.scope,
    )


def _perturbation(settings):
    value_checks.check_choice(
        "perturbation",
        settings.perturbation,
        ["fast_gradient", "projected_gradient", "none"],
    )
    projected = settings.perturbation == "projected_gradient"
    if settings.random_start and not projected:
        raise ValueError(
            '`random_start` needs `perturbation="projected_gradient"`. '
            f"Received: perturbation={settings.perturbation}"
        )
    if settings.perturbation == "none":
        return None
    if settings.perturbation == "fast_gradient":
        return keras_uegr.FastGradient(settings.epsilon, settings.norm)
    return keras_uegr.ProjectedGradient(
        settings.epsilon,
        steps=settings.steps,
        norm=settings.norm,
        random_start=settings.random_start,
    )


def _dropout(settings, total_steps):
    if settings.dropout == "none":
        return None
    policy = settings.dropout
    if policy == "scheduled":
        policy = keras_uegr.ScheduledPolicy(steps=total_steps)
    return keras_uegr.AdaptiveDropout(settings.low, settings.high, policy)


def prepare(model, texts, labels, batch_size):
    """Score the weights once, for a method whose mask never changes."""
    if model.optimizer.get_config().get("fisher_decay") == 1.0:
        keras_uegr.prepare_saliency(model, texts, labels, batch_size)
