"""A picture's numbers as CSV: columns of equal length -> the text that lies beside the PNG."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]
Table = Mapping[str, Sequence[Any] | Array]  # columns of equal length
DANGEROUS = ("=", "+", "-", "@", "\t", "\r")  # a spreadsheet would run a text that begins with one


def as_csv(table: Table) -> str:
    """A header and a line a row (RFC 4180); what is not finite is empty."""
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(_inert(name) for name in table)
    columns = [np.asarray(column).tolist() if isinstance(column, np.ndarray) else column for column in table.values()]
    writer.writerows([_cell(value) for value in row] for row in zip(*columns, strict=True))
    return text.getvalue()


def _cell(value: Any) -> Any:
    if isinstance(value, str):
        return _inert(value)
    if isinstance(value, float):
        return f"{value:.6g}" if np.isfinite(value) else ""
    return value


def _inert(text: str) -> str:
    """Text that no spreadsheet runs; a quote stands before what one would."""
    shown = text.replace("\0", "\\0").encode("utf-8", "backslashreplace").decode()
    return f"'{shown}" if shown.startswith(DANGEROUS) else shown


def by_expert(name: str, table: Array) -> dict[str, Array]:
    """A column an expert of a table (n, E): ``name e0``, ``name e1``, ..."""
    return {f"{name} e{expert}": column for expert, column in enumerate(np.asarray(table).T)}


def melted(table: Array, rows: tuple[str, Sequence[Any]], columns: tuple[str, Sequence[Any]], value: str) -> Table:
    """Long form of a table (R, C): a line a cell, with the name of its row and of its column."""
    names, kinds = rows[1], columns[1]
    return {
        rows[0]: [name for name in names for _ in kinds],
        columns[0]: [kind for _ in names for kind in kinds],
        value: np.asarray(table, dtype=float).ravel(),
    }


def experts(count: int) -> list[str]:
    """e0, e1, ..."""
    return [f"e{expert}" for expert in range(count)]
