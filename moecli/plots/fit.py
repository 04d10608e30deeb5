"""Fit along one feature: data, mixture mean with its spread, each expert's line, above the gate's curves."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.axes import Axes

from moecli.plots.figure import FAINT, INK, Picture, colors, expert_key, heading, level, new, safe, styled
from moecli.plots.numbers import by_expert
from moecli.record.folder import Run
from moecli.record.trace import TraceReader

Array = np.ndarray[Any, Any]


@styled
def draw(run: Run) -> dict[str, Picture]:
    """Top: the fit, an expert's line strong where the gate prefers it.  Bottom: p(expert | x)."""
    surface = TraceReader(run.path).surface()
    if not surface or surface["x"].shape[1] != 1 or not run.layers:
        return {}
    order = surface["x"][:, 0].argsort(kind="stable")
    x, gate = surface["x"][order, 0], surface["gate"][order]  # (M,), (M, E)
    title = heading(run, "fit and gate, test points", next(iter(run.layers)))
    figure, grid = new(title, 105, 2, sharex=True, height_ratios=[1.0, 0.6])
    top, bottom = grid[:, 0]
    name, column, truth = _response(run, surface)
    top.plot(surface["data_x"][:, 0], truth, ".", color=FAINT, markersize=3, alpha=0.6, label="test points")
    if "experts" in surface:
        _experts(top, x, surface["experts"][order, :, column], gate)
    mean = surface["prediction"][order, column]
    spread = surface["deviation"][order, column] if "deviation" in surface else np.zeros_like(mean)
    if "deviation" in surface:
        band = {"color": INK, "alpha": 0.13, "linewidth": 0}
        where = "" if np.isfinite(spread).all() else ", where finite"  # that of Student's t is not for df <= 2
        known = np.where(np.isfinite(spread), spread, np.nan)
        top.fill_between(x, mean - known, mean + known, **band, label=f"± 1 standard deviation{where}")
    top.plot(x, mean, color=INK, linewidth=1.0, linestyle=(0, (5, 1.5)), label="mixture")
    _limit(top, np.concatenate([truth, mean - spread, mean + spread]))
    top.set_ylabel(name)
    top.legend(loc="lower left", bbox_to_anchor=(0, 1), borderaxespad=0.2, ncols=3)  # no corner is sure to be free
    _gate(bottom, x, gate)
    bottom.set_xlabel(safe([*run.info.get("feature_names", []), "x"][0]))
    expert_key(figure, bottom, gate.shape[1], 8, "center")
    top.margins(x=0)
    bottom.margins(x=0)
    figure.align_ylabels()
    lines = by_expert("expert", surface["experts"][order, :, column]) if "experts" in surface else {}
    numbers = {"x": x, "mixture": mean, "deviation": spread, **by_expert("gate", gate), **lines}
    return {"fit": Picture(figure, numbers)}


def _response(run: Run, surface: dict[str, Array]) -> tuple[str, int, Array]:
    """What the top panel shows: its name, its column of the prediction, and the points' own values (n,).

    Of classes it is the probability of the last one, whose points lie at 1 and all others at 0.
    """
    if run.info.get("kind") != "classification":
        return "target", 0, surface["data_y"].reshape(len(surface["data_x"]), -1)[:, 0]
    last = surface["prediction"].shape[1] - 1
    names: list[str] = next(iter(run.info.get("label_names", {}).values()), [])
    name = names[last] if last < len(names) else str(last)
    return f"P({safe(name)})", last, (surface["data_y"].reshape(-1) == last).astype(float)


def _experts(axes: Axes, x: Array, lines: Array, gate: Array) -> None:
    """Each expert's line (M, E), faint, and strong where it is the gate's favourite (M, E)."""
    preferred = gate.argmax(1)
    for expert, color in enumerate(colors(gate.shape[1])):
        axes.plot(x, lines[:, expert], color=color, linewidth=0.7, alpha=0.3)
        strong = np.where(preferred == expert, lines[:, expert], np.nan)
        axes.plot(x, strong, color=color, linewidth=2.4, solid_capstyle="round")


def _limit(axes: Axes, values: Array) -> None:
    """Room for the points and the mean; an expert may run far off where nobody asks it."""
    finite = values[np.isfinite(values)]
    low, high = finite.min(), finite.max()
    room = 0.1 * (high - low) or 1.0
    axes.set_ylim(low - room, high + room)


def _gate(axes: Axes, x: Array, gate: Array) -> None:
    num_experts = gate.shape[1]
    for expert, color in enumerate(colors(num_experts)):
        axes.plot(x, gate[:, expert], color=color)
    level(axes, 1 / num_experts, f"uniform\n1/{num_experts}")
    axes.set_ylim(-0.03, 1.05)
    axes.set_ylabel("p(expert | x)")
