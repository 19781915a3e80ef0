"""The quickstart's table and figure: two fine-tuned models side by side."""

import dataclasses

import matplotlib
import numpy as np
import rich.table

matplotlib.use("Agg")
from matplotlib import pyplot, ticker

COLORS = {"plain fit": "#8a8f98", "UEGR": "#0f766e"}
STYLE = {
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlelocation": "left",
    "axes.titlesize": "medium",
}


@dataclasses.dataclass
class Result:
    """What was measured of one fine-tuned model.

    Args:
        clean: float. Accuracy on the test sentences.
        swapped: float. Accuracy on them with letters swapped.
        attacked: dict. Accuracy under attack, by the attack's radius.
        seconds_per_step: float. Median over the training steps.
        updated_share: float. Share of the parameters that a step changes.
    """

    clean: float
    swapped: float
    attacked: dict[float, float]
    seconds_per_step: float
    updated_share: float


def margin(share, count):
    """Return half the width of the 95 % interval of a share of `count`.

    It is the interval of Agresti and Coull, which holds near 0 and 1 too.
    """
    share = (share * count + 2) / (count + 4)
    return 1.96 * np.sqrt(share * (1 - share) / (count + 4))


def build_table(results, radius, title, caption, count):
    """Return the comparison as a table with one column for each model.

    Args:
        results: dict. `Result` by the name of its model.
        radius: float. Which attack the table shows.
        title: string.
        caption: string.
        count: integer. The number of test sentences.
    """

    def percent(share):
        return f"{share:.1%} ± {100 * margin(share, count):.1f}"

    rows = {
        "Accuracy": lambda result: percent(result.clean),
        "Accuracy, letters swapped": lambda result: percent(result.swapped),
        f"Accuracy, attacked (radius {radius})": lambda result: percent(
            result.attacked[radius]
        ),
        "Seconds per training step": lambda result: (
            f"{result.seconds_per_step:.2f}"
        ),
        "Parameters updated in a step": lambda result: (
            f"{result.updated_share:.0%}"
        ),
    }
    table = rich.table.Table(title=title, caption=caption)
    table.add_column()
    for name in results:
        table.add_column(name, justify="right")
    for row, describe in rows.items():
        table.add_row(row, *map(describe, results.values()))
    return table


def draw(results, radius, count, path):
    """Save a figure: three kinds of input, and the attack's growing radius.

    Args:
        results: dict. `Result` by the name of its model.
        radius: float. Which attack the bars show.
        count: integer. The number of test sentences.
        path: `pathlib.Path` of the image.
    """
    with pyplot.rc_context(STYLE):
        figure, (bars, curves) = pyplot.subplots(
            1, 2, figsize=(10, 4.2), layout="constrained", sharey=True
        )
        _draw_bars(bars, results, radius, count)
        _draw_curves(curves, results, count)
        bars.set_ylim(0, 1)
        bars.yaxis.set_major_formatter(ticker.PercentFormatter(xmax=1))
        bars.legend(frameon=False, loc="upper right", ncols=2)
        figure.savefig(path, dpi=160)
        pyplot.close(figure)


def _draw_bars(axes, results, radius, count):
    width = 0.36
    for index, (name, result) in enumerate(results.items()):
        shares = [result.clean, result.swapped, result.attacked[radius]]
        positions = np.arange(3) + (index - 0.5) * width
        axes.bar(
            positions,
            shares,
            width * 0.94,
            yerr=[margin(share, count) for share in shares],
            color=COLORS[name],
            error_kw={"ecolor": "#33383f", "elinewidth": 1},
            label=name,
        )
        for position, share in zip(positions, shares, strict=True):
            # At the foot, where no error bar reaches.
            axes.text(position, 0.02, f"{share:.0%}", ha="center", color="w")
    axes.set_xticks(range(3), ["as written", "letters swapped", "attacked"])
    axes.set_title("Accuracy on the test sentences")


def _draw_curves(axes, results, count):
    for name, result in results.items():
        by_radius = {0.0: result.clean, **result.attacked}
        radii = list(by_radius)
        shares = np.array(list(by_radius.values()))
        margins = np.array([margin(share, count) for share in shares])
        axes.plot(radii, shares, marker="o", color=COLORS[name])
        axes.fill_between(
            radii,
            shares - margins,
            shares + margins,
            color=COLORS[name],
            alpha=0.15,
            linewidth=0,
        )
    axes.axhline(0.5, color="#c4c8cd", linewidth=1, linestyle=":", zorder=0)
    axes.annotate(
        "chance",
        (0, 0.5),
        (2, 3),
        textcoords="offset points",
        color="#8a8f98",
        fontsize="small",
    )
    axes.set_xlabel("radius of the attack, relative to the embedding")
    axes.set_title("Accuracy under projected-gradient attack")
