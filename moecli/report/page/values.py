"""What a page consists of, as values: tables, curves, heat maps.  HTML and Markdown only write them down."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Cell:
    """``text`` as it is read; ``key`` what it sorts by (the text, where None); ``href`` an anchor of this page."""

    text: str
    key: float | None = None
    href: str = ""


@dataclass(frozen=True)
class Table:
    """``head`` and ``rows`` of equal length; the first cell of a row names it; columns in ``numeric`` sort as numbers."""

    caption: str
    head: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    numeric: frozenset[int] = frozenset()


@dataclass(frozen=True)
class Curve:
    """One line: x and y (S,), ``group`` its colour's number; what belongs together has the same."""

    name: str
    x: Sequence[float]
    y: Sequence[float]
    group: int = 0


@dataclass(frozen=True)
class Level:
    """A horizontal line: what chance or an even split would give."""

    name: str
    value: float


@dataclass(frozen=True)
class Chart:
    """Curves over steps.  ``groups`` names the colours, in order."""

    title: str
    unit: str
    curves: Sequence[Curve]
    groups: Sequence[str]
    levels: Sequence[Level] = ()
    log: bool = False


@dataclass(frozen=True)
class Heat:
    """Shares (rows, columns) in 0..1, each beside what chance would give (columns,) or (rows, columns); NaN is unknown."""

    title: str
    rows: Sequence[str]
    columns: Sequence[str]
    share: Any
    chance: Any
    note: str
    sentence: str  # of a cell: "{row}: {column} serves {share} of its tokens, by chance {chance}"
    href: Sequence[str] = field(default=())  # of each column


@dataclass(frozen=True)
class Picture:
    """A data: URI of a picture that the run folder holds, with the width it is shown at."""

    name: str
    uri: str
    width: int


def percent(share: float) -> str:
    """0.123 -> 12%, 0.0012 -> 0.1%."""
    if math.isnan(share):
        return "unknown"
    return f"{share:.0%}" if share >= 0.01 or share == 0 else f"{share:.1%}"
