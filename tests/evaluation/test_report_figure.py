"""What is drawn of reports; most of them have many conditions."""

import itertools

import numpy as np
import pytest

from keras_uegr.evaluation import Condition, RobustnessReport

NAMES = [
    "as it is",
    "letters swapped",
    "typos",
    "product reviews",
    "tweets",
    "deepwordbug",
    "deepwordbug, 2 words",
    "pwws",
    "pwws, 2 words",
]
SHARES = itertools.cycle([0.8, 0.6, 1.0, 0.05])


def report(name="UEGR", names=NAMES):
    rng = np.random.default_rng(0)
    conditions = [
        Condition("variant", each, None, list(rng.random(90) < share))
        for each, share in zip(names, SHARES, strict=False)
    ]
    attacked = Condition("embedding attack", "attack", 0.02, [True, False] * 45)
    return RobustnessReport(name, [*conditions, attacked], 0.1)


def drawn(count, **settings):
    """The figure of so many reports, as it is saved."""
    first, *others = (
        report(f"a model, number {i}", **settings) for i in range(count)
    )
    figure = first.figure(*others)
    figure.canvas.draw()
    return figure


def boxes(texts):
    """The texts' boxes on the screen, turned as the texts are, to be level."""
    angle = np.radians(texts[0].get_rotation())
    turn = np.array(
        [[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]]
    )
    found = []
    for text in texts:
        anchor = text.get_transform().transform(text.get_position())
        degrees = text.get_rotation()
        text.set_rotation(0)
        box = text.get_window_extent()
        text.set_rotation(degrees)
        found.append(box.translated(*(turn @ anchor - anchor)))
    return found


def overlap(boxes):
    return any(a.overlaps(b) for a, b in itertools.combinations(boxes, 2))


@pytest.mark.parametrize("names", [NAMES[:1], NAMES[:3], NAMES[4:7], NAMES])
@pytest.mark.parametrize("count", [1, 3, 7])
def test_names_and_shares_are_apart_from_each_other(count, names):
    figure = drawn(count, names=names)
    bars, curves = figure.axes
    texts = bars.get_xticklabels()
    assert [x.get_text() for x in texts] == names
    assert not overlap(boxes(texts))
    assert not overlap([x.get_window_extent() for x in bars.texts])
    axis = curves.get_window_extent()
    assert axis.width > 250
    assert axis.height > 150


@pytest.mark.parametrize("names", [NAMES[:1], NAMES])
def test_legend_is_inside_of_the_figure(names):
    figure = drawn(7, names=names)
    (legend,) = figure.legends
    assert len(legend.texts) == 7
    whole, box = figure.bbox, legend.get_window_extent()
    assert whole.x0 <= box.x0
    assert box.x1 <= whole.x1


def test_every_model_looks_different():
    bars, curves = drawn(7).axes
    looks = {
        (group[0].get_facecolor(), group[0].get_hatch())
        for group in bars.containers
        if hasattr(group, "patches")
    }
    lines = {(x.get_color(), x.get_linestyle()) for x in curves.lines}
    assert len(looks) == len(lines) == 7
