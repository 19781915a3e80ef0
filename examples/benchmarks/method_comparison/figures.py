"""Two figures: robust against clean accuracy, and both against cost."""

import adjustText
import matplotlib
from matplotlib import lines, pyplot, ticker

from keras_uegr.evaluation import report_figure
from method_comparison import summary

matplotlib.use("Agg")

STYLE = {
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlelocation": "left",
    "axes.titlesize": "medium",
    "legend.frameon": False,
}
OTHERS, UNIFIED = report_figure.COLORS[:2]


def draw(table, robust, folder, title):
    """Save `robust-clean.png` and, where there is a cost, `cost.png`.

    Methods are numbered from the most to the least robust one. Those that are
    far less accurate than others on clean examples are left out, and named.

    Args:
        table: dict, from `summary.scores_of`.
        robust: string. The column that stands for robustness.
        folder: `pathlib.Path`.
        title: string. Begins the names of the files.
    """
    means = summary.means_of(table, robust)
    accurate = summary.accurate_methods(table)
    ranked = sorted(means, key=means.get, reverse=True)
    shown = [name for name in ranked if name in accurate]
    left_out = [name for name in ranked if name not in accurate]
    with pyplot.rc_context(STYLE):
        figure, axes = pyplot.subplots(figsize=(9, 4.6), layout="constrained")
        _scatter(axes, table, shown, "clean", robust)
        _name(figure, shown, left_out)
        _save(figure, [axes], folder / f"{title}-robust-clean.png")
        if not any("cost" in table[name] for name in shown):
            return
        figure, both = pyplot.subplots(
            1, 2, figsize=(13, 4.4), layout="constrained"
        )
        for axes, column in zip(both, ("clean", robust), strict=True):
            _scatter(axes, table, shown, "cost", column)
        _name(figure, shown, left_out)
        _save(figure, both, folder / f"{title}-cost.png")


def _scatter(axes, table, names, x, y):
    for number, name in enumerate(names, start=1):
        columns = table[name]
        if x in columns and y in columns:
            _point(axes, str(number), name, columns[x], columns[y])
    axes.set_xlabel("training time over plain fit's" if x == "cost" else x)
    axes.set_title(y)
    axes.margins(0.1)
    percent = ticker.PercentFormatter(xmax=1, decimals=0)
    axes.yaxis.set_major_formatter(percent)
    if x != "cost":
        axes.xaxis.set_major_formatter(percent)


def _point(axes, label, name, *by_seed):
    x, y = map(summary.interval_of, by_seed)
    axes.errorbar(
        x.mean,
        y.mean,
        xerr=_error(x),
        yerr=_error(y),
        fmt="none",
        ecolor="#c4cad0",
        elinewidth=1,
        zorder=1,
    )
    axes.plot(
        x.mean,
        y.mean,
        "o",
        markersize=7,
        color=_color(name),
        zorder=2,
    )
    axes.text(x.mean, y.mean, label, fontsize="small", zorder=3)


def _name(figure, shown, left_out):
    """Write next to the axes which method has which number."""
    labels = [f"{number}  {name}" for number, name in enumerate(shown, 1)]
    colors = [_color(name) for name in shown]
    if left_out:
        labels += ["left out, far behind on", "clean examples:", *left_out]
    colors += ["none"] * (len(labels) - len(colors))
    dots = [lines.Line2D([], [], marker="o", ls="", c=c) for c in colors]
    figure.legend(
        dots,
        labels,
        loc="outside right upper",
        fontsize="small",
        handletextpad=0.2,
    )


def _color(name):
    return UNIFIED if name.startswith("uegr") else OTHERS


def _error(interval):
    # One seed has no interval, and `errorbar` refuses NaN.
    return None if interval.low != interval.low else interval.margin


def _save(figure, axes, path):
    for each in axes:
        each.grid(color="#e4e7ea", linewidth=0.6)
        each.set_axisbelow(True)
    # Numbers are moved from where the points lie, which the layout decides.
    figure.draw_without_rendering()
    figure.set_layout_engine("none")
    for each in axes:
        # A limit in time would make the figure depend on the machine.
        adjustText.adjust_text(
            list(each.texts),
            ax=each,
            expand=(1.4, 1.6),
            force_text=(0.3, 0.5),
            iter_lim=500,
        )
    figure.savefig(path, dpi=160)
    pyplot.close(figure)
