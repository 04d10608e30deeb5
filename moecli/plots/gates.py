"""Gate bars: how much each label's tokens are given to each expert, with the spread from token to token."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.axes import Axes

from moecli.plots.figure import INK, KEY, Picture, colors, heading, level, new, safe, stem, styled
from moecli.plots.numbers import Table, experts, melted
from moecli.record.folder import Run
from moecli.record.trace import TraceReader

Array = np.ndarray[Any, Any]
MOST_VALUES = 12
ROW, FRAME = 14, 32  # mm of a label's bars, and of what surrounds them
SHORT = 3  # letters, below which a value could be taken for a tick of the axis
SPREAD = (10, 90)  # percentiles of the tokens


@styled
def draw(run: Run) -> dict[str, Picture]:
    """One figure for each label of a soft mixture, one row of bars for each of its values (Hampshire & Waibel, 1992)."""
    config, layers = run.info.get("config", {}), list(run.layers)
    if config.get("model") != "density" or config.get("router") != "dense" or not layers:
        return {}
    num_experts, tokens = run.layers[layers[0]]["experts"], TraceReader(run.path).tokens(layers[0], "test")
    if not tokens or not 1 < num_experts <= KEY:
        return {}
    gate = np.zeros((len(tokens["expert"]), num_experts))
    served = tokens["expert"] >= 0  # (n, K)
    gate[served.nonzero()[0], tokens["expert"][served].astype(int)] = tokens["weight"][served]
    figures = {}
    for name in (key.removeprefix("label_") for key in tokens if key.startswith("label_")):
        label = tokens[f"label_{name}"].astype(int)
        values = np.unique(label[label >= 0])
        if 2 <= len(values) <= MOST_VALUES:
            figures[stem("gates", name)] = _figure(run, name, values, [gate[label == value] for value in values])
    return figures


def _figure(run: Run, name: str, values: Array, parts: list[Array]) -> Picture:
    num_experts = parts[0].shape[1]
    what = heading(run, f"mean gate by {safe(name)}, test tokens", next(iter(run.layers)))
    note = f"lines: {SPREAD[0]}th to {SPREAD[1]}th percentile of the tokens"
    figure, grid = new(f"{what}\n{note}", FRAME + ROW * len(values), len(values), sharex=True, sharey=True)
    for axes, value, part in zip(grid[:, 0], values, parts, strict=True):
        _bars(axes, part)
        text = run.label_name(name, value)
        shown = f"{name} {text}" if len(text) < SHORT else text
        axes.set_ylabel(safe(shown, 14), rotation=0, ha="right", va="center")
    level(grid[0, 0], 1 / num_experts, f"uniform\n1/{num_experts}")
    for axes in grid[1:, 0]:
        level(axes, 1 / num_experts)
    grid[-1, 0].set_xticks(range(num_experts), [f"e{expert}" for expert in range(num_experts)])
    grid[-1, 0].set_xlabel("p(expert | x)")
    return Picture(figure, _numbers(name, [run.label_name(name, value) for value in values], parts))


def _numbers(name: str, values: list[str], parts: list[Array]) -> Table:
    rows, columns = (name, values), ("expert", experts(parts[0].shape[1]))
    table = melted(np.array([part.mean(0) for part in parts]), rows, columns, "mean gate")
    spread = np.array([np.percentile(part, SPREAD, axis=0) for part in parts])  # (V, 2, E)
    return {**table, **{f"{p}th percentile": spread[:, i].ravel() for i, p in enumerate(SPREAD)}}


def _bars(axes: Axes, gate: Array) -> None:  # (n, E)
    expert = np.arange(gate.shape[1])
    axes.bar(expert, gate.mean(0), 0.7, color=colors(len(expert)))
    axes.vlines(expert, *np.percentile(gate, SPREAD, axis=0), color=INK, linewidth=0.8)
    axes.set(ylim=(0, 1.05), yticks=[0, 1])
