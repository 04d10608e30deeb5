"""A comparison as rows: of text for people, of numbers in full for CSV and JSON."""

from __future__ import annotations

import math
from typing import Any

from moecli.analysis.statistics import Interval
from moecli.report.compare import COST, WORDS, Comparison, Row
from moecli.report.compare_notes import front_tells, notes
from moecli.report.records import CRITERIA, text
from moecli.report.tables import Table
from moecli.report.terminal import count


def table(found: Comparison) -> Table:
    """What a terminal, Markdown, LaTeX and HTML show."""
    head = [*found.by, "n", *(_title(found, column) for column in found.columns)]
    places = {column: _places(column, found) for column in found.columns}
    width = max(len(row.mark) for row in found.rows)
    rows = [
        [*_names(row), _seeds(row), *(_cell(row, column, places[column], found, width) for column in found.columns)]
        for row in found.rows
    ]
    caption = f"{found.example.config['task']}: {' and '.join(_title(found, metric) for metric in found.metrics)}"
    return Table(caption, head, rows, left=len(found.by), notes=list(notes(found)))


def _title(found: Comparison, column: str) -> str:
    if column == "FLOP":
        return f"FLOP/{found.example.per}"
    shown = column.replace("test/", "test ", 1) if column.startswith("test/") else column
    unit = found.example.unit if column in found.metrics and len(found.metrics) == 1 else ""
    return f"{shown} ({unit})" if unit else shown


def _names(row: Row) -> list[str]:
    first, *others = row.values
    stamp = " (saw the future)" if row.leak else ""
    return [f"{'dense twin of ' if row.twin else ''}{first}{stamp}", *others]


def _seeds(row: Row) -> str:
    return str(row.count) if row.count == row.asked else f"{row.count} of {row.asked}"


def _cell(row: Row, column: str, places: int, found: Comparison, width: int) -> str:
    shown = cell(row.cells[column], column, places)
    if column in found.metrics and width:
        return f"{shown} {row.mark:{width}}"
    return f"{shown} {'◆' if row.front else ' '}" if column == "FLOP" and front_tells(found) else shown


def cell(value: Interval | None, column: str, places: int) -> str:
    """A number as people read it, with its interval where there is one; - where no run has it."""
    if value is None:
        return "-"
    if math.isnan(value.mean):
        return "nan"
    if column in COST:
        return f"{value.mean:.{0 if value.mean >= 10 else 1}f} s" if column == "seconds" else count(value.mean)
    if column == "dropped":
        return f"{value.mean:.1%}"
    mean = f"{value.mean:.{places}f}"
    return mean if math.isnan(value.half) else f"{mean} ± {value.half:.{places}f}"


def _places(column: str, found: Comparison) -> int:
    """Decimals at which the narrowest interval of a column, or a hundredth of its smallest number, has a digit."""
    cells = [value for row in found.rows if (value := row.cells[column]) and math.isfinite(value.mean)]
    least = 1 if column in CRITERIA or any(abs(value.mean) >= 1000 for value in cells) else 3
    sizes = [value.half for value in cells if value.half > 0] or [
        abs(value.mean) / 100 for value in cells if value.mean
    ]
    return min(6, max(least, -math.floor(math.log10(min(sizes))))) if sizes else least


# -- numbers in full --------------------------------------------------------------------------------


def flat(found: Comparison) -> list[list[Any]]:
    """Head and rows for CSV: every number as it is, None for none."""
    widths = [f"{column}{what}" for column in found.columns for what in ("", " sd", " ± 95 %")]
    head = [*found.by, "twin", "saw the future", "n", "begun", "mark", "against", "verdict", "p (Holm)", *widths]
    return [head, *(_flat_row(found, row) for row in found.rows)]


def _flat_row(found: Comparison, row: Row) -> list[Any]:
    verdict = row.verdict
    judged = [row.mark, found.baseline, WORDS[verdict.kind], verdict.p] if verdict else [row.mark, None, None, None]
    numbers = [n for cell in row.cells.values() for n in ((cell.mean, cell.sd, cell.half) if cell else (None,) * 3)]
    return [*_values(found, row), row.twin, row.leak, row.count, row.asked, *judged, *numbers]


def _values(found: Comparison, row: Row) -> list[Any]:
    """Of the keys that make the rows, as they were configured; None where the row lacks one."""
    first = (row.finished + row.unfinished)[0].config
    return [
        None if key not in first else first[key] if text(first[key]) == shown else shown
        for key, shown in zip(found.by, row.values, strict=True)
    ]


def data(found: Comparison) -> list[dict[str, Any]]:
    """A dictionary a row for JSON."""
    return [
        {
            **dict(zip(found.by, _values(found, row), strict=True)),
            "name": row.name,
            "n": row.count,
            "begun": row.asked,
            "twin": row.twin,
            "leak": row.leak,
            "best": row.best,
            "pareto": row.front,
            "verdict": _verdict(found, row),
            "differs": {key: of_row[row.name] for key, of_row in found.differs.items() if row.name in of_row},
            "mixes": row.mixes,
            "runs": [record.path for record in row.finished],
            "unfinished": {record.path: record.status for record in row.unfinished},
        }
        | {
            column: {"mean": cell.mean, "sd": cell.sd, "half_width_95": cell.half} if cell else None
            for column, cell in row.cells.items()
        }
        for row in found.rows
    ]


def _verdict(found: Comparison, row: Row) -> dict[str, Any] | None:
    if row.verdict is None:
        return None
    said: dict[str, Any] = {"against": found.baseline, "is": WORDS[row.verdict.kind]}
    test = row.verdict.difference
    if test is None:
        return said
    return said | {
        "test": f"paired t, {test.seeds} shared seeds" if test.seeds else "Welch's t, unpaired",
        "difference": test.mean,
        "half_width_95": test.half,
        "p": test.p,
        "p_holm": row.verdict.p,
        "seeds_that_would_decide": row.verdict.needed,
    }
