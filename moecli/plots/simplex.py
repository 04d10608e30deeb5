"""The gate on the simplex: with three experts, each token is a point of a triangle whose corners are the experts."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.axes import Axes

from moecli.plots.figure import FAINT, INK, MARKERS, Picture, class_colors, heading, new, safe, stem, styled
from moecli.plots.numbers import by_expert
from moecli.plots.recorded import MOST_NAMED, Recorded, last
from moecli.record.folder import Run

Array = np.ndarray[Any, Any]
CORNERS = np.array([[0.0, 0.0], [1.0, 0.0], [0.5, np.sqrt(3) / 2]])  # of e0, e1, e2
MOST_TOKENS = 2000  # drawn, evenly spread over those recorded
MOST_VALUES = 10  # of a label, that marks and colours can tell apart


@styled
def draw(run: Run) -> dict[str, Picture]:
    """One figure for each layer of three experts, coloured by the first label that has few values."""
    figures = {}
    for layer, about in run.layers.items():
        found = last(run, layer) if about["experts"] == 3 else None
        if found is not None and "probs" in found.tokens:
            figures[stem("simplex", layer)] = _picture(run, layer, found)
    return figures


def _picture(run: Run, layer: str, found: Recorded) -> Picture:
    rows = np.unique(np.linspace(0, len(found.first) - 1, MOST_TOKENS).astype(int))
    probs = found.tokens["probs"][rows].astype(float)  # (n, 3)
    label = _label(found)
    what = heading(run, "p(expert | x) of each token", layer)
    note = f"{found.where}, {len(rows)} of {len(found.first)} tokens; a corner: sure of that expert"
    figure, grid = new(f"{what}\n{note}", 112)
    axes = grid[0, 0]
    _triangle(axes)
    values = found.tokens[f"label_{label}"][rows].astype(int) if label else np.zeros(len(rows), dtype=int)
    shown = np.unique(values)
    for value, color, mark in zip(shown, class_colors(len(shown)), MARKERS, strict=False):
        points = probs[values == value] @ CORNERS
        name = safe(run.label_name(label, value), MOST_NAMED) if label else "tokens"
        axes.scatter(*points.T, color=color, marker=mark, s=9, linewidths=0, alpha=0.7, label=name)
    title = safe(label) if label else None
    figure.legend(loc="outside lower center", ncols=5, title=title, markerscale=1.5)
    names = {label: [run.label_name(label, value) for value in values]} if label else {}
    return Picture(figure, {**by_expert("p", probs), **names})


def _label(found: Recorded) -> str | None:
    return next((n for n in found.labels if 1 < len(np.unique(found.tokens[f"label_{n}"])) <= MOST_VALUES), None)


def _triangle(axes: Axes) -> None:
    axes.plot(*CORNERS[[0, 1, 2, 0]].T, color=INK, linewidth=0.8)
    centre = CORNERS.mean(0)
    for corner in CORNERS:  # where two experts are even, towards the centre
        opposite = (CORNERS.sum(0) - corner) / 2
        axes.plot(*np.stack([opposite, centre]).T, color=FAINT, linewidth=0.6, linestyle=(0, (4, 3)))
    axes.plot(*centre, "+", color=INK, markersize=9)
    axes.annotate("+ uniform, 1/3 each", (0.02, 0.9), xycoords="axes fraction")
    for expert, (corner, shift, side) in enumerate(
        zip(CORNERS, ((0, -4), (0, -4), (0, 4)), ("top", "top", "bottom"), strict=True)
    ):
        axes.annotate(f"e{expert}", corner, shift, textcoords="offset points", ha="center", va=side)
    axes.set(aspect="equal", xlim=(-0.06, 1.06), ylim=(-0.09, 0.97))
    axes.axis("off")
