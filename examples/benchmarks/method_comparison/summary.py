"""Means, intervals and paired tests over the seeds."""

import numpy as np

from keras_uegr.evaluation import Interval, paired_t_test, t_interval

LOWER_IS_BETTER = ("loss", "calibration error", "cost")
REFERENCE = "finetune"
# How far behind the best on clean examples a method may be to be the best in
# anything: no attack changes one answer that is given to everything.
CLEAN_LOSS = 0.1


def scores_of(results, dataset):
    """Return the values of every column: `{method: {column: {seed: value}}}`.

    The column `cost` is the time of the training, the median step times the
    number of steps and what comes before the first one, over that of plain
    `fit` with the same seed. It is missing where there is no plain `fit`.

    Args:
        results: dict of results by `Cell`.
        dataset: string.
    """
    cells = {c: r for c, r in results.items() if c.dataset == dataset}
    plain = {c.seed: r for c, r in cells.items() if c.method == REFERENCE}
    table = {}
    for cell, result in cells.items():
        columns = table.setdefault(cell.method, {})
        values = dict(result["scores"])
        if cell.seed in plain:
            values["cost"] = _time(result) / _time(plain[cell.seed])
        for column, value in values.items():
            columns.setdefault(column, {})[cell.seed] = value
    return table


def _time(result):
    # Runs from before preparation was timed had none.
    prepared = result.get("preparation_seconds", 0.0)
    return prepared + result["seconds_per_step"] * result["steps"]


def interval_of(by_seed):
    """Return the `Interval` over seeds.

    That of one seed has no ends, and that of a model that has diverged no mean.
    """
    values = list(by_seed.values())
    if len(values) < 2 or not np.isfinite(values).all():
        return Interval(float(np.mean(values)), float("nan"), float("nan"))
    return t_interval(values)


def best_methods(table, column):
    """Return the names of the methods with the best mean in a column.

    Methods that are far less accurate than others on clean examples don't
    count.
    """
    accurate = accurate_methods(table)
    means = {
        name: mean
        for name, mean in means_of(table, column).items()
        if name in accurate
    }
    choose = min if column in LOWER_IS_BETTER else max
    best = choose(means.values(), default=0.0)
    return {name for name, mean in means.items() if np.isclose(mean, best)}


def accurate_methods(table):
    """Return the names of the methods close to the best on clean examples.

    Args:
        table: dict, from `scores_of`.
    """
    clean = means_of(table, "clean")
    least = max(clean.values(), default=0.0) - CLEAN_LOSS
    return {
        name
        for name, columns in table.items()
        if "clean" not in columns or clean.get(name, -np.inf) >= least
    }


def means_of(table, column):
    """Return the mean over the seeds of each method that has the column.

    A method that has diverged with one of them has none.
    """
    means = {
        name: np.mean(list(columns[column].values()))
        for name, columns in table.items()
        if column in columns
    }
    return {name: mean for name, mean in means.items() if np.isfinite(mean)}


def diverged_methods(table, column):
    """Return the names of the methods that have diverged with a seed."""
    return {
        name
        for name, columns in table.items()
        if not np.isfinite(list(columns.get(column, {}).values())).all()
    }


def compare(table, subject, column):
    """Return the `PairedTest` of a method against each other one.

    Only seeds that both have count; with fewer than two there is no test, nor
    where a model has diverged.

    Args:
        table: dict, from `scores_of`.
        subject: string. The method.
        column: string.
    """
    tests = {}
    for name, columns in table.items():
        if name == subject or column not in columns:
            continue
        own, other = table[subject][column], columns[column]
        seeds = sorted(set(own) & set(other))
        pairs = [[scores[seed] for seed in seeds] for scores in (own, other)]
        if len(seeds) >= 2 and np.isfinite(pairs).all():
            tests[name] = paired_t_test(*pairs)
    return tests
