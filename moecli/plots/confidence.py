"""Confidence: how undecided the gate is token by token, as histograms of its entropy and of its margin."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from moecli.plots.figure import FAINT, INK, OKABE_ITO, Picture, heading, new, stem, styled
from moecli.plots.recorded import Recorded, last
from moecli.record.folder import Run

Array = np.ndarray[Any, Any]
BINS = 30


@styled
def draw(run: Run) -> dict[str, Picture]:
    """One figure a layer: the entropy of p(expert | x), and p of the first expert minus p of the second."""
    figures = {}
    for layer, about in run.layers.items():
        found = last(run, layer)
        if found is not None and about["experts"] > 1:
            figures[stem("confidence", layer)] = _picture(run, layer, found, about["experts"])
    return figures


def _picture(run: Run, layer: str, found: Recorded, num_experts: int) -> Picture:
    panels = {"entropy": math.log(num_experts)} | ({"margin": 1.0} if "margin" in found.tokens else {})
    what = heading(run, "how sure the gate is of each token's expert", layer)
    note = f"{found.where}, {len(found.tokens['entropy'])} tokens\nsolid: mean, dashed: uniform gate"
    figure, grid = new(f"{what}\n{note}", 70, 1, len(panels), sharey=True)
    numbers: dict[str, list[Any]] = {"quantity": [], "from": [], "to": [], "tokens": []}
    for axes, (name, top) in zip(grid[0], panels.items(), strict=True):
        values = found.tokens[name]
        count, edges = np.histogram(np.clip(values, 0, top), BINS, (0, top))
        _histogram(axes, count, edges, float(values.mean()), top if name == "entropy" else 0.0)
        for bin in range(BINS):
            row = (name, edges[bin], edges[bin + 1], count[bin])
            for key, value in zip(numbers, row, strict=True):
                numbers[key].append(value)
    grid[0, 0].set_title(f"entropy (uniform {math.log(num_experts):.2f})")
    grid[0, 0].set(xlabel="nats", ylabel="% of tokens")
    if len(panels) > 1:
        grid[0, 1].set_title("margin (uniform 0)")
        grid[0, 1].set_xlabel("p(first) - p(second)")
    return Picture(figure, numbers)


def _histogram(axes: Axes, count: Array, edges: Array, mean: float, uniform: float) -> None:
    axes.stairs(100 * count / max(count.sum(), 1), edges, fill=True, color=OKABE_ITO[4])
    axes.axvline(uniform, color=FAINT, linestyle=(0, (4, 3)), linewidth=1.3, label="_uniform", clip_on=False)
    axes.axvline(mean, color=INK, linewidth=1.0, label="_mean")
    axes.margins(x=0.03)
    axes.locator_params(axis="x", nbins=4)
