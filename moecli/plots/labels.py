"""Experts by label: which expert serves the tokens of each class or other label, and all tokens."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from moecli.plots.figure import heading, new, safe, stem, styled
from moecli.record.folder import Run
from moecli.record.trace import TraceReader

Array = np.ndarray[Any, Any]
MOST_ROWS = 40  # label values; the most frequent ones where there are more
PRINTED = (12, 16)  # rows and columns up to which the numbers stand in the cells
ROW, FRAME = 4.6, 38  # mm of a row, and of what surrounds the rows


@styled
def draw(run: Run) -> dict[str, Figure]:
    """One figure for each layer and label, of the last recorded tokens."""
    reader = TraceReader(run.path)
    figures = {}
    for layer in run.layers:
        split = "test" if reader.steps(layer, "test") else "valid"
        tokens = reader.tokens(layer, split)
        for name in (key.removeprefix("label_") for key in tokens if key.startswith("label_")):
            where = f"{split} split, step {reader.steps(layer, split)[-1]}"
            table, counts = _table(tokens, name, run.layers[layer]["experts"])
            if len(counts):
                figures[stem("labels", layer, name)] = _figure(run, layer, name, where, table, counts)
    return figures


def _table(tokens: dict[str, Array], name: str, num_experts: int) -> tuple[Array, Array]:
    """Work by label value and expert (V, E), and the tokens of each value (V,), each token counting once.

    Tokens that no expert served, and those without a label (-1), are left out.
    """
    expert, label = tokens["expert"].astype(int), tokens[f"label_{name}"].astype(int)
    weight = np.where(expert >= 0, tokens["weight"], 0).astype(float)  # (n, K)
    total = weight.sum(1)
    kept = (total > 0) & (label >= 0)
    expert, label, share = expert[kept], label[kept], weight[kept] / total[kept, None]
    table = np.zeros((label.max(initial=-1) + 1, num_experts))
    np.add.at(table, (np.broadcast_to(label[:, None], expert.shape), expert), share)  # an absent one adds 0
    return table, np.bincount(label, minlength=len(table))


def _figure(run: Run, layer: str, name: str, where: str, table: Array, counts: Array) -> Figure:
    values = np.flatnonzero(counts)
    often = np.sort(values[np.argsort(-counts[values], kind="stable")[:MOST_ROWS]])
    rows = np.vstack([table[often], table.sum(0)]) / np.append(counts[often], counts.sum())[:, None]
    rest = "" if len(often) == len(values) else f"; the {MOST_ROWS} most frequent of {len(values)} values"
    what = f"which experts serve which {safe(name)}"
    note = f"{where}{rest}. Each row would equal 'all' if experts ignored the label"
    figure, grid = new(f"{heading(run, what, layer)}\n{note}", FRAME + ROW * max(len(rows), 5))
    axes = grid[0, 0]
    image = axes.imshow(100 * rows, cmap="cividis", vmin=0, aspect="auto", interpolation="nearest")
    figure.colorbar(image, ax=axes, label="share of the label's tokens (%)")
    axes.set_yticks(range(len(rows)), [*_value_names(run, name, often, counts), f"all · {counts.sum()}"])
    axes.axhline(len(often) - 0.5, color="white", linewidth=3)
    axes.set_ylabel(f"{safe(name)} · tokens")
    _expert_axis(axes, rows.shape[1])
    if len(often) <= PRINTED[0] and rows.shape[1] <= PRINTED[1]:
        _print(axes, rows)
    return figure


def _value_names(run: Run, name: str, values: Array, counts: Array) -> list[str]:
    names = run.info.get("label_names", {}).get(name, [])
    shown = [names[value] if value < len(names) else str(value) for value in values]
    return [f"{safe(text, 16)} · {counts[value]}" for text, value in zip(shown, values, strict=True)]


def _expert_axis(axes: Axes, num_experts: int) -> None:
    axes.set_xlabel("expert")
    if num_experts <= PRINTED[1]:
        letter = "e" if num_experts <= 8 else ""  # sixteen names would touch
        axes.set_xticks(range(num_experts), [f"{letter}{expert}" for expert in range(num_experts)])
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)


def _print(axes: Axes, rows: Array) -> None:
    """Whole percents in the cells, dark on light and light on dark."""
    for (row, expert), share in np.ndenumerate(rows):
        color = "black" if share > 0.55 * rows.max() else "white"
        axes.text(expert, row, f"{100 * share:.0f}", ha="center", va="center", color=color)
