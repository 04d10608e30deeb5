"""The measures of a run, or of several, as text and as records for JSON."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from moecli.report.terminal import columns, number

if TYPE_CHECKING:
    import pandas

ALONG = frozenset({"saturation", "switched"})
ELSEWHERE = frozenset({"without_expert"})  # it stands in the table of experts


def lines(frame: pandas.DataFrame) -> list[str]:
    """A table for each layer: value beside chance, its 95 % interval and p."""
    head = ["measure", "label", "value", "chance", "95 % of chance", "p", "range"]
    found = []
    for layer, rows in frame.groupby("layer", sort=False):
        body = [
            [row.measure, _of(row), _value(row), _plain(row.chance), _interval(row), _plain(row.p), row.range]
            for row in _shown(rows)
        ]
        found += ["", f" {layer}", *columns([head, *body], left=(0, 1, 6))]
    return [*found, *_missing(frame)]


def replicate_lines(frame: pandas.DataFrame) -> list[str]:
    """The same of several runs: mean and 95 % interval over them, and in how many the value lies beyond chance."""
    head = ["measure", "label", "mean", "± 95 %", "runs", "chance", "beyond chance"]
    found = []
    for layer, rows in frame.groupby("layer", sort=False):
        body = [
            [*_texts(row), str(row.runs), _plain(row.chance), f"{row.above} of {row.tested}" if row.tested else ""]
            for row in _shown(rows)
        ]
        found += ["", f" {layer}", *columns([head, *body], left=(0, 1))]
    return [*found, *_missing(frame)]


def _texts(row: Any) -> list[str]:
    return [row.measure, _of(row), _plain(row.mean), _plain(row.half_width_95)]


def _shown(rows: pandas.DataFrame) -> list[Any]:
    """What fits a screen: of measures along the training the first, middle and last; the rest is in ``--json``."""
    found = []
    for measure, group in rows.groupby("measure", sort=False):
        of_measure = list(group.itertuples())
        if measure in ALONG:
            places = sorted({0, len(of_measure) // 2, len(of_measure) - 1})
            of_measure = [of_measure[place] for place in places]
        found += of_measure if measure not in ELSEWHERE else []
    return found


def records(frame: pandas.DataFrame) -> dict[str, Any]:
    """{"measures": a record a row, "missing": sentences}."""
    return {"measures": frame.to_dict("records"), "missing": frame.attrs["missing"]}


def _missing(frame: pandas.DataFrame) -> Sequence[str]:
    return (
        ["", *(f" not measured: {sentence}" for sentence in frame.attrs["missing"])] if frame.attrs["missing"] else []
    )


def _of(row: Any) -> str:
    """The label, and of the numbers of another split than the test's which one that is."""
    return " · ".join(part for part in (row.label, row.split if row.split != "test" else "") if part)


def _value(row: Any) -> str:
    return f"{_plain(row.value)} {row.unit}".rstrip()


def _plain(value: float) -> str:
    return "" if math.isnan(value) else number(value)


def _interval(row: Any) -> str:
    return "" if math.isnan(row.chance_low) else f"{number(row.chance_low)} to {number(row.chance_high)}"
