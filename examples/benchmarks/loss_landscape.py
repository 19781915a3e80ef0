"""The loss around a model while it trains: is it flatter with UEGR?

    python examples/benchmarks/loss_landscape.py --quick    # a first look
    python examples/benchmarks/loss_landscape.py --seeds 0 1 2

Two claims of the theory are measured, every few steps and on the same
validation examples: the norm of the loss's gradient at the embeddings, and the
sharpness of the loss in the weights, as its rise at a radius and as the
eigenvalue of largest magnitude of its Hessian. Runs that are finished are kept
in the output folder, as `compare_methods.py` keeps them. Writes JSON and one
figure.
"""

import argparse
import dataclasses
import itertools
import pathlib
import sys

# The loaders of weights and sentences are the quickstart's.
sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))

import keras
import numpy as np

import keras_uegr
import text_datasets
from keras_uegr import value_checks
from keras_uegr.evaluation import report_figure
from method_comparison import (
    cells,
    command_line,
    figures,
    methods,
    requirements,
    training,
)
from text_datasets.dataset import model_inputs

MEASURES = {
    "input gradient": "norm of the gradient at the embedding",
    "loss rise": "rise of the loss at radius {radius} in the weights",
    "eigenvalue": "eigenvalue of largest magnitude of the Hessian",
}


@dataclasses.dataclass(frozen=True)
class Settings(cells.Settings):
    """What all runs have in common, next to how they train.

    Args:
        every: integer. Steps between two measurements.
        examples: integer. Validation examples that are measured on.
        radius: float. Of the loss's rise.
        iterations: integer. Of the power iteration.
    """

    every: int = 25
    examples: int = 64
    radius: float = 0.05
    iterations: int = 8


# Those that change something here, and what they mean.
NUMBERS = {
    "train_size": "training examples",
    "epochs": "passes over the training examples",
    "learning_rate": "at the first step, see --decay",
    "batch_size": "examples of a step, and of a measurement's batch",
    "sequence_length": "tokens of a text, of which the rest is cut off",
    "every": "steps from one measurement to the next",
    "examples": "validation examples that are measured on",
    "radius": "how far the weights move for the rise of the loss",
    "iterations": "of the eigenvalue's power iteration",
}
QUICK = {
    "seeds": [0],
    "train_size": 64,
    "epochs": 1,
    "every": 1,
    "examples": 16,
    "iterations": 2,
}


class Tracker(keras.callbacks.Callback):
    """Measures before the first step and every few steps.

    Args:
        texts: list of strings.
        labels: integer array.
        settings: `Settings`.
    """

    def __init__(self, texts, labels, settings):
        super().__init__()
        self.data = texts, labels
        self.settings = settings
        self.history = []

    def on_train_begin(self, logs=None):
        self.landscape = keras_uegr.evaluation.LossLandscape(
            self.model, *self.data, self.settings.batch_size
        )
        self._measure(0)

    def on_train_batch_end(self, batch, logs=None):
        if (batch + 1) % self.settings.every == 0:
            self._measure(batch + 1)

    def _measure(self, step):
        settings, landscape = self.settings, self.landscape
        self.history.append(
            {
                "step": step,
                "input gradient": landscape.input_gradient_norm(),
                "loss rise": landscape.loss_rise(settings.radius),
                "eigenvalue": landscape.top_hessian_eigenvalue(
                    settings.iterations
                ),
            }
        )


def main(arguments=None):
    """Run the measurements and return them by `Cell`."""
    options = parse_arguments(arguments)
    settings = settings_of(options)
    chosen = {"finetune": {"recipe": "finetune"}, "uegr": {"recipe": "uegr"}}
    chosen |= options.settings
    methods.check(chosen)
    check_lengths(chosen)
    check_numbers(settings)
    output = command_line.output_of(options, "landscape")
    store = cells.CellStore(output, settings)
    results = {
        cell: track(cell, chosen[cell.method], settings, store)
        for seed in options.seeds
        for cell in (cells.Cell(name, options.dataset, seed) for name in chosen)
    }
    draw(results, settings, output / "loss-landscape.png")
    return results


