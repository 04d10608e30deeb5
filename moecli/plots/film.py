"""A film of decision regions over training: which expert the gate prefers where, from the first step to the last."""

from __future__ import annotations

from typing import Any

import numpy as np

from moecli.plots.figure import KEY, Film, Picture, colors, expert_key, heading, new, safe, styled
from moecli.plots.numbers import Table, experts, melted
from moecli.plots.plane import Plane, belief
from moecli.record.folder import Run
from moecli.record.trace import TraceReader


@styled
def draw(run: Run) -> dict[str, Picture]:
    """The gate's favourite as colour, pale where it is unsure; steps lie ever farther apart, the best one is last."""
    reader = TraceReader(run.path)
    surface, recorded = reader.surface(), reader.frames()
    plane = Plane.of(surface["x"]) if surface and run.layers else None
    if plane is None or not recorded:
        return {}
    gate: Any = surface["gate"]
    frames = [(f"after step {step + 1}", frame["expert"].astype(int), frame["prob"]) for step, frame in recorded]
    frames.append((f"best, step {run.info.get('best_step', '?')}", gate.argmax(-1), gate.max(-1)))
    figure, grid = new(heading(run, "preferred expert over training", next(iter(run.layers))), 112)
    axes = grid[0, 0]

    def picture(number: int) -> Any:
        _, expert, prob = frames[number]
        return belief(plane.image(expert), plane.image(prob), gate.shape[1])

    image = axes.imshow(picture(0), origin="lower", extent=plane.extent)
    axes.scatter(*surface["data_x"].T, color="black", s=2, linewidths=0)
    axes.set(xlim=plane.extent[:2], ylim=plane.extent[2:])
    names = [*run.info.get("feature_names", []), "x", "y"]
    axes.set(xlabel=safe(names[0]), ylabel=safe(names[1]))
    expert_key(figure, axes, gate.shape[1], 8, "center")

    def show(number: int) -> None:
        image.set_data(picture(number))
        axes.set_title(frames[number][0])

    exact = colors(gate.shape[1]) if gate.shape[1] <= KEY else []
    return {"film": Film(figure, _numbers(frames, gate.shape[1]), show, len(frames), exact)}


def _numbers(frames: list[tuple[str, Any, Any]], num_experts: int) -> Table:
    """The share of the plane on which each expert is preferred, frame by frame."""
    share = [np.bincount(expert, minlength=num_experts) / len(expert) for _, expert, _ in frames]
    return melted(
        np.array(share), ("frame", [n for n, *_ in frames]), ("expert", experts(num_experts)), "share of plane"
    )
