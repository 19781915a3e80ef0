"""The quickstart's table: two fine-tuned models side by side."""

import dataclasses

import rich.table


@dataclasses.dataclass
class Result:
    """What was measured of one fine-tuned model.

    Args:
        report: `keras_uegr.evaluation.RobustnessReport`.
        seconds_per_step: float. Median over the training steps.
        updated_share: float. Share of the parameters that a step changes.
    """

    report: object
    seconds_per_step: float
    updated_share: float


def build_table(results, title, caption):
    """Return the comparison as a table with one column for each model.

    Args:
        results: list of `Result`, of the same conditions.
        title: string.
        caption: string.
    """
    table = rich.table.Table(title=title, caption=caption)
    table.add_column()
    for result in results:
        table.add_column(result.report.name, justify="right")
    reports = [result.report for result in results]
    for row in zip(*(report.conditions for report in reports), strict=True):
        table.add_row(_label(row[0]), *map(_percent, row))
    table.add_row(
        "Seconds per training step",
        *(f"{result.seconds_per_step:.2f}" for result in results),
    )
    table.add_row(
        "Parameters updated in a step",
        *(f"{result.updated_share:.0%}" for result in results),
    )
    return table


def _label(condition):
    if condition.epsilon is None:
        return f"Accuracy, {condition.name}"
    return f"Accuracy, attacked (radius {condition.epsilon})"


def _percent(condition):
    interval = condition.interval()
    return f"{interval.mean:.1%} ± {100 * interval.margin:.1f}"
