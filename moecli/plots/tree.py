"""The tree of a hierarchical mixture: at each node, how responsibility is shared out among its branches."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from moecli.gates.tree import halves
from moecli.plots.figure import FAINT, INK, Picture, colors, heading, new, styled
from moecli.record.folder import Run
from moecli.record.trace import TraceReader

Array = np.ndarray[Any, Any]
WIDEST = 16  # nodes of a level that can be told apart; deeper levels are left out
BINS = 10
LEVEL = 24  # mm of a level
TALL, BELOW, LABEL = 0.5, 0.2, 0.5  # of a level's height: a histogram, what lies under it, the top of its number


@styled
def draw(run: Run) -> dict[str, Picture]:
    """A histogram a node: of what its parent was given, the share that goes to it (Jordan & Jacobs, 1994, figure 8)."""
    resp = TraceReader(run.path).responsibilities().get("resp")  # (n, E)
    if resp is None or run.info["config"].get("gate") != "tree":
        return {}
    branching = run.info["config"].get("gate.branching") or halves(resp.shape[1])
    shown = [level for level in range(len(branching)) if math.prod(branching[: level + 1]) <= WIDEST]
    what = heading(run, "responsibilities in the tree, test rows", next(iter(run.layers)))
    note = "histograms: share of the parent's responsibility, 0 to 1\nnumbers: % of all rows"
    cut = "" if len(shown) == len(branching) else f"; {len(branching) - len(shown)} deeper levels not shown"
    figure, grid = new(f"{what}\n{note}{cut}", 32 + LEVEL * (len(shown) + 0.3))
    levels = [_nodes(resp, math.prod(branching[:level])) for level in range(len(shown) + 1)]  # each (n, nodes)
    _paint(grid[0, 0], levels, leaves=len(shown) == len(branching))
    return {"tree": Picture(figure, _numbers(levels))}


def _numbers(levels: list[Array]) -> dict[str, list[Any]]:
    """A line a bar: level and node, the bar's left edge, and the rows in it, each by its parent's responsibility."""
    rows = [
        (depth, node, bin / BINS, count)
        for depth, (above, here) in enumerate(pairwise(levels), 1)
        for node in range(here.shape[1])
        for bin, count in enumerate(_counts(here[:, node], above[:, node * above.shape[1] // here.shape[1]]))
    ]
    return {name: [row[i] for row in rows] for i, name in enumerate(("level", "node", "share from", "rows"))}


def _nodes(resp: Array, count: int) -> Array:
    """Each node has the responsibility of the leaves below it: (n, E) -> (n, count)."""
    return resp.reshape(len(resp), count, -1).sum(-1)


def _paint(axes: Axes, levels: list[Array], leaves: bool) -> None:
    """Nodes from the root down, each centred over its branches, in units of a level's height and the whole width."""
    axes.set(xlim=(0, 1), ylim=(-len(levels) + 1 - BELOW - 0.12, 0.2))
    axes.axis("off")
    axes.text(0.5, 0.02, f"{len(levels[0])} rows", ha="center", va="bottom")
    for depth, (above, here) in enumerate(pairwise(levels), 1):
        width, each = 1 / here.shape[1], here.shape[1] // above.shape[1]
        palette = colors(here.shape[1]) if leaves and depth == len(levels) - 1 else [FAINT] * here.shape[1]
        foot_of_parent = 1 - depth - (BELOW if depth > 1 else 0)
        for node, color in enumerate(palette):
            center, parent = (node + 0.5) * width, (node // each + 0.5) / above.shape[1]
            axes.plot([parent, center], [foot_of_parent, LABEL - depth], color=FAINT, linewidth=0.6)
            _histogram(axes, here[:, node], above[:, node // each], (center, width), -depth - BELOW, color)
            if leaves and depth == len(levels) - 1:
                axes.text(center, -depth - BELOW - 0.03, f"e{node}", ha="center", va="top")


def _histogram(axes: Axes, own: Array, parent: Array, at: tuple[float, float], foot: float, color: Any) -> None:
    """Rows count by their parent's responsibility; ``at`` is centre and width."""
    center, width = at
    count = _counts(own, parent)
    left, step = center - 0.4 * width, 0.8 * width / BINS
    height = TALL * count / max(count.max(), 1e-30)
    axes.bar(left + step * (np.arange(BINS) + 0.5), height, step, foot, color=color)
    axes.plot([left, left + BINS * step], [foot, foot], color=INK, linewidth=0.6)
    axes.text(center, foot + TALL + 0.02, f"{100 * own.mean():.0f}", ha="center", va="bottom")


def _counts(own: Array, parent: Array) -> Array:
    """Rows by the share (n,) of their parent's responsibility that goes to the node: (BINS,)."""
    share = np.divide(own, parent, out=np.zeros_like(own), where=parent > 0)
    return np.histogram(share, BINS, (0, 1), weights=parent)[0]
