"""What soft slots read of images: the mean image by each slot's weights, less what uniform weights would read."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from moecli.plots.figure import Picture, heading, new, stem, styled
from moecli.record.folder import Run
from moecli.record.trace import TraceReader

Array = np.ndarray[Any, Any]
COLUMNS, MOST_CELLS = 8, 48
CELL, FRAME = 17, 36  # mm of an image with what is written at it, and around all


@styled
def draw(run: Run) -> dict[str, Picture]:
    """One figure a layer: slot p of expert e is e·p (Puigcerver et al., 2023); of tasks whose features are pixels."""
    side = _pixels(run.info.get("feature_names", []))
    if side is None:
        return {}
    found = {layer: TraceReader(run.path).slots(layer) for layer in run.layers}
    return {stem("slots", layer): _picture(run, layer, slots, side) for layer, slots in found.items() if slots}


def _pixels(names: list[str]) -> tuple[int, int] | None:
    """(H, W) of features named ``pixel row,column`` in the order of an image; None for other features."""
    places = [tuple(map(int, at.groups())) for name in names if (at := re.fullmatch(r"pixel (\d+),(\d+)", str(name)))]
    if not places:
        return None
    height, width = (max(place) + 1 for place in zip(*places, strict=True))
    return (height, width) if places == [(r, c) for r in range(height) for c in range(width)] else None


def _picture(run: Run, layer: str, slots: dict[str, Array], side: tuple[int, int]) -> Picture:
    more = (slots["mean"] - slots["uniform"]).reshape(-1, *side)  # (E P, H, W)
    effective, num_slots = slots["effective"].ravel(), slots["mean"].shape[1]
    shown = min(len(more), MOST_CELLS)
    rest = "" if shown == len(more) else f"; {shown} of {len(more)} slots"
    what = heading(run, "what slots read, less what uniform weights would", layer)
    note = f"below: images in effect, with uniform weights all {int(slots['rows'])}{rest}"
    lines = -(-shown // COLUMNS)
    figure, grid = new(f"{what}\n{note}", FRAME + CELL * lines, lines, COLUMNS)
    top = max(float(np.abs(more[:shown]).max()), 1e-12)
    for cell, axes in enumerate(grid.flat):
        _bare(axes)
        if cell < shown:
            image = axes.imshow(more[cell], cmap="PuOr_r", vmin=-top, vmax=top)
            axes.set_title(f"e{cell // num_slots}·{cell % num_slots}", loc="center", pad=1.5)
            axes.set_xlabel(f"{effective[cell]:.0f}", labelpad=1)
    bar = figure.colorbar(image, ax=grid, location="bottom", aspect=30, label="pixel; white: as with uniform weights")
    bar.ax.locator_params(nbins=5)
    return Picture(figure, _numbers(slots))


def _bare(axes: Axes) -> None:
    axes.set(xticks=[], yticks=[])
    axes.spines[:].set_visible(False)


def _numbers(slots: dict[str, Array]) -> dict[str, Any]:
    """A line a slot: how many images it averages in effect, its largest weight, what uniform weights are, its pixels."""
    weight, effective, rows = slots["weight"], slots["effective"], int(slots["rows"])
    pixels = (slots["mean"] - slots["uniform"]).reshape(weight.size, -1)
    expert, slot = np.indices(weight.shape)
    return {
        "expert": [f"e{e}" for e in expert.ravel()],
        "slot": slot.ravel(),
        "effective images": effective.ravel(),
        "largest weight": weight.ravel(),
        "uniform weight": np.full(weight.size, 1 / rows),
        **{f"pixel {place}": column for place, column in enumerate(pixels.T)},
    }
