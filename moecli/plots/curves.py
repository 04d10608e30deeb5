"""Learning curves: training loss, the validation metric beside its chance level, and what else each step recorded."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from moecli.plots.figure import (
    FAINT,
    INK,
    OKABE_ITO,
    Picture,
    heading,
    level,
    log_axis,
    marker,
    new,
    safe,
    smooth,
    steps_axis,
    styled,
    with_unit,
)
from moecli.plots.likelihood import LIKELIHOODS
from moecli.record.folder import Run

NOT_BESIDE = {"loss", "total", "grad_norm", *LIKELIHOODS}  # likelihoods have a picture of their own
SMOOTHING = 25  # the running mean covers one part in so many of all steps
Curve = tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]  # steps (S,), values (S,)


@styled
def draw(run: Run) -> dict[str, Picture]:
    """One panel each for what there is of the three, on one axis of steps."""
    train, valid = _curves(run, "train"), _curves(run, "valid")
    headline = run.info.get("headline", "")
    beside = {n: curve for n, curve in train.items() if n not in NOT_BESIDE and not n.startswith("restart")}
    panels: list[Callable[[Axes], None]] = []
    if "loss" in train:
        panels.append(lambda axes: _loss(axes, run, train["loss"]))
    if headline in valid:
        panels.append(lambda axes: _headline(axes, run, headline, valid[headline]))
    if beside:
        panels.append(lambda axes: _beside(axes, beside))
    if not panels:
        return {}
    figure, grid = new(heading(run, "learning curves"), 16 + 38 * len(panels), len(panels), sharex=True)
    for axes, panel in zip(grid[:, 0], panels, strict=True):
        panel(axes)
    steps_axis(grid[-1, 0])
    figure.align_ylabels()
    return {"curves": Picture(figure, _numbers({"train": train, "valid": valid}))}


def _numbers(curves: dict[str, dict[str, Curve]]) -> dict[str, list[Any]]:
    rows = [
        (split, name, int(step), value)
        for split, found in curves.items()
        for name, points in found.items()
        for step, value in zip(*points, strict=True)
    ]
    return {column: [row[i] for row in rows] for i, column in enumerate(("split", "name", "step", "value"))}


def _curves(run: Run, split: str) -> dict[str, Curve]:
    """Each metric's steps and values; what was not finite is nan."""
    found = defaultdict(list)
    for record in run.metrics:
        if record["split"] == split:
            value = record["value"]
            found[record["name"]].append((record["step"], np.nan if value is None else value))
    arrays = {name: np.array(sorted(points), dtype=float) for name, points in found.items()}
    return {name: (points[:, 0], points[:, 1]) for name, points in arrays.items()}


def _loss(axes: Axes, run: Run, curve: Curve) -> None:
    steps, values = curve
    lost = np.count_nonzero(~np.isfinite(values))
    if len(values) >= 2 * SMOOTHING:
        axes.plot(steps, values, color=OKABE_ITO[0], alpha=0.3, linewidth=0.6, label="each recorded step")
        axes.plot(steps, _smoothed(values), color=OKABE_ITO[0], label="running mean")
        axes.legend(loc="best", ncols=1)
    else:
        axes.plot(steps, values, color=OKABE_ITO[0], marker=marker(steps))
    axes.set_title("training loss" + (f" ({lost} of {len(values)} steps not finite)" if lost else ""))
    axes.set_ylabel(with_unit(run, "loss"))
    _log_where_wide(axes, [values])


def _headline(axes: Axes, run: Run, metric: str, curve: Curve) -> None:
    steps, values = curve
    axes.plot(steps, values, color=OKABE_ITO[2], marker=marker(steps))
    axes.set_title(f"validation {safe(metric)}")
    axes.set_ylabel(with_unit(run, metric))
    finished = (run.path / "summary.json").is_file()  # an interrupted run has curves, but no summary yet
    chance = run.summary.get("chance", {}).get(f"valid/{metric}") if finished else None
    if chance is not None:
        level(axes, chance, f"chance\n{chance:.3g}")
    axes.margins(y=0.2)
    if np.isfinite(values).any():
        higher = run.info.get("higher_is_better", True)
        _mark_best(axes, steps, values, int(np.nanargmax(values) if higher else np.nanargmin(values)))


def _mark_best(axes: Axes, steps: np.ndarray[Any, Any], values: np.ndarray[Any, Any], best: int) -> None:
    """A ring around the best value, and in the title's line what it was, where nothing can lie across it."""
    axes.plot(steps[best], values[best], "o", color=INK, markerfacecolor="none", markersize=6)
    axes.set_title(f"best {values[best]:.4g} at step {steps[best]:.0f}", loc="right")


def _beside(axes: Axes, curves: dict[str, Curve]) -> None:
    for (name, (steps, values)), color in zip(curves.items(), OKABE_ITO * len(curves), strict=False):
        axes.plot(steps, values, color=color, alpha=0.3, linewidth=0.6)
        axes.plot(steps, _smoothed(values), color=color, marker=marker(steps), label=safe(name))
    axes.set_title("recorded beside the loss")
    axes.set_ylabel("value (no unit)")
    _log_where_wide(axes, [values for _, values in curves.values()])
    axes.legend(ncols=2, loc="best")


def _smoothed(values: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    return smooth(values, len(values) // SMOOTHING)


def _log_where_wide(axes: Axes, values: list[np.ndarray[Any, Any]]) -> None:
    """A logarithmic axis where the values are positive and span more than a factor of thirty."""
    known = np.concatenate([v[np.isfinite(v)] for v in values])
    if len(known) and known.min() > 0 and known.max() > 30 * known.min():
        log_axis(axes, known)
    axes.grid(axis="y", color=FAINT, alpha=0.25, linewidth=0.5)
