"""Data coloured by responsibility: which expert made each test row, as the mixture sees it once it knows the target."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb

from moecli.plots.figure import Picture, colors, expert_key, heading, new, safe, styled
from moecli.plots.numbers import by_expert
from moecli.record.folder import Run
from moecli.record.trace import TraceReader

Array = np.ndarray[Any, Any]


@styled
def draw(run: Run) -> dict[str, Picture]:
    """One feature against the target, or two against each other, in the experts' colours."""
    found = TraceReader(run.path).responsibilities()
    if "x" not in found or not run.layers:
        return {}
    resp, x = found["resp"], found["x"]  # (n, E), (n, 1 or 2)
    palette = np.array([to_rgb(color) for color in colors(resp.shape[1])])
    what = heading(run, "test rows by responsibility", next(iter(run.layers)))
    figure, grid = new(f"{what}\nmixed colours: several experts may have made the row", 95)
    axes, target = grid[0, 0], found["target"].reshape(len(x), -1)[:, 0]
    points = x if x.shape[1] == 2 else np.stack([x[:, 0], target], 1)
    axes.scatter(*points.T, color=np.clip(resp @ palette, 0, 1), s=9, linewidths=0)
    _name_axes(axes, run, x.shape[1])
    expert_key(figure, axes, resp.shape[1], 8, "center")
    numbers = {"horizontal": points[:, 0], "vertical": points[:, 1], **by_expert("responsibility", resp)}
    return {"responsibility": Picture(figure, numbers)}


def _name_axes(axes: Axes, run: Run, features: int) -> None:
    names = [*run.info.get("feature_names", []), "x", "y"]
    axes.set_xlabel(safe(names[0]))
    axes.set_ylabel(safe(names[1]) if features == 2 else "target")
    axes.locator_params(nbins=5)
