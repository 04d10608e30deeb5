"""Load of every layer and expert, at the end of the training and as a film over it."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import TwoSlopeNorm
from matplotlib.figure import Figure

from moecli.plots.figure import Film, Picture, heading, named, new, safe, styled
from moecli.plots.numbers import experts, melted
from moecli.plots.shares import expert_axis, mark
from moecli.record.folder import Run
from moecli.record.trace import TraceReader

Array = np.ndarray[Any, Any]
FRAMES = 24
WINDOW = 25  # recorded steps that the still counts at the end
MOST_PRINTED = 9  # experts, beyond which two decimals would touch
ROW, FRAME = 7, 34  # mm of a layer, and of what surrounds them
LEAST_TOP = 2.0  # of the scale, so that small differences look small


@styled
def draw(run: Run) -> dict[str, Picture]:
    """Load over an even split, layers below each other: 1 is fair, 0 dead; one still, and a film where steps allow."""
    usages = {layer: TraceReader(run.path).usage(layer) for layer in run.layers}
    served = {layer: usage["served"].astype(float) for layer, usage in usages.items() if usage}
    if not served or max(map(len, served.values())) == 0:
        return {}
    steps = next(usages[layer]["step"] for layer in served)
    still = _table([part[-WINDOW:].sum(0) for part in served.values()])
    pictures: dict[str, Picture] = {"layers": _still(run, list(served), still, min(WINDOW, len(steps)))}
    parts = np.array_split(np.arange(len(steps)), min(FRAMES, len(steps)))
    if len(parts) > 1:
        tables = [_table([part[index].sum(0) for part in served.values()]) for index in parts]
        spans = [(int(steps[index[0]]) + 1, int(steps[index[-1]]) + 1) for index in parts]
        pictures["layers-film"] = _film(run, list(served), tables, spans)
    return pictures


def _table(served: list[Array]) -> Array:
    """Work of each layer's experts, E x (E_l,), over an even split: (L, E), NaN where a layer has fewer experts."""
    table = np.full((len(served), max(map(len, served))), np.nan)
    for row, work in zip(table, served, strict=True):
        row[: len(work)] = work / max(work.mean(), 1e-12)
    return table


def _still(run: Run, layers: list[str], table: Array, window: int) -> Picture:
    figure, axes, _ = _paint(run, layers, table, float(np.nanmax(table)))
    axes.set_title("last recorded step" if window == 1 else f"last {window} recorded steps")
    if table.shape[1] <= MOST_PRINTED:
        for row, expert in np.argwhere(np.isfinite(table)):
            load = table[row, expert]
            color = "black" if 0.35 < load < 0.8 * max(np.nanmax(table), LEAST_TOP) else "white"
            axes.text(expert, row, f"{load:.2f}", ha="center", va="center", color=color)
    return Picture(
        figure, melted(table, ("layer", layers), ("expert", experts(table.shape[1])), "load over even split")
    )


def _film(run: Run, layers: list[str], tables: list[Array], spans: list[tuple[int, int]]) -> Film:
    figure, axes, image = _paint(run, layers, tables[0], float(np.nanmax(tables)))

    def show(number: int) -> None:
        image.set_data(tables[number])
        first, last = spans[number]
        axes.set_title(f"step {first}" if first == last else f"steps {first} to {last}")

    return Film(figure, _film_numbers(layers, tables, spans), show, len(tables))


def _film_numbers(layers: list[str], tables: list[Array], spans: list[tuple[int, int]]) -> dict[str, Any]:
    """A line for each frame, layer and expert."""
    per_frame, width = tables[0].size, tables[0].shape[1]
    first, last = (np.repeat([span[i] for span in spans], per_frame) for i in (0, 1))
    rows = ("layer", layers * len(spans))
    load = melted(np.vstack(tables), rows, ("expert", experts(width)), "load over even split")
    return {"first step": first, "last step": last, **load}


def _paint(run: Run, layers: list[str], table: Array, top: float) -> tuple[Figure, Axes, Any]:
    title = f"{heading(run, 'load of every layer and expert')}\nwork over an even split: 1 is fair, 0 is dead"
    figure, grid = new(title, FRAME + ROW * max(len(layers), 3))
    axes = grid[0, 0]
    scale = TwoSlopeNorm(1.0, 0.0, max(top, LEAST_TOP))
    image = axes.imshow(table, cmap="PuOr_r", norm=scale, aspect="auto", interpolation="nearest")
    bar = figure.colorbar(image, ax=axes, label="load / even")
    bar.set_ticks([0, 1, max(top, LEAST_TOP)], labels=["0", "1", f"{max(top, LEAST_TOP):.2g}"])
    mark(bar, 1.0, "")
    axes.set_yticks(range(len(layers)), [safe(named(layer).removeprefix("layer "), 12) for layer in layers])
    axes.set_ylabel("layer")
    expert_axis(axes, table.shape[1])
    return figure, axes, image
