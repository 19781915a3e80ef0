"""Two figures: robust against clean accuracy, and both against cost."""

import matplotlib
from matplotlib import pyplot, ticker

from keras_uegr.evaluation import report_figure
from method_comparison import summary

matplotlib.use("Agg")

STYLE = {
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlelocation": "left",
    "axes.titlesize": "medium",
}
OTHERS, UNIFIED = report_figure.COLORS[:2]


def draw(table, robust, folder, title):
    """Save `robust-clean.png` and `cost.png`.

    Args:
        table: dict, from `summary.scores_of`.
        robust: string. The column that stands for robustness.
        folder: `pathlib.Path`.
        title: string. Begins the names of the files.
    """
    with pyplot.rc_context(STYLE):
        figure, axes = pyplot.subplots(figsize=(6, 4.6), layout="constrained")
        _scatter(axes, table, "clean", robust)
        _save(figure, [axes], folder / f"{title}-robust-clean.png")
        figure, both = pyplot.subplots(
            1, 2, figsize=(10, 4.4), layout="constrained"
        )
        for axes, column in zip(both, ("clean", robust), strict=True):
            _scatter(axes, table, "cost", column)
        _save(figure, both, folder / f"{title}-cost.png")


def _scatter(axes, table, x, y):
    for method, columns in table.items():
        if x not in columns or y not in columns:
            continue
        points = [summary.interval_of(columns[name]) for name in (x, y)]
        axes.errorbar(
            points[0].mean,
            points[1].mean,
            xerr=_error(points[0]),
            yerr=_error(points[1]),
            fmt="o",
            color=UNIFIED if method.startswith("uegr") else OTHERS,
            elinewidth=1,
        )
        axes.annotate(
            method,
            (points[0].mean, points[1].mean),
            (4, 4),
            textcoords="offset points",
            fontsize="small",
        )
    axes.set_xlabel("training time over plain fit's" if x == "cost" else x)
    axes.set_title(y)
    percent = ticker.PercentFormatter(xmax=1, decimals=0)
    axes.yaxis.set_major_formatter(percent)
    if x != "cost":
        axes.xaxis.set_major_formatter(percent)


def _error(interval):
    # One seed has no interval, and `errorbar` refuses NaN.
    return None if interval.low != interval.low else interval.margin


def _save(figure, axes, path):
    for each in axes:
        each.grid(color="#e4e7ea", linewidth=0.6)
        each.set_axisbelow(True)
    figure.savefig(path, dpi=160)
    pyplot.close(figure)
