"""Saturation: how early each layer routes the tokens as it does at the end, on the same tokens at every evaluation."""

from __future__ import annotations

from typing import Any

import numpy as np

from moecli.analysis.saturation import saturation
from moecli.plots.figure import KEY, Picture, colors, heading, marker, named, new, steps_axis, styled
from moecli.plots.recorded import chooses
from moecli.record.folder import Run
from moecli.record.trace import TraceReader

Array = np.ndarray[Any, Any]
SPLIT = "valid"  # the one whose tokens every evaluation records


@styled
def draw(run: Run) -> dict[str, Picture]:
    """A line a layer: the mean share of a token's final experts that it has already (OLMoE, 2024, §5.1)."""
    layers = run.layers if chooses(run) else {}
    curves = {layer: curve for layer in layers if (curve := _curve(run, layer)) is not None}
    if not curves:
        return {}
    what = heading(run, "router saturation: share of the final experts")
    note = f"{SPLIT} split; dotted: chance, if tokens were routed at random with the same loads"
    figure, grid = new(f"{what}\n{note}", 80)
    axes = grid[0, 0]
    for (layer, (steps, values, chance)), color in zip(curves.items(), colors(len(curves)), strict=True):
        axes.plot(steps, values, color=color, marker=marker(steps), label=named(layer))
        axes.plot(steps, chance, color=color, linestyle=":", linewidth=1.0, label="_chance")
    axes.set(ylim=(0, 1.05), yticks=np.linspace(0, 1, 6))
    axes.set_ylabel("share of the final experts")
    steps_axis(axes)
    if len(curves) <= KEY:
        axes.figure.legend(loc="outside lower center", ncols=4)
    return {"saturation": Picture(figure, _numbers(curves))}


def _curve(run: Run, layer: str) -> tuple[Array, Array, Array] | None:
    """Steps, saturation and its chance; None without two evaluations, or where every token has every expert."""
    reader, num_experts = TraceReader(run.path), run.layers[layer]["experts"]
    steps = reader.steps(layer, SPLIT)
    experts = [reader.tokens(layer, SPLIT, step)["expert"].astype(int) for step in steps]
    if len(steps) < 2 or (experts[-1] >= 0).sum(1).min() == num_experts:
        return None
    values = [saturation(at, experts[-1]) for at in experts]
    return np.array(steps), np.array(values), np.array([_chance(at, experts[-1], num_experts) for at in experts])


def _chance(expert_t: Array, expert_end: Array, num_experts: int) -> float:
    """Of tokens (n, K) that are paired with each other's final experts: sum_e f_e(t) f_e(T) over the final experts a token."""
    start, end = (np.bincount(e[e >= 0], minlength=num_experts) / len(e) for e in (expert_t, expert_end))
    return float((start * end).sum() / max(end.sum(), 1e-12))


def _numbers(curves: dict[str, tuple[Array, Array, Array]]) -> dict[str, list[Any]]:
    rows = [(layer, *row) for layer, curve in curves.items() for row in zip(*curve, strict=True)]
    return {name: [row[i] for row in rows] for i, name in enumerate(("layer", "step", "saturation", "chance"))}
