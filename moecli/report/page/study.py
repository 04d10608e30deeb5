"""The runs of one task and its data: sentences, tables and curves that put them side by side."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from moecli.report.page import rows
from moecli.report.page.pictures import pictures
from moecli.report.page.rows import Rows
from moecli.report.page.runs import RunPart, finite
from moecli.report.page.values import Cell, Chart, Curve, Level, Table
from moecli.report.records import text
from moecli.report.terminal import number

TOLD_APART = ("seed", "device", "threads")  # keys that make no other setting
WIDE = 30  # times the smallest of positive values from which an axis is logarithmic


@dataclass(frozen=True)
class Setting:
    """What runs were told that differ in their seed alone."""

    name: str
    config: Mapping[str, Any]


@dataclass(frozen=True)
class Study:
    """Everything that a report says of one task's runs."""

    anchor: str
    title: str
    names: Sequence[str]  # of its rows, best first
    lead: Sequence[str]  # what was run and what came out, in sentences
    rows: Rows | None
    table: Table
    charts: Sequence[Chart]
    runs: Sequence[RunPart]
    shown: str  # anchor of the run that is shown at once
    settings: Sequence[Setting]
    differing: Table | None


def study(anchor: str, parts: Sequence[RunPart], by: str) -> Study:
    """Runs on the same data; ``by`` is the key whose values make the rows.  Raises UsageError where no run has it."""
    compared = rows.rows([part.record for part in parts], by, _chance(parts, "test"))
    known = compared.row if compared else {}
    parts = [replace(part, row=known.get(str(part.path), rows.name_of(part.record, by))) for part in parts]
    order = list(compared.order) if compared else []
    names = [*order, *sorted({part.row for part in parts} - set(order))]
    ordered = sorted(parts, key=lambda part: (names.index(part.row), part.seed, part.label))
    settings = _settings(parts)
    return Study(
        anchor,
        parts[0].task,
        names,
        _lead(ordered, compared),
        compared,
        _runs_table(parts),
        _charts(ordered, names),
        _with_pictures(ordered),
        next((part.anchor for part in ordered if part.layers), ordered[0].anchor),
        settings,
        _differing(settings),
    )


def many(count: int, noun: str) -> str:
    return f"{count} {noun}{'' if count == 1 else 's'}"


def _with_pictures(parts: Sequence[RunPart]) -> list[RunPart]:
    """The pictures of each row's first run: those of the others look alike, and a page stays small."""
    first = {part.row: part.anchor for part in reversed(parts)}
    return [
        replace(part, pictures=list(pictures(part.path))) if first[part.row] == part.anchor else part for part in parts
    ]


def _chance(parts: Sequence[RunPart], split: str) -> float | None:
    """Of the headline: the same for all finished runs on the same data."""
    return next((part.chance.get(f"{split}/{part.headline}") for part in parts if part.finished), None)


# -- sentences --------------------------------------------------------------------------------


def _lead(parts: Sequence[RunPart], compared: Rows | None) -> list[str]:
    """What was run, what came out, what the experts know, and what to beware of."""
    unfinished = sum(not part.finished for part in parts)
    rest = f", {unfinished} not finished" if unfinished else ""
    seeds = many(len({part.seed for part in parts}), "seed")
    lines = [f"{many(len(parts), 'run')} of {parts[0].task} over {seeds}{rest}."]
    return [*lines, *_outcome(parts, compared), _warned(parts)] if compared else [*lines, _warned(parts)]


def _outcome(parts: Sequence[RunPart], compared: Rows) -> list[str]:
    chance = _chance(parts, "test")
    said = [compared.result, compared.other, "" if chance is None else f"chance {number(chance)}"]
    best = "Best test" if len(compared.order) > 1 else "Test"
    known = next((f"What the experts of {part.title} know of {part.known}." for part in parts if part.known), "")
    return [f"{best} {parts[0].headline}: {' · '.join(filter(None, said))}", *([known] if known else [])]


def _warned(parts: Sequence[RunPart]) -> str:
    """Where there is something to beware of."""
    titles = [part.title for part in parts if part.warnings]
    if not titles:
        return "Neither the trainings nor moe doctor warn of anything."
    more = f" and {many(len(titles) - 3, 'more run')}" if len(titles) > 3 else ""
    return f"There are warnings of {'; '.join(titles[:3])}{more}: they stand with what the run's experts do."


# -- runs -------------------------------------------------------------------------------------


def _runs_table(parts: Sequence[RunPart]) -> Table:
    head = ["run", "row", "seed", "status", *rows.numbers(parts[0].record), "warnings"]
    numeric = frozenset({2, *range(4, len(head))})
    return Table("Every run, in the order of its start", head, list(map(_run, parts)), numeric)


def _run(part: RunPart) -> list[Cell]:
    numbers = rows.numbers(part.record).values()
    return [
        Cell(part.label, href=part.anchor),
        Cell(part.row),
        Cell(str(part.seed), part.seed),
        Cell(part.status),
        *(Cell(number(value), value) if finite(value) else Cell("–") for value in numbers),
        Cell(str(len(part.warnings)), len(part.warnings)),
    ]


def _charts(parts: Sequence[RunPart], names: Sequence[str]) -> list[Chart]:
    """The validation metric beside its chance level, and the training loss."""
    metric, chance = parts[0].headline, _chance(parts, "valid")
    levels = [] if chance is None else [Level(f"chance {number(chance)}", chance)]
    charts = [
        _chart(parts, names, ("valid", metric), f"Validation {metric}", levels),
        _chart(parts, names, ("train", "loss"), "Training loss", []),
    ]
    return [chart for chart in charts if chart.curves]


def _chart(
    parts: Sequence[RunPart], names: Sequence[str], metric: tuple[str, str], title: str, levels: Sequence[Level]
) -> Chart:
    """A curve for each run that has the metric, logarithmic where positive values span much."""
    found = [part for part in parts if metric in part.metrics]
    curves = [Curve(part.title, *part.metrics[metric], names.index(part.row)) for part in found]
    values = [value for curve in curves for value in curve.y]
    unit = parts[0].units.get(metric[1], "")
    log = bool(values) and min(values) > 0 and max(values) > WIDE * min(values)
    return Chart(title, f"{metric[1]} ({unit})" if unit else metric[1], curves, names, levels, log)


# -- settings ---------------------------------------------------------------------------------


def _settings(parts: Sequence[RunPart]) -> list[Setting]:
    """The distinct configurations; those of one row are told apart by their first run's id."""
    found: dict[str, RunPart] = {}
    for part in parts:
        found.setdefault(json.dumps(_told(part), sort_keys=True), part)
    count: dict[str, int] = defaultdict(int)
    for part in found.values():
        count[part.row] += 1
    return [
        Setting(part.row if count[part.row] == 1 else f"{part.row}, {part.path.name}", _told(part))
        for part in found.values()
    ]


def _told(part: RunPart) -> dict[str, Any]:
    return {key: value for key, value in part.config.items() if key not in TOLD_APART}


def _differing(settings: Sequence[Setting]) -> Table | None:
    """A row for each key in which settings differ; None where there is one setting."""
    keys = dict.fromkeys(key for setting in settings for key in setting.config)
    values = {key: [_value(setting.config, key) for setting in settings] for key in keys}
    lines = [[Cell(key), *map(Cell, row)] for key, row in values.items() if len(set(row)) > 1]
    if not lines:
        return None
    head = ["key", *(setting.name for setting in settings)]
    return Table("Only keys that differ; – is a key that the setting does not have", head, lines)


def _value(config: Mapping[str, Any], key: str) -> str:
    return text(config[key]) if key in config else "–"
