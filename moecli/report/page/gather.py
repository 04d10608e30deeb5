"""Run folders -> everything that a report says, as values: nothing is written, drawn or trained."""

from __future__ import annotations

import shlex
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from moecli.report.page.runs import RunPart, read_all
from moecli.report.page.study import Study, many, study
from moecli.report.page.values import Cell, Table


@dataclass(frozen=True)
class Content:
    """A whole report."""

    title: str
    studies: Sequence[Study]
    environment: Table
    broken: Table | None
    commands: Sequence[str]  # that make it all again


def gather(paths: Iterable[Path], by: str = "router") -> Content:
    """Read the runs at or below ``paths``; ``by`` is the key whose values make the rows of the comparison.

    Raises UsageError where no run has the key.
    """
    parts, broken = read_all(paths)
    groups: dict[tuple[str, str], list[RunPart]] = defaultdict(list)
    for part in parts:
        groups[part.task, part.fingerprint].append(part)
    studies = [study(f"study-{number}", group, by) for number, group in enumerate(groups.values(), 1)]
    return Content(_title(studies), studies, _environment(parts), _broken(broken), _commands(parts, by))


def _title(studies: Sequence[Study]) -> str:
    """The task and its rows; of several tasks their names."""
    if len(studies) == 1:
        return f"{studies[0].title}: {', '.join(studies[0].names)}"
    return ", ".join(one.title for one in studies) or "No run could be read"


def _commands(parts: Sequence[RunPart], by: str) -> list[str]:
    """Every training or sweep, each once, in the order of their start, and what puts their runs side by side."""
    names = " ".join(dict.fromkeys(f"runs/{shlex.quote(part.group)}/*" for part in parts))
    compared = f"moe compare {names} --by {shlex.quote(by)}"
    return [*dict.fromkeys(map(_command, parts)), compared] if parts else []


def _command(part: RunPart) -> str:
    """What the user typed; a run that Python started is repeated from its configuration."""
    again = f"moe train --config runs/{shlex.quote(part.label)}/config.yaml"
    return part.command if part.command.startswith("moe ") else again


def _environment(parts: Sequence[RunPart]) -> Table:
    """Each machine and set of versions, and how many runs were made there."""
    found = Counter(part.machine for part in parts)
    lines = [[Cell(many(count, "run")), *map(Cell, machine)] for machine, count in found.items()]
    return Table("What the runs were made with", ["runs", "versions", "git revision", "device", "arithmetic"], lines)


def _broken(reasons: Sequence[tuple[str, str]]) -> Table | None:
    if not reasons:
        return None
    lines = [[Cell(label), Cell(reason)] for label, reason in reasons]
    return Table("Runs that could not be read, and are nowhere else in this report", ["run", "reason"], lines)
