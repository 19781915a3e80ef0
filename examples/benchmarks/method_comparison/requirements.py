"""What a comparison needs, loaded and tried before it trains anything."""

import minilm
import movie_reviews
import text_datasets
from keras_uegr import UEGRModel, value_checks
from text_datasets import adversarial_glue


def load(datasets, settings):
    """Return each `Dataset` by its name, all that is measured on being there.

    The examples are the same for every method and seed.

    Args:
        datasets: list of strings.
        settings: `cells.Settings`.
    """
    check_numbers(settings)
    sizes = (settings.train_size, settings.test_size, settings.test_size)
    options = "`--train-size` and `--test-size`"
    loaded = {name: load_one(name, sizes, options) for name in datasets}
    for data in loaded.values():
        for name in data.task.out_of_domain:
            load_out_of_domain(name, settings)
        load_adversarial_glue(data.task, settings)
        if settings.attacks:
            check_attacks(data, settings)
    return loaded


def load_out_of_domain(name, settings):
    """Return the `Dataset` of that name, which isn't trained on."""
    sizes = (0, settings.test_size, settings.test_size)
    return load_one(name, sizes, "`--test-size`")


def load_adversarial_glue(task, settings):
    """Return AdvGLUE's `Sentences` of the task, `None` if it has none."""
    if not settings.adversarial_glue or task.name not in adversarial_glue.PARTS:
        return None
    return adversarial_glue.load(settings.adversarial_glue, task.name)


def load_one(name, sizes, options):
    """Return the `Dataset` of that name.

    Args:
        name: string.
        sizes: three integers, see `text_datasets.load`.
        options: string. What has to be smaller where it has too few examples.
    """
    try:
        return text_datasets.load(name, sizes)
    except movie_reviews.TooFewExamplesError as error:
        raise ValueError(
            f"{options} must ask for no more examples than {name} has: choose "
            f"less. {error}"
        ) from error


def check_numbers(settings):
    """Refuse sizes that aren't positive, and radii that are negative."""
    names = (
        "train_size",
        "test_size",
        "epochs",
        "batch_size",
        "sequence_length",
        "attack_steps",
        "white_box_size",
        "attack_size",
    )
    value_checks.check_positive_integers(
        **{name: getattr(settings, name) for name in names}
    )
    value_checks.check_sizes(learning_rate=settings.learning_rate)
    for radius in settings.radii:
        value_checks.check_sizes(radii=radius)


def check_attacks(data, settings):
    """Build each of the text attacks, on a model that isn't trained."""
    # Only where text attacks are asked for, for they need packages.
    from keras_uegr.evaluation import text_attacks

    model = UEGRModel(
        minilm.classifier(data.task.outputs, settings.sequence_length)
    )
    examples = getattr(data, settings.split)
    for name in settings.attacks:
        text_attacks.prepare_attack(
            model,
            examples.texts,
            examples.labels,
            name,
            query_budget=None,
            sample_size=settings.attack_size,
            seed=0,
            batch_size=settings.batch_size,
            from_logits=None,
        )
