"""Token-coloured text: recorded test windows, every symbol on the colour of the expert that serves it."""

from __future__ import annotations

import unicodedata
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb

from moecli.analysis.coloured_text import Window, background, visible, windows
from moecli.analysis.repetition import chance_at, repetition
from moecli.plots.figure import KEY, Picture, drawable, expert_key, fonts, heading, new, safe, stem, styled
from moecli.plots.recorded import Recorded, last
from moecli.record.folder import Run

Array = np.ndarray[Any, Any]
COLUMNS, MOST_LINES = 44, 16  # characters of a line, and lines in all
CELL, FRAME = (2.1, 4.2), 30  # mm of a character, and around all
MONOSPACED = "DejaVu Sans Mono"
WINDOWS = 4  # sequences, evenly spread over those recorded
ESCAPED = "�"  # for what no font here has


@styled
def draw(run: Run) -> dict[str, Picture]:
    """One figure a layer of a language model (Jiang et al., 2024, figure 8); how often neighbours share an expert."""
    found = {layer: last(run, layer) for layer in run.layers}
    symbols = run.info.get("symbols", [])
    return {
        stem("text", layer): _picture(run, layer, tokens, symbols)
        for layer, tokens in found.items()
        if tokens is not None and symbols and "id" in tokens.tokens
    }


def _picture(run: Run, layer: str, found: Recorded, symbols: list[str]) -> Picture:
    num_experts, shown = run.layers[layer]["experts"], windows(found.tokens, symbols, WINDOWS)
    most = MOST_LINES // len(shown)
    parts = [_cells(window, most * COLUMNS) for window in shown]
    lines = -(-max(map(len, parts)) // COLUMNS) + 1  # of a window, one for where it is from
    what = heading(run, "each symbol on the colour of its first expert", layer)
    figure, grid = new(
        f"{what}\n{found.where}; {_again(found, num_experts)}", _frame(num_experts) + CELL[1] * lines * len(parts)
    )
    axes = grid[0, 0]
    paint = [to_rgb(background(expert, num_experts)) for expert in (*range(num_experts), -1)]  # the last is nobody's
    pixels = np.ones((lines * len(parts), COLUMNS, 3))
    for number, (window, cells) in enumerate(zip(shown, parts, strict=True)):
        top = number * lines
        colors = pixels[top + 1 : top + lines].reshape(-1, 3)  # a view
        colors[: len(cells)] = [paint[expert] for _, expert in cells]
        axes.text(0, top + 0.8, _source(run, found, window), va="bottom", color="#555555")
        _write(axes, top + 1, cells)
    _page(axes, pixels)
    expert_key(figure, axes, num_experts, 8, "center")
    return Picture(figure, _numbers(shown))


def _frame(num_experts: int) -> float:
    """Millimetres around the text: title, and a legend or a colour bar."""
    return FRAME + (12 if num_experts > KEY else 0)


def _again(found: Recorded, num_experts: int) -> str:
    """How often a symbol goes where the one before it went, beside what its load alone would give."""
    tokens, load = found.tokens, np.bincount(found.first[found.first >= 0], minlength=num_experts)
    share = repetition(tokens["expert"], tokens["sequence"], tokens["position"])
    return f"same expert as the symbol before: {share:.0%}, by chance {chance_at(load):.0%}"


def _source(run: Run, found: Recorded, window: Window) -> str:
    """The window's value of the task's first label."""
    if not found.labels:
        return ""
    label = found.labels[0]
    return f"{safe(label)}: {safe(run.label_name(label, int(found.tokens[f'label_{label}'][window.rows[0]])))}"


def _page(axes: Axes, pixels: Array) -> None:
    """Colours (H, COLUMNS, 3), one a character, lines kept apart."""
    height = len(pixels)
    axes.imshow(pixels, extent=(0, COLUMNS, height, 0), aspect="auto", interpolation="nearest")
    axes.hlines(range(height + 1), 0, COLUMNS, color="white", linewidth=1.2)
    axes.set(xlim=(0, COLUMNS), ylim=(height, 0))
    axes.axis("off")
    axes.set_box_aspect(height * CELL[1] / (COLUMNS * CELL[0]))


def _write(axes: Axes, top: int, cells: list[tuple[str, int]]) -> None:
    """Characters from left to right and line by line."""
    for place, (character, _) in enumerate(cells):
        line, column = divmod(place, COLUMNS)
        if character != " ":
            at: Any = {"ha": "center", "va": "center", "family": [MONOSPACED, *fonts()], "in_layout": False}
            size = 6 if unicodedata.east_asian_width(character) in "WF" else 7  # a wide one still fits its cell
            axes.text(column + 0.5, top + line + 0.5, _shown(character), parse_math=False, fontsize=size, **at)


def _shown(character: str) -> str:
    """An accent without its letter, and what no font here has, by one sign."""
    alone = unicodedata.category(character).startswith("M") or len(drawable(character)) > 1
    return ESCAPED if alone else drawable(character)


def _cells(window: Window, most: int) -> list[tuple[str, int]]:
    """Each character with the expert of its symbol."""
    pairs = zip(window.symbols, window.expert, strict=True)
    return [(character, int(expert)) for symbol, expert in pairs for character in visible(symbol)][:most]


def _numbers(shown: list[Window]) -> dict[str, list[Any]]:
    rows = [
        (window, place, symbol, f"e{e}" if e >= 0 else "nobody")
        for window, part in enumerate(shown)
        for place, (symbol, e) in enumerate(zip(part.symbols, part.expert, strict=True))
    ]
    return {name: [row[i] for row in rows] for i, name in enumerate(("window", "place", "symbol", "expert"))}
