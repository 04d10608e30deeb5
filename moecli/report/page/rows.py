"""The one place where a page meets ``moe compare``: reading runs, the rows that they make, and their numbers."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from moecli.record.folder import Run
from moecli.report import compare, records
from moecli.report.compare_table import table
from moecli.report.page.values import Cell, Table
from moecli.report.records import Record, text
from moecli.report.terminal import number

SAID = {"same": "not distinguishable from it", "worse": "worse than it", "better": "better than it"}


@dataclass(frozen=True)
class Rows:
    """The comparison of one task's finished runs: its table, best row first, and what is said of it."""

    table: Table
    order: Sequence[str]  # names of the rows, best first
    row: Mapping[str, str]  # of each run's path
    result: str  # of the best row: "top_k 0.969 ± 0.008 (95 % over 3 seeds)"
    other: str  # of the best dense twin; where that is the best row, of the best mixture
    notes: Sequence[str]


def read(path: Path) -> Record:
    """What the tables say of a run.  Raises ArtifactError, or what a wrong type raises, where it cannot be read."""
    return records.record(Run(path))


def numbers(record: Record) -> dict[str, float | None]:
    """The columns of a table of single runs."""
    quality = f"test/{record.headline}"
    return {
        name.replace("test/", "test "): record.numbers.get(name) for name in (quality, "balance CV", "NMI", "seconds")
    }


def name_of(record: Record, by: str) -> str:
    """The row that a run belongs to while none of its study has finished; a dense twin has one of its own."""
    values = ", ".join(text(record.config[key]) if key in record.config else "-" for key in by.split(","))
    return f"dense twin of {values}" if record.twin else values


def rows(found: Sequence[Record], by: str, chance: float | None) -> Rows | None:
    """Runs of one task and its data, grouped by the keys ``by``; None where none has finished.

    Raises UsageError where no run has a key.
    """
    if not any(record.status == "finished" for record in found):
        return None
    compared = compare.compare(found, by.split(","))
    shown = table(compared)
    numeric = frozenset(range(shown.left, len(shown.head)))
    lines = [_line(compared, row, cells, shown.left) for row, cells in zip(compared.rows, shown.rows, strict=True)]
    if chance is not None:
        lines.append([Cell(""), Cell(number(chance), chance), *[Cell("")] * (len(shown.head) - shown.left - 2)])
        lines[-1] = [Cell("chance"), *[Cell("")] * (shown.left - 1), *lines[-1]]
    best, *others = compared.rows
    other = next((row for row in others if row.twin != best.twin), None)
    return Rows(
        Table(f"Rows by {by}, best first", shown.head, lines, numeric),
        [row.name for row in compared.rows],
        _rows_of(found, compared.rows),
        _said(best),
        _said(other) + _verdict(other) if other else "",
        shown.notes,
    )


def _line(found: compare.Comparison, row: compare.Row, cells: Sequence[str], left: int) -> list[Cell]:
    intervals = [row.cells[column] for column in found.columns]
    means = [math.nan if value is None else value.mean for value in intervals]
    shown = [Cell(t.strip(), None if math.isnan(m) else m) for t, m in zip(cells[left + 1 :], means, strict=True)]
    return [*(Cell(name) for name in cells[:left]), Cell(cells[left], row.count), *shown]


def _rows_of(found: Sequence[Record], made: Sequence[compare.Row]) -> dict[str, str]:
    """Each run's row, also of one that was made twice and counts by its newest."""
    of = {_key(record): row.name for row in made for record in row.finished + row.unfinished}
    return {record.path: of[_key(record)] for record in found if _key(record) in of}


def _key(record: Record) -> str:
    return json.dumps(record.setting, sort_keys=True)


def _said(row: compare.Row) -> str:
    """top_k 0.969 ± 0.008 (95 % over 3 seeds)."""
    if math.isnan(row.half):
        return f"{row.name} {number(row.quality)} (one seed)"
    return f"{row.name} {number(row.quality)} ± {number(row.half)} (95 % over {row.count} seeds)"


def _verdict(row: compare.Row) -> str:
    """What a test says of it beside the best row."""
    said = SAID.get(row.verdict.kind) if row.verdict else None
    return f", {said}" if said else ""
