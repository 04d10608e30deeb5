"""Shares by row and column as SVG: the darker the larger, with numbers where they fit and a sentence as tooltip."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray

from moecli.report.page.svg import elided, tag, width
from moecli.report.page.values import Heat, percent

CELL, ROW, HEAD = 42, 25, 24  # pixels of a cell's width, a row's height, and the height of the columns' names
NARROWEST = 8  # pixels of a cell
LONGEST = 18  # characters of a row's name
PRINTED = (16, 24)  # columns and rows up to which numbers stand in the cells


@dataclass(frozen=True)
class _Grid:
    """Where cells stand, and what they say."""

    drawn: Heat
    share: NDArray[np.floating]  # (rows, columns), NaN where there is no cell
    chance: NDArray[np.floating]
    left: int  # pixels of the rows' names
    cell: int
    printed: bool

    @classmethod
    def of(cls, drawn: Heat) -> _Grid:
        share = np.asarray(drawn.share, dtype=float)
        printed = share.shape[1] <= PRINTED[0] and share.shape[0] <= PRINTED[1]
        cell = CELL if printed else max(NARROWEST, CELL * PRINTED[0] // max(share.shape[1], 1))
        left = round(10 + max((width(elided(name, LONGEST)) for name in drawn.rows), default=0))
        return cls(
            drawn, share, np.broadcast_to(np.asarray(drawn.chance, dtype=float), share.shape), left, cell, printed
        )


def heat(drawn: Heat) -> Markup:
    """Names of columns lead to pages, where they have one; of names that would touch only some are written."""
    grid = _Grid.of(drawn)
    every = math.ceil((6 + max(map(width, drawn.columns), default=0)) / grid.cell)
    wide, high = grid.left + grid.cell * len(drawn.columns) + 2, HEAD + ROW * len(drawn.rows) + 2
    return tag(
        "svg",
        *(_column(grid, number) for number in range(0, len(drawn.columns), every)),
        *(_row(grid, number) for number in range(len(drawn.rows))),
        class_="heat",
        role="img",
        aria_label=f"{drawn.title}. {drawn.note}",
        width=wide,
        height=high,
        viewBox=f"0 0 {wide} {high}",
    )


def _column(grid: _Grid, number: int) -> Markup:
    name = tag("text", grid.drawn.columns[number], x=grid.left + grid.cell * (number + 0.5), y=HEAD - 7)
    page = grid.drawn.href[number] if grid.drawn.href else ""
    return tag("a", name, href=f"#{page}") if page else name


def _row(grid: _Grid, row: int) -> Markup:
    cells = [part for column in range(grid.share.shape[1]) for part in _cell(grid, row, column)]
    name = tag("text", elided(grid.drawn.rows[row], LONGEST), class_="end", x=grid.left - 6, y=17)
    return tag("g", name, *cells, transform=f"translate(0 {HEAD + ROW * row})")


def _cell(grid: _Grid, row: int, column: int) -> list[Markup]:
    share, chance = float(grid.share[row, column]), float(grid.chance[row, column])
    if math.isnan(share):
        return []
    names = {"row": grid.drawn.rows[row], "column": grid.drawn.columns[column]}
    said = grid.drawn.sentence.format(**names, share=percent(share), chance=percent(chance))
    dark = f"{share / max(float(np.nanmax(grid.share)), 1e-9):.2f}"
    x = grid.left + grid.cell * column
    box = tag("rect", tag("title", said), x=x, width=grid.cell - 1, height=ROW - 1, fill_opacity=dark)
    return [box, tag("text", f"{100 * share:.0f}", x=x + grid.cell // 2, y=17)] if grid.printed else [box]