def parse_arguments(arguments):
    """Return the options of the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--quick", action="store_true", help="a first look")
    parser.add_argument(
        "--dataset",
        choices=text_datasets.TASKS,
        default="movie_reviews",
        help="what to train on (default: %(default)s)",
    )
    command_line.add_seeds(parser)
    command_line.add_settings(parser)
    defaults = Settings()
    for name, meaning in NUMBERS.items():
        default = getattr(defaults, name)
        command_line.add_number(parser, name, default, meaning)
    command_line.add_decay(parser)
    command_line.add_output(parser)
    return command_line.parse_quick(parser, arguments, QUICK)


def settings_of(options):
    """Return the `Settings` that the options ask for."""
    names = {field.name for field in dataclasses.fields(Settings)}
    values = {k: v for k, v in vars(options).items() if k in names}
    return Settings(**values)


def check_lengths(names):
    """Refuse methods that are meant to train longer than the others."""
    for name in names:
        if name.endswith(methods.EQUAL_COST):
            raise ValueError(
                "Each method of the figure trains as many steps as the others: "
                f"leave out those at equal cost. Received: {name!r}"
            )


def check_numbers(settings):
    """Refuse numbers that cannot be, the measurements' own among them."""
    requirements.check_numbers(settings)
    names = ("every", "examples", "iterations")
    value_checks.check_positive_integers(
        **{name: getattr(settings, name) for name in names}
    )
    value_checks.check_positive(radius=settings.radius)


def track(cell, method, settings, store):
    """Return the history of one run, trained if it isn't finished."""
    history = store.read(cell, method)
    if history is None:
        sizes = (settings.train_size, settings.examples, 0)
        options = "`--train-size` and `--examples`"
        data = requirements.load_one(cell.dataset, sizes, options)
        tracker = Tracker(
            model_inputs(data.validation.texts),
            data.validation.labels,
            settings,
        )
        training.train(method, data, cell.seed, settings, callbacks=[tracker])
        history = tracker.history
        store.write(cell, method, history)
    return history


def draw(results, settings, path):
    """Save one panel per measure: thin lines for seeds, a thick one for all.

    Args:
        results: dict of histories by `Cell`.
        settings: `Settings`.
        path: `pathlib.Path` of the image.
    """
    with figures.pyplot.rc_context(figures.STYLE):
        figure, panels = figures.pyplot.subplots(
            1, len(MEASURES), figsize=(12, 4), layout="constrained"
        )
        for axes, (measure, title) in zip(
            panels, MEASURES.items(), strict=True
        ):
            _draw_measure(axes, results, measure)
            axes.set_title(title.format(radius=settings.radius))
            axes.set_xlabel("training steps")
            # The eigenvalue of largest magnitude may be a negative one.
            if axes.dataLim.ymin >= 0:
                axes.set_ylim(bottom=0)
        handles = panels[0].get_legend_handles_labels()
        figure.legend(
            *handles, frameon=False, loc="outside upper right", ncols=4
        )
        figure.savefig(path, dpi=160)
        figures.pyplot.close(figure)


def _draw_measure(axes, results, measure):
    names = dict.fromkeys(cell.method for cell in results)
    # Every color with one style of line, then with the next.
    styles = itertools.product(("-", "--", ":", "-."), report_figure.COLORS)
    for method, (line, color) in zip(
        names, itertools.cycle(styles), strict=False
    ):
        runs = [
            history
            for cell, history in results.items()
            if cell.method == method
        ]
        steps = [one["step"] for one in runs[0]]
        values = np.array([[one[measure] for one in run] for run in runs])
        style = {"color": color, "linestyle": line}
        axes.plot(steps, values.T, **style, linewidth=0.6, alpha=0.5)
        axes.plot(steps, values.mean(axis=0), **style, label=method)


if __name__ == "__main__":
    main()
