"""Two runs side by side: the settings and versions that differ, and every number of both."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from moecli.errors import ArtifactError
from moecli.record.folder import CHANGED, Run
from moecli.report.compare import COST
from moecli.report.records import Record, record, text
from moecli.report.tables import Table

ABSENT = "-"


@dataclass(frozen=True)
class Diff:
    """Of two runs; a key that one lacks is not in its pair's place but None."""

    a: Record
    b: Record
    settings: dict[str, tuple[str | None, str | None]]  # only those that differ
    made_with: dict[str, tuple[str | None, str | None]]  # versions, git revision, device, threads: the same
    numbers: dict[str, tuple[float | None, float | None]]  # all: metrics, layers' measures, sizes, seconds


def diff(a: Run, b: Run) -> Diff:
    """Raises ArtifactError where one is no run folder or was damaged."""
    return side_by_side(*(_read(run) for run in (a, b)))


def _read(run: Run) -> Record:
    try:
        return record(run)
    except (TypeError, AttributeError, ValueError, OverflowError) as error:
        raise ArtifactError(f"{run.path}: run.json or summary.json is none of ours ({error}). {CHANGED}") from error


def side_by_side(one: Record, other: Record) -> Diff:
    """What differs between two runs, and all their numbers."""
    names = sorted(dict.fromkeys([*one.numbers, *other.numbers]), key=_place)
    return Diff(
        one,
        other,
        _differing(one.config, other.config),
        _differing(one.made_with, other.made_with),
        {name: (one.numbers.get(name), other.numbers.get(name)) for name in names},
    )


def _place(name: str) -> int:
    """Test, validation, what the experts did, cost."""
    return 0 if name.startswith("test/") else 1 if name.startswith("valid/") else 3 if name in COST else 2


def _differing(a: dict[str, Any], b: dict[str, Any]) -> dict[str, tuple[str | None, str | None]]:
    pairs = {key: tuple(text(x[key]) if key in x else None for x in (a, b)) for key in dict.fromkeys([*a, *b])}
    return {key: (left, right) for key, (left, right) in pairs.items() if left != right}


def table(found: Diff) -> Table:
    """Settings that differ, then what they were made with, then the numbers and B - A."""
    words = [
        [name, left or ABSENT, right or ABSENT, ""]
        for pairs in (found.settings, found.made_with)
        for name, (left, right) in pairs.items()
    ]
    numbers = [
        [name, _number(left), _number(right), _change(left, right)] for name, (left, right) in found.numbers.items()
    ]
    head = ["", found.a.id, found.b.id, "second - first"]
    return Table(f"{found.a.path} and {found.b.path}", head, [*words, *numbers], left=1, notes=_notes(found))


def _number(value: float | None) -> str:
    return ABSENT if value is None else f"{value:,.0f}" if abs(value) >= 1e4 else f"{value:.5g}"


def _change(a: float | None, b: float | None) -> str:
    return "" if a is None or b is None or math.isnan(a - b) else _number(b - a) if a != b else "0"


def _notes(found: Diff) -> list[str]:
    notes = [f"first {found.a.path}, second {found.b.path}"]
    if not found.settings:
        notes.append("the settings are the same")
    if found.a.fingerprint != found.b.fingerprint:
        notes.append("they were made on different data, so their numbers have no common scale")
    if unfinished := [f"{r.path} ({r.status})" for r in (found.a, found.b) if r.status != "finished"]:
        notes.append(f"not finished: {', '.join(unfinished)}")
    return [*notes, "two runs tell nothing of luck: for that, moe compare over several seeds of each"]


def flat(found: Diff) -> list[list[Any]]:
    """Head and rows for CSV."""
    rows = [[kind, name, *pair] for kind, pairs in _parts(found).items() for name, pair in pairs.items()]
    return [["kind", "name", found.a.path, found.b.path], *rows]


def data(found: Diff) -> dict[str, Any]:
    """For JSON."""
    return {"runs": [found.a.path, found.b.path], "same_data": found.a.fingerprint == found.b.fingerprint} | {
        kind: {name: list(pair) for name, pair in pairs.items()} for kind, pairs in _parts(found).items()
    }


def _parts(found: Diff) -> dict[str, dict[str, tuple[Any, Any]]]:
    return {"settings": found.settings, "made_with": found.made_with, "numbers": found.numbers}
