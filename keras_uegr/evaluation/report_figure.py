"""The figure of robustness reports: models side by side.

On the left what was asked once, as bars; on the right the accuracy against the
radius of the attack on the embeddings, with its interval as a band.
"""

import numpy as np

from keras_uegr.evaluation.optional_import import import_optional

# Okabe and Ito's, which those who see colours differently tell apart.
COLORS = ["#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00"]
INK = "#33383f"
# Of the label on a bar, as a share of the axis.
LABEL_HEIGHT = 0.09


def draw(reports):
    """A `matplotlib.figure.Figure` of `RobustnessReport`s.

    Args:
        reports: List of reports with the same conditions, each on the same
            number of examples.

    Raises:
        ValueError: If the conditions, or the numbers of examples, differ.
    """
    _check(reports)
    # Not pyplot: a library leaves the user's figures and windows alone.
    matplotlib_figure = import_optional("matplotlib.figure", "Figures")
    figure = matplotlib_figure.Figure(figsize=(10, 4.2), layout="constrained")
    bars, curves = figure.subplots(1, 2, sharey=True)
    for position, report in enumerate(reports):
        color = COLORS[position % len(COLORS)]
        _draw_bars(bars, report, color, position, len(reports))
        _draw_curve(curves, report, color)
    bars.set_ylim(0, 1)
    bars.yaxis.set_major_formatter(lambda share, _: f"{share:.0%}")
    figure.legend(frameon=False, loc="outside upper right", ncols=len(reports))
    curves.set_xlabel("radius of the attack, relative to the embedding")
    titles = ["Accuracy", "Accuracy under attack on the embedding"]
    for axes, title in zip((bars, curves), titles, strict=True):
        axes.set_title(title, loc="left", fontsize="medium")
        axes.spines[["top", "right"]].set_visible(False)
    return figure


def _draw_bars(axes, report, color, position, count):
    conditions = [x for x in report.conditions if x.epsilon is None]
    width = 0.8 / count
    centers = np.arange(len(conditions)) + (position - (count - 1) / 2) * width
    shares, margins = _shares(conditions)
    axes.bar(
        centers,
        shares,
        0.94 * width,
        # As lists: of an array of one, Matplotlib 3.9 calls what NumPy ends.
        yerr=[[*side] for side in margins],
        color=color,
        error_kw={"ecolor": INK, "elinewidth": 1},
        label=report.name,
    )
    for center, share, above in zip(centers, shares, margins[1], strict=True):
        # At the foot, where no error bar reaches, if the bar is high enough.
        fits = share >= LABEL_HEIGHT
        axes.text(
            center,
            0.02 if fits else share + above + 0.02,
            f"{share:.0%}",
            ha="center",
            color="white" if fits else INK,
        )
    axes.set_xticks(range(len(conditions)), [x.name for x in conditions])


def _draw_curve(axes, report, color):
    conditions = [x for x in report.conditions if x.epsilon is not None]
    clean = report.conditions[:1]
    radii = [0.0, *(x.epsilon for x in conditions)]
    order = np.argsort(radii, kind="stable")
    shares, margins = _shares([*clean, *conditions])
    radii, shares = np.array(radii)[order], shares[order]
    low, high = (margin[order] for margin in margins)
    axes.plot(radii, shares, marker="o", color=color)
    axes.fill_between(
        radii, shares - low, shares + high, color=color, alpha=0.15, linewidth=0
    )


def _shares(conditions):
    """Accuracies, and how far their intervals reach down and up."""
    intervals = [x.interval() for x in conditions]
    shares = np.array([x.mean for x in intervals])
    low = shares - [x.low for x in intervals]
    high = [x.high for x in intervals] - shares
    return shares, np.stack([low, high])


def _check(reports):
    asked = [
        [(x.kind, x.name, x.epsilon, len(x.right)) for x in report.conditions]
        for report in reports
    ]
    for report, conditions in zip(reports, asked, strict=True):
        if conditions != asked[0]:
            raise ValueError(
                "Reports in one figure must have the same conditions, each on "
                "the same number of examples. "
                f"Received: {asked[0]} for {reports[0].name}, and {conditions} "
                f"for {report.name}"
            )
