"""The options that the comparison and the ablation share."""

import argparse
import dataclasses
import json
import pathlib

import text_datasets
from keras_uegr.evaluation import attack_recipes
from method_comparison import (
    cells,
    figures,
    grid,
    matmul_precision,
    methods,
    report,
    summary,
)
from text_datasets import adversarial_glue

QUICK = {
    "seeds": [0],
    "train_size": 128,
    "test_size": 48,
    "epochs": 1,
    "radii": (0.02,),
    "attack_steps": 2,
    "attack_size": 4,
}


SIZES = {
    "train_size": "training examples",
    "test_size": "examples of the validation split, and of the test split",
    "epochs": "passes over the training examples",
    "sequence_length": "tokens of a text, of which the rest is cut off",
    "white_box_size": "examples that are attacked on the embeddings",
    "attack_size": "examples that each of --attacks attacks",
}


def parser(description):
    """Return a parser of the options that both scripts have."""
    result = argparse.ArgumentParser(
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    defaults = cells.Settings()
    result.add_argument(
        "--datasets",
        nargs="+",
        default=["movie_reviews"],
        choices=text_datasets.TASKS,
        help="what to train on, one after another",
    )
    add_seeds(result)
    for name, meaning in SIZES.items():
        add_number(result, name, getattr(defaults, name), meaning)
    add_number(
        result,
        "learning_rate",
        defaults.learning_rate,
        "at the first step, see --decay",
    )
    add_attacks(result, defaults)
    add_settings(result)
    result.add_argument(
        "--quick",
        action="store_true",
        help="a first look: little data and one seed, unless said otherwise",
    )
    result.add_argument(
        "--matmul-precision",
        choices=matmul_precision.PRECISIONS,
        default=defaults.matmul_precision,
        help="what the factors of products are rounded to; PyTorch alone has "
        "a choice, on a GPU or with AMX (default: %(default)s)",
    )
    add_decay(result)
    add_output(result)
    return result


def add_attacks(parser, defaults):
    """Add the options of what the models are attacked by."""
    parser.add_argument(
        "--radii",
        nargs="*",
        type=float,
        default=defaults.radii,
        help="of the attack on the embeddings, as a share of their norm; "
        "without a value there is no such attack (default: %(default)s)",
    )
    parser.add_argument(
        "--attacks",
        nargs="*",
        default=[],
        metavar="NAME",
        # This one keeps the class, so that no accuracy shows what it did.
        choices=sorted(set(attack_recipes.RECIPES) - {"input_reduction"}),
        help="text attacks, such as deepwordbug pwws; none by default",
    )
    parser.add_argument(
        "--adversarial-glue",
        default=defaults.adversarial_glue,
        metavar="FILE",
        help="dev.json of https://adversarialglue.github.io, for those of "
        f"--datasets that it has: {', '.join(adversarial_glue.PARTS)}",
    )


def parse(parser, arguments=None):
    """Return the options; with `--quick` those not given are small ones."""
    options = parse_quick(parser, arguments, QUICK)
    tasks = [text_datasets.TASKS[name] for name in options.datasets]
    if options.attacks and any(task.is_regression for task in tasks):
        parser.error("--attacks: text attacks need classes, not a regression")
    with_glue = [task for task in tasks if task.name in adversarial_glue.PARTS]
    if options.adversarial_glue and not with_glue:
        parser.error(
            "--adversarial-glue: one of --datasets must be among "
            f"{list(adversarial_glue.PARTS)}"
        )
    return options


def parse_quick(parser, arguments, quick):
    """Return the options; with `--quick` the defaults are those of `quick`."""
    if parser.parse_args(arguments).quick:
        parser.set_defaults(**quick)
    return parser.parse_args(arguments)


def add_number(parser, name, default, meaning):
    """Add the option of a number.

    Args:
        parser: `argparse.ArgumentParser`.
        name: string. That of the setting.
        default: integer or float, of the type that the option has.
        meaning: string.
    """
    parser.add_argument(
        f"--{name.replace('_', '-')}",
        type=type(default),
        default=default,
        metavar="N" if isinstance(default, int) else "X",
        help=f"{meaning} (default: %(default)s)",
    )


def add_seeds(parser):
    """Add the option of the seeds."""
    parser.add_argument(
        "--seeds",
        nargs="+",
        type=seed,
        default=[0, 1, 2],
        help="of the weights, of the order of the examples and of dropout "
        "(default: %(default)s)",
    )


def seed(text):
    """Return a seed that every backend takes, from its text."""
    value = int(text)
    if not 0 <= value < 2**32:
        raise argparse.ArgumentTypeError(
            f"each must be an integer from 0 to 2**32 - 1. Received: {text}"
        )
    return value


def add_settings(parser):
    """Add the option of a file of methods."""
    parser.add_argument(
        "--settings",
        type=methods_in,
        metavar="FILE",
        default={},
        help="JSON file of further methods by name, see methods.py",
    )


def methods_in(path):
    """Return the methods of a JSON file by name.

    Args:
        path: string.
    """
    try:
        content = json.loads(pathlib.Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise argparse.ArgumentTypeError(
            f"{path} must be a JSON file: {error}"
        ) from error
    if not isinstance(content, dict):
        raise argparse.ArgumentTypeError(
            f"{path} must hold methods by name, see methods.py. "
            f"Received: {content}"
        )
    return content


def add_decay(parser):
    """Add the option of how the learning rate falls."""
    parser.add_argument(
        "--decay",
        choices=["none", "linear"],
        default=cells.Settings().decay,
        help="of the learning rate, down to 0 (default: %(default)s)",
    )


def add_output(parser):
    """Add the option of the folder for the results."""
    parser.add_argument(
        "--output",
        type=pathlib.Path,
        help="folder, by default one of its own in benchmark-output",
    )


def output_of(options, name):
    """Return the folder for the results of the script of that name.

    Results of other settings don't go into one folder.
    """
    if options.output:
        return options.output
    folder = f"{name}-quick" if options.quick else name
    return pathlib.Path("benchmark-output", folder)


def run(options, chosen, subject, split, output):
    """Run the grid and report; return the results by `Cell`.

    Args:
        options: what `parser` parsed.
        chosen: dict of methods by name.
        subject: string. Whose wins and losses are listed.
        split: string.
        output: `pathlib.Path`, the folder of the results.
    """
    chosen = {**chosen, **options.settings}
    methods.check(chosen)
    settings = settings_of(options, split)
    store = cells.CellStore(output, settings)
    results = grid.run(chosen, options.datasets, options.seeds, settings, store)
    text = report.write(results, options.datasets, settings, output, subject)
    # Without a bound on the words little is left with any method.
    bounded = [f"{attack}, 2 words" for attack in settings.attacks]
    radii = [f"attacked at {radius}" for radius in sorted(settings.radii)[-1:]]
    robust = [*bounded, *radii, "letters swapped"][0]
    for name in options.datasets:
        table = summary.scores_of(results, name)
        figures.draw(table, robust, output, name)
    # Not by rich, to which brackets are markup, and which breaks long rows.
    print(text)
    return results


def settings_of(options, split):
    """Return the `Settings` that the options ask for."""
    values = {
        field.name: getattr(options, field.name)
        for field in dataclasses.fields(cells.Settings)
        if hasattr(options, field.name)
    }
    values = {
        k: tuple(v) if isinstance(v, list) else v for k, v in values.items()
    }
    return cells.Settings(**{**values, "split": split})
