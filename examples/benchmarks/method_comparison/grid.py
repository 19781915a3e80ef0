"""Goes over the cells of a comparison, and skips those that are finished."""

import math

import rich.console
import rich.progress

from method_comparison import measurement, methods, requirements, training
from method_comparison.cells import Cell
from method_comparison.matmul_precision import matmul_precision


def run(chosen, datasets, seeds, settings, store):
    """Return the result of every `Cell`, trained where it isn't finished.

    What is missing or wrong is told before the first training. All methods of
    one seed follow each other, so that a ratio of their costs is taken within
    a short time.

    Args:
        chosen: dict of methods by name, see `methods.py`.
        datasets: list of strings.
        seeds: list of integers.
        settings: `cells.Settings`.
        store: `cells.CellStore`.
    """
    cells = [
        Cell(name, dataset, seed)
        for seed in dict.fromkeys(seeds)
        for dataset in dict.fromkeys(datasets)
        for name in chosen
    ]
    results = {cell: store.read(cell, chosen[cell.method]) for cell in cells}
    missing = [cell for cell in cells if results[cell] is None]
    loaded = {}
    if missing:
        check_order(cells)
        wanted = dict.fromkeys(cell.dataset for cell in missing)
        loaded = requirements.load(wanted, settings)
    with progress_bar() as progress:
        bar = progress.add_task("", total=len(missing))
        for cell in missing:
            progress.update(
                bar, description=f"{cell.dataset}, {cell.method}, {cell.seed}"
            )
            method = chosen[cell.method]
            steps = steps_of(cell, results, settings)
            result = run_cell(
                method, loaded[cell.dataset], cell.seed, settings, steps
            )
            store.write(cell, method, result)
            results[cell] = result
            progress.advance(bar)
    return results


def progress_bar():
    """Return a progress bar with the time left, on standard error."""
    return rich.progress.Progress(
        # To rich, brackets in the name of a method would be markup.
        rich.progress.TextColumn("{task.description}", markup=False),
        rich.progress.BarColumn(),
        rich.progress.MofNCompleteColumn(),
        rich.progress.TimeElapsedColumn(),
        rich.progress.TimeRemainingColumn(),
        console=rich.console.Console(stderr=True),
        # By default only the last seconds count, and a cell takes minutes.
        speed_estimate_period=math.inf,
    )


def check_order(cells):
    """Refuse a method at equal cost before those that tell the cost.

    Args:
        cells: list of `Cell`, in the order in which they are trained.
    """
    for position, cell in enumerate(cells):
        needed = needed_by(cell)
        if not set(needed) <= set(cells[:position]):
            raise ValueError(
                f"The methods {needed[0].method!r} and 'uegr' must come before "
                f"{cell.method!r}, which is as costly. "
                f"Received: methods={[cell.method for cell in cells]}"
            )


def needed_by(cell):
    """Return the cells that tell how many steps a cell trains."""
    if not cell.method.endswith(methods.EQUAL_COST):
        return []
    own = cell.method.removesuffix(methods.EQUAL_COST)
    return [Cell(name, cell.dataset, cell.seed) for name in (own, "uegr")]


def steps_of(cell, results, settings):
    """Return how many steps a cell trains.

    A method at equal cost trains as many as the time of UEGR buys, by what
    a step of both took with this seed.
    """
    steps, needed = training.steps_of(settings), needed_by(cell)
    if not needed:
        return steps
    seconds, bought = (results[each]["seconds_per_step"] for each in needed)
    # UEGR's steps are never the cheaper ones: a busy machine made them so.
    return max(steps, round(steps * bought / seconds))


def run_cell(method, data, seed, settings, steps):
    """Train, measure, and return the result as a dictionary."""
    with matmul_precision(settings.matmul_precision):
        trained = training.train(method, data, seed, settings, steps)
        scores = measurement.measure(trained.model, data, settings)
    return {"scores": scores, **trained.cost()}
