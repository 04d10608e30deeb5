"""Vocabulary: the symbols that each expert serves the largest share of, as a table beside chance."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.axes import Axes

from moecli.analysis.coloured_text import visible
from moecli.analysis.vocabulary import FEWEST, Vocabulary, vocabulary
from moecli.plots.figure import FAINT, Picture, colors, heading, new, safe, stem, styled
from moecli.plots.recorded import Recorded, last
from moecli.record.folder import Run

Array = np.ndarray[Any, Any]
TOP = 4  # symbols of an expert
MOST_EXPERTS = 16  # those that serve one symbol most exclusively, where there are more
ROW, FRAME = 5.2, 34  # mm
FIRST = 2.2  # where the symbols begin, in columns


@styled
def draw(run: Run) -> dict[str, Picture]:
    """One table a layer of a language model (Muennighoff et al., 2024, §5.4)."""
    symbols = run.info.get("symbols", [])
    figures = {}
    for layer, about in run.layers.items():
        found = last(run, layer) if symbols else None
        if found is not None and "id" in found.tokens:
            table = vocabulary(found.tokens["id"], found.tokens["expert"], about["experts"])
            if len(table.ids):
                figures[stem("vocabulary", layer)] = _picture(run, layer, found, table, symbols)
    return figures


def _picture(run: Run, layer: str, found: Recorded, table: Vocabulary, symbols: list[str]) -> Picture:
    num_experts = table.share.shape[1]
    expert = found.tokens["expert"]
    chance = np.bincount(expert[expert >= 0], minlength=num_experts) / len(expert)  # (E,) share of all tokens
    shown = np.sort(np.argsort(-table.share.max(0), kind="stable")[:MOST_EXPERTS])
    rest = "" if len(shown) == num_experts else f"; {MOST_EXPERTS} of {num_experts} experts"
    what = heading(run, "symbols that each expert serves most of, in %", layer)
    note = f"{found.where}, symbols of {FEWEST} tokens or more{rest}; chance: the expert's share of all tokens"
    figure, grid = new(f"{what}\n{note}", FRAME + ROW * len(shown))
    _write(grid[0, 0], shown, table, chance, symbols)
    return Picture(figure, _numbers(table, chance, symbols))


def _write(axes: Axes, shown: Array, table: Vocabulary, chance: Array, symbols: list[str]) -> None:
    palette = colors(table.share.shape[1])
    axes.set(xlim=(0, TOP + 2.2), ylim=(len(shown) + 0.2, -1))
    axes.axis("off")
    axes.text(0.05, -0.5, "expert", va="center")
    axes.text(1.5, -0.5, "chance", va="center", ha="center", color="#555555")
    axes.text(FIRST, -0.5, "symbols above chance, largest share first", va="center")
    axes.axhline(0, color=FAINT, linewidth=0.6)
    for row, expert in enumerate(shown):
        axes.add_patch(_swatch(row, palette[expert]))
        axes.text(0.35, row + 0.5, f"e{expert}", va="center")
        axes.text(1.5, row + 0.5, f"{100 * chance[expert]:.0f}", va="center", ha="center", color="#555555")
        above = [(id, share) for id, share, _ in table.top(int(expert), TOP) if share > chance[expert]]
        for column, (id, share) in enumerate(above):
            axes.text(FIRST + column, row + 0.5, f"{_shape(symbols[id])}  {100 * share:.0f}", va="center")


def _swatch(row: int, color: Any) -> Any:
    from matplotlib.patches import Rectangle

    return Rectangle((0.05, row + 0.2), 0.22, 0.6, color=color, linewidth=0)


def _shape(symbol: str) -> str:
    """A symbol that can be seen: spaces and line ends by signs, what no font has by its number."""
    return safe(visible(symbol), 4)


def _numbers(table: Vocabulary, chance: Array, symbols: list[str]) -> dict[str, Any]:
    num_experts = table.share.shape[1]
    return {
        "symbol": [symbols[id] for id in table.ids for _ in range(num_experts)],
        "tokens": np.repeat(table.count, num_experts),
        "expert": [f"e{e}" for _ in table.ids for e in range(num_experts)],
        "share": table.share.ravel(),
        "chance": np.tile(chance, len(table.ids)),
    }
