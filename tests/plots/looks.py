"""How a picture looks: what is written where, once rendered, and that nothing lies on anything else."""

from __future__ import annotations

import itertools
from typing import Any

from matplotlib.figure import Figure
from matplotlib.text import Text

from moecli.plots.figure import house_style


def texts(figure: Figure) -> list[str]:
    """All that is written in a figure."""
    return [text.get_text() for text in figure.findobj(Text)]


def boxes(figure: Figure) -> list[tuple[str, Any]]:
    """What is written where, after a rendering at the figure's own resolution."""
    with house_style():
        figure.canvas.draw()
    renderer = figure.canvas.get_renderer()  # type: ignore[attr-defined]
    shown = {text for text in figure.findobj(Text) if text.get_visible()} - hidden_labels(figure)
    # of an annotation the text alone, without its arrow
    return [(text.get_text(), Text.get_window_extent(text, renderer)) for text in shown if text.get_text().strip()]


def hidden_labels(figure: Figure) -> set[Any]:
    """Tick labels outside the limits, or switched off: kept, but not drawn."""
    every, shown = set(), set()
    for axis in (axis for axes in figure.axes for axis in (axes.xaxis, axes.yaxis)):
        off = not axis.axes.axison
        ticks = [*axis.get_major_ticks(), *axis.get_minor_ticks()]
        every |= {label for tick in ticks for label in (tick.label1, tick.label2)}
        every |= {axis.label} if off else set()
        drawn = [label for tick in axis._update_ticks() for label in (tick.label1, tick.label2)]
        shown |= set() if off else {label for label in drawn if label.get_visible()}
    return every - shown


def assert_clear(figure: Figure, fewest: int = 10) -> None:
    """No text on another or beyond the edge, none under 6 pt at 100 mm, and the figure is that wide."""
    found = boxes(figure)
    assert len(found) >= fewest
    assert round(figure.get_figwidth() * 25.4) == 100
    assert min(text.get_fontsize() for text in figure.findobj(Text)) >= 6
    for (one, box), (other, near) in itertools.combinations(found, 2):
        across = min(box.x1, near.x1) - max(box.x0, near.x0)
        up = min(box.y1, near.y1) - max(box.y0, near.y0)
        assert min(across, up) < 0.5, (one, other)  # pixels
    for text, box in found:
        inside = box.x0 > -1 and box.x1 < figure.bbox.x1 + 1 and box.y0 > -1 and box.y1 < figure.bbox.y1 + 1
        assert inside, text
