"""Load over training: the share of the work that each expert served, and what was dropped."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.axes import Axes

from moecli.plots.figure import (
    FAINT,
    INK,
    KEY,
    Picture,
    colors,
    heading,
    level,
    marker,
    new,
    smooth,
    stem,
    steps_axis,
    styled,
)
from moecli.plots.numbers import by_expert
from moecli.record.folder import Run
from moecli.record.trace import TraceReader

Array = np.ndarray[Any, Any]
SMOOTHING = 50  # the running mean covers one part in so many of all steps
COLUMNS = 200  # of the heat map; more steps are averaged
MIN_GAP = 0.058  # between direct labels, as a share of the axes' height


@styled
def draw(run: Run) -> dict[str, Picture]:
    """One figure a layer: lines up to sixteen experts, a heat map beyond."""
    reader = TraceReader(run.path)
    usages = {layer: reader.usage(layer) for layer in run.layers}
    return {stem("load", layer): _layer(run, layer, usage) for layer, usage in usages.items() if usage}


def _layer(run: Run, layer: str, usage: dict[str, Array]) -> Picture:
    share, dropped = _shares(usage["served"]), _dropped(usage["asked"], usage["served"])
    panels = 2 if dropped.max() > 1e-6 else 1  # dense plans count mass, which is rounded
    figure, grid = new(
        heading(run, "share of the work each expert served", layer),
        86 if panels == 1 else 108,
        panels,
        sharex=True,
        height_ratios=[1.0, 0.3][:panels],
    )
    axes = grid[0, 0]
    (_lines if share.shape[1] <= KEY else _heat_map)(axes, usage["step"], share)
    if panels == 2:
        _dropped_panel(grid[1, 0], usage["step"], dropped)
    for axes in grid[:, 0]:
        axes.margins(x=0)
    steps_axis(grid[-1, 0])
    return Picture(figure, {"step": usage["step"], **by_expert("share", share), "dropped": dropped})


def _shares(served: Array) -> Array:
    """Each expert's share of a step's work: (S, E) -> (S, E); 0 where nobody worked."""
    total = served.sum(1, keepdims=True).astype(float)
    return np.divide(served, total, out=np.zeros(served.shape), where=total > 0)


def _dropped(asked: Array, served: Array) -> Array:
    """The share of what was asked for that no expert served: (S, E), (S, E) -> (S,)."""
    wanted = asked.sum(1).astype(float)
    return 1 - np.divide(served.sum(1), wanted, out=np.ones(len(wanted)), where=wanted > 0)


def _lines(axes: Axes, steps: Array, share: Array) -> None:
    """A line an expert, named at its end."""
    window, num_experts = len(steps) // SMOOTHING, share.shape[1]
    shown = smooth(share, window)
    for expert, color in enumerate(colors(num_experts)):
        axes.plot(steps, shown[:, expert], color=color, marker=marker(steps), label=f"e{expert}")
    level(axes, 1 / num_experts)
    mean = f"mean of {window} recorded steps" if window > 1 else "each recorded step"
    axes.set_title(f"{mean}; dashed: uniform 1/{num_experts}")
    axes.set_ylabel("share of the work")
    axes.set_ylim(0, max(1.12 * shown.max(), 1.6 / num_experts))
    _name_ends(axes, shown[-1])


def _name_ends(axes: Axes, ends: Array) -> None:
    """Labels at the right edge, pushed apart and led back to their lines: ends (E,)."""
    heights = ends / axes.get_ylim()[1]
    for expert, (height, place) in enumerate(zip(heights, _spread(heights), strict=True)):
        color = axes.lines[expert].get_color()
        axes.annotate(
            f"e{expert}",
            (1, height),
            (1.06, place),
            "axes fraction",
            va="center",
            ha="left",
            color=INK,
            arrowprops={
                "arrowstyle": "-",
                "color": color,
                "linewidth": 1.3,
                "shrinkA": 2,
                "shrinkB": 0,
                "relpos": (0, 0.5),
                "patchA": None,
            },
        )


def _spread(heights: Array) -> Array:
    """The nearest places in order that lie a gap apart, within the axes where they fit: (E,) -> (E,)."""
    order = np.argsort(heights, kind="stable")
    rank = np.arange(len(heights)) * MIN_GAP
    up = np.maximum.accumulate(heights[order] - rank)
    down = np.minimum.accumulate((heights[order] - rank)[::-1])[::-1]
    middle = np.clip((up + down) / 2, 0, max(1 - rank[-1], 0))  # both are sorted, so their mean is
    places = np.empty_like(heights)
    places[order] = middle + rank
    return places


def _heat_map(axes: Axes, steps: Array, share: Array) -> None:
    """Expert x step, with the uniform share marked on the colour bar."""
    parts = np.array_split(np.arange(len(steps)), min(len(steps), COLUMNS))
    table = np.stack([share[part].mean(0) for part in parts], 1)  # (S, E) -> (E, columns)
    edges = np.append(steps[[part[0] for part in parts]], steps[-1] + 1)
    num_experts = len(table)
    mesh = axes.pcolormesh(edges, np.arange(num_experts + 1) - 0.5, table, cmap="cividis", vmin=0, rasterized=True)
    axes.set_ylabel("expert")
    axes.locator_params(axis="y", integer=True)
    bar = axes.figure.colorbar(mesh, ax=axes, label="share of the work")
    bar.ax.axhline(1 / num_experts, color="white", linewidth=1.5)
    axes.set_title(f"white line on the bar: uniform 1/{num_experts}")


def _dropped_panel(axes: Axes, steps: Array, dropped: Array) -> None:
    axes.plot(steps, 100 * dropped, color=FAINT, alpha=0.5, linewidth=0.6)
    axes.plot(steps, 100 * smooth(dropped, len(steps) // SMOOTHING), color=INK, marker=marker(steps))
    axes.set_ylim(bottom=0)
    axes.set_ylabel("dropped (%)")
