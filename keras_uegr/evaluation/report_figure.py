"""The figure of robustness reports: models side by side.

On the left what was asked once, as bars; on the right the accuracy against the
radius of the attack on the embeddings, with its interval as a band.
"""

import numpy as np

from keras_uegr.evaluation.optional_import import import_optional

# Okabe and Ito's, which those who see colours differently tell apart.
COLORS = ["#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00"]
# Of lines and of bars, for models for which the colours begin anew.
STYLES = [("-", ""), ("--", "//"), (":", "..")]
INK = "#33383f"
# The share of a condition's place that its bars take.
FILLED = 0.8
# Of the label on a bar, as a share of the axis, by its angle.
LABEL_HEIGHTS = {0: 0.09, 90: 0.16}
# The least widths in inches: of the bars' axis, of a condition's place, of a
# bar, and of one whose label is level.
AXIS, PLACE, BAR, LEVEL_BAR = 4.4, 0.5, 0.2, 0.35
# In inches, what a letter takes, and what is beside a name in the legend.
LETTER, MARK = 0.09, 0.7


def draw(reports):
    """A `matplotlib.figure.Figure` of `RobustnessReport`s.

    Its width follows from the number of bars.

    Args:
        reports: List of reports with the same conditions, each on the same
            number of examples.

    Raises:
        ValueError: If the conditions, or the numbers of examples, differ.
    """
    _check(reports)
    names = [str(x.name) for x in _asked_once(reports[0])]
    place = max(AXIS / len(names), PLACE, BAR * len(reports) / FILLED)
    # Beside the bars are the numbers of their axis.
    widths = [place * len(names) + 0.6, 5.0]
    # Not pyplot: a library leaves the user's figures and windows alone.
    matplotlib_figure = import_optional("matplotlib.figure", "Figures")
    figure = matplotlib_figure.Figure(
        figsize=(sum(widths), 4.2), layout="constrained"
    )
    bars, curves = figure.subplots(1, 2, sharey=True, width_ratios=widths)
    for position, report in enumerate(reports):
        _draw_bars(bars, report, position, FILLED / len(reports), place)
        _draw_curve(curves, report, position)
    _draw_names(bars, names, place)
    _draw_legend(figure, [str(x.name) for x in reports])
    bars.set_ylim(0, 1)
    bars.yaxis.set_major_formatter(lambda share, _: f"{share:.0%}")
    curves.set_xlabel("radius of the attack, relative to the embedding")
    titles = ["Accuracy", "Accuracy under attack on the embedding"]
    for axes, title in zip((bars, curves), titles, strict=True):
        axes.set_title(title, loc="left", fontsize="medium")
        axes.spines[["top", "right"]].set_visible(False)
    return figure


def _asked_once(report):
    return [x for x in report.conditions if x.epsilon is None]


def _look(position):
    """The colour of a model, the style of its line, the hatch of its bars."""
    rounds, color = divmod(position, len(COLORS))
    return COLORS[color], *STYLES[rounds % len(STYLES)]


def _draw_bars(axes, report, position, width, place):
    color, _, hatch = _look(position)
    conditions = _asked_once(report)
    first = (position + 0.5) * width - FILLED / 2
    centers = first + np.arange(len(conditions))
    shares, margins = _shares(conditions)
    axes.bar(
        centers,
        shares,
        0.94 * width,
        # As lists: of an array of one, Matplotlib 3.9 calls what NumPy ends.
        yerr=[[*side] for side in margins],
        color=color,
        edgecolor="white",
        linewidth=0,
        hatch=hatch,
        error_kw={"ecolor": INK, "elinewidth": 1},
        label=report.name,
    )
    angle = 0 if width * place >= LEVEL_BAR else 90
    for center, share, above in zip(centers, shares, margins[1], strict=True):
        # At the foot, where no error bar reaches, if the bar is high enough.
        fits = share >= LABEL_HEIGHTS[angle]
        axes.text(
            center,
            0.02 if fits else share + above + 0.02,
            f"{share:.0%}",
            ha="center",
            fontsize="small",
            rotation=angle,
            color="white" if fits else INK,
            # No hatch behind what is written.
            bbox={"facecolor": color if fits else "none", "pad": 0, "lw": 0},
        )


def _draw_names(axes, names, place):
    """The names of the conditions, turned where they don't fit level."""
    axes.set_xlim(-0.5, len(names) - 0.5)
    axes.set_xticks(range(len(names)), names)
    if LETTER * max(map(len, names)) > place:
        for label in axes.get_xticklabels():
            label.set(rotation=30, ha="right", rotation_mode="anchor")


def _draw_legend(figure, names):
    """The models above the axes, in as many lines as they need."""
    column = LETTER * max(map(len, names)) + MARK
    columns = max(1, int(figure.get_figwidth() / column))
    figure.legend(frameon=False, loc="outside upper right", ncols=columns)


def _draw_curve(axes, report, position):
    color, style, _ = _look(position)
    conditions = [x for x in report.conditions if x.epsilon is not None]
    clean = report.conditions[:1]
    radii = [0.0, *(x.epsilon for x in conditions)]
    order = np.argsort(radii, kind="stable")
    shares, margins = _shares([*clean, *conditions])
    radii, shares = np.array(radii)[order], shares[order]
    low, high = (margin[order] for margin in margins)
    axes.plot(radii, shares, marker="o", color=color, linestyle=style)
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
