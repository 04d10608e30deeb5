"""A heat map of shares: one row a group of tokens, one column an expert, and below them all tokens together."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from moecli.plots.figure import INK, new

Array = np.ndarray[Any, Any]
PRINTED = (12, 16)  # rows and columns up to which the numbers stand in the cells
ROW, FRAME = 4.6, 38  # mm of a row, and of what surrounds the rows


def share_map(title: str, axis: str, rows: Array, names: Sequence[str], columns: str = "expert") -> tuple[Any, Axes]:
    """Figure and axes of shares (R, E); the last row is that of all tokens, which is every row's where nothing matters.

    ``axis`` says what the rows are, ``names`` (R,) each of them, safe to be drawn.
    """
    figure, grid = new(title, FRAME + ROW * max(len(rows), 5))
    axes = grid[0, 0]
    image = axes.imshow(100 * rows, cmap="cividis", vmin=0, aspect="auto", interpolation="nearest")
    bar = figure.colorbar(image, ax=axes, label="% of tokens")
    mark(bar, 100 * float(rows[-1].sum()) / rows.shape[1], f"1/{rows.shape[1]}")
    axes.set_yticks(range(len(rows)), names)
    axes.axhline(len(rows) - 1.5, color="white", linewidth=3)
    axes.set_ylabel(axis)
    expert_axis(axes, rows.shape[1], columns)
    if len(rows) <= PRINTED[0] + 1 and rows.shape[1] <= PRINTED[1]:
        print_cells(axes, rows)
    return figure, axes


def mark(bar: Any, value: float, text: str) -> None:
    """A line across a colour bar where chance lies, named on its left, where no tick is."""
    bar.ax.axhline(value, color="white", linewidth=2.2)
    bar.ax.axhline(value, color=INK, linewidth=1.0)
    at: Any = ("axes fraction", "data")
    bar.ax.annotate(f"{text} ▸", (-0.1, value), xycoords=at, ha="right", va="center", color="#555555")


def expert_axis(axes: Axes, num_experts: int, name: str = "expert") -> None:
    axes.set_xlabel(name)
    if num_experts <= PRINTED[1]:
        letter = "e" if num_experts <= 8 else ""  # sixteen names would touch
        axes.set_xticks(range(num_experts), [f"{letter}{expert}" for expert in range(num_experts)])
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)


def print_cells(axes: Axes, rows: Array) -> None:
    """Whole percents in the cells that have a share, dark on light and light on dark."""
    top = np.nanmax(rows)
    for row, expert in np.argwhere(np.isfinite(rows)):
        share = rows[row, expert]
        color = "black" if share > 0.55 * top else "white"
        axes.text(expert, row, f"{100 * share:.0f}", ha="center", va="center", color=color)


def share_numbers(rows: Array, names: Sequence[str], axis: str, columns: str = "expert") -> dict[str, list[Any]]:
    """Long form: a line a cell, its share between 0 and 1."""
    cells = [
        (name, f"e{e}", float(share)) for name, row in zip(names, rows, strict=True) for e, share in enumerate(row)
    ]
    return {key: [cell[i] for cell in cells] for i, key in enumerate((axis, columns, "share"))}
