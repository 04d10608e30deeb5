"""Runs side by side: rows of runs that differ in their seed, how sure each number is, and which rows differ.

A comparison is a value; ``compare_table`` says it in rows of text and ``tables`` writes these in six forms.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from moecli.analysis.statistics import LEVEL, Difference, Interval, difference, holm, interval, seeds_needed
from moecli.errors import UsageError
from moecli.report.records import CRITERIA, LAYER, Record

SETS = ("quality", "balance", "specialisation", "cost")
DEFAULT = ("balance CV", "NMI", "total", "active", "FLOP", "seconds")
COST = ("total", "active", "FLOP", "seconds")
SYMBOLS = {"baseline": "", "better": "▲", "worse": "▼", "same": "≈", "untested": ""}
WORDS = {
    "baseline": "baseline",
    "better": "better",
    "worse": "worse",
    "same": "not distinguishable",
    "untested": "not tested",
}


@dataclass(frozen=True)
class Verdict:
    """What a test says of a row's quality beside the baseline's."""

    kind: Literal["baseline", "better", "worse", "same", "untested"]
    difference: Difference | None = None  # row minus baseline
    p: float = math.nan  # after Holm's correction
    needed: float = math.nan  # seeds of each row that would decide; infinity where none do


@dataclass(frozen=True)
class Row:
    """Runs that were told the same but for their seed; a run made twice counts once, by its newest."""

    values: tuple[str, ...]  # of the keys that make the rows
    twin: bool
    finished: tuple[Record, ...]
    unfinished: tuple[Record, ...]  # failed, interrupted or still running
    cells: dict[str, Interval | None]  # column: over the seeds; None where no run has the number
    by_seed: dict[int, float]  # the quality of each seed, NaN where it was not finite
    settings: dict[str, list[str]]  # the values of each key among the finished runs
    best: bool = False
    front: bool = False  # no row is better at the same or fewer FLOPs
    verdict: Verdict | None = None

    @property
    def name(self) -> str:
        return f"{'dense twin of ' if self.twin else ''}{', '.join(self.values)}"

    @property
    def leak(self) -> bool:
        return any(record.leak for record in self.finished)

    @property
    def count(self) -> int:
        """Seeds that finished."""
        return len({record.seed for record in self.finished})

    @property
    def asked(self) -> int:
        """Seeds that were begun."""
        return len({record.seed for record in self.finished + self.unfinished})

    @property
    def mixes(self) -> dict[str, list[str]]:
        """Keys beside the seed in which its runs differ, with their values: more than seeds is averaged then."""
        return {key: values for key, values in self.settings.items() if key != "seed" and len(values) > 1}

    @property
    def quality(self) -> float:
        return math.fsum(self.by_seed.values()) / len(self.by_seed) if self.by_seed else math.nan

    @property
    def half(self) -> float:
        """Half width of the quality's 95 % interval; NaN for a single seed."""
        return interval(list(self.by_seed.values())).half if self.by_seed else math.nan

    @property
    def flops(self) -> float:
        """Per example or token; a row that mixes sizes has their mean; NaN where they were not counted."""
        return math.fsum(record.numbers.get("FLOP", math.nan) for record in self.finished) / len(self.finished)

    @property
    def mark(self) -> str:
        return ("★" if self.best else "") + (SYMBOLS[self.verdict.kind] if self.verdict else "")


@dataclass(frozen=True)
class Comparison:
    """Rows best first; those without a finite quality last."""

    by: tuple[str, ...]
    metrics: tuple[str, ...]  # the headline on test; several where tasks are the rows
    columns: tuple[str, ...]  # beside by and n
    rows: list[Row]
    baseline: str | None = None  # the row that the others are tested against
    named: bool = False  # by the user; else it is the best, picked by looking
    differs: dict[str, dict[str, str]] = field(default_factory=dict)  # {key: {row: its values}} of keys beside ``by``

    @property
    def example(self) -> Record:
        """Any finished run: what all have in common can be read off it."""
        return next(record for row in self.rows for record in row.finished)

    @property
    def on_different_data(self) -> bool:
        """Rows of tasks, say: nothing is best among them."""
        return len({record.fingerprint for row in self.rows for record in row.finished}) > 1


def compare(
    records: Sequence[Record],
    by: str | Sequence[str] = "router",
    baseline: str | None = None,
    sets: Sequence[str] = (),
) -> Comparison:
    """Group runs by configuration keys; a dense twin is a group of its own.

    ``baseline`` names the row that the others are tested against, by default the best.  ``sets`` of ``SETS`` choose
    columns.  Raises UsageError where nothing has finished, no run has a key, or the runs have no common scale.
    """
    if not records:
        raise UsageError("moe compare: there is no run in these folders. List runs with: moe ls runs")
    keys = tuple(dict.fromkeys([by] if isinstance(by, str) else by))
    done = [record for record in records if record.status == "finished"]
    _check(done, keys, sets)
    tasks = {record.config["task"] for record in done}
    metrics = tuple(dict.fromkeys(f"test/{record.headline}" for record in done))
    columns = _columns(done, metrics, sets)
    groups: dict[tuple[Any, ...], list[Record]] = {}
    for record in records:
        if record.config["task"] in tasks:
            values = tuple(record.setting.get(key, "-") for key in keys)
            groups.setdefault((values, record.twin and "model.twin" not in keys), []).append(record)
    rows = _one_of_equal_twins([_row(values, twin, group, columns) for (values, twin), group in groups.items()])
    _check_rows(rows, keys)
    found = Comparison(keys, metrics, columns, sorted(rows, key=_order), differs=_differs(rows, keys))
    if found.on_different_data:
        return replace(found, rows=sorted(rows, key=lambda row: row.name))
    return _judged(found, baseline)


def settings(records: Iterable[Record]) -> dict[str, list[str]]:
    """{key: its values, each once}."""
    found: dict[str, dict[str, None]] = {}
    for record in records:
        for key, value in record.setting.items():
            found.setdefault(key, {})[value] = None
    return {key: list(values) for key, values in found.items()}


def _check(done: Sequence[Record], keys: Sequence[str], sets: Sequence[str]) -> None:
    from moecli.config import nearest

    if unknown := [name for name in sets if name not in SETS]:
        raise UsageError(
            f"--columns {unknown[0]}: no such set.{nearest(unknown[0], SETS)} Choose from: {', '.join(SETS)}"
        )
    if not keys:
        raise UsageError("--by: it names no key. Give some with commas between them: --by router,num_experts")
    if not done:
        raise UsageError(
            "moe compare: none of these runs has finished. Go on with them: moe train --resume RUN, or moe sweep --resume FOLDER"
        )
    for key in keys:
        if not any(key in record.setting for record in done):
            raise UsageError(f"--by {key}: no run has this key.{nearest(key, settings(done))}")


def _check_rows(rows: Sequence[Row], keys: Sequence[str]) -> None:
    """Raises UsageError for runs that have no common scale, unless the rows are of different data on purpose."""
    done = [record for row in rows for record in row.finished]
    tasks = sorted({record.config["task"] for record in done})
    apart = any(key == "task" or key.startswith("task.") for key in keys)
    if len(tasks) > 1 and "task" not in keys:
        raise UsageError(
            f"moe compare: runs of several tasks ({', '.join(tasks)}) have no common scale. Give one task's runs, or "
            f"rows of one task: --by task,{keys[0]}"
        )
    groups = [row.finished for row in rows] if apart else [done]
    if any(len({record.fingerprint for record in group}) > 1 for group in groups):
        raise UsageError(
            f"moe compare: these runs of task={tasks[0]} were made on different data, so they have no common scale. "
            "Give runs on the same data, or make rows of the key of the task that differs: --by task.KEY"
        )


def _columns(done: Sequence[Record], metrics: Sequence[str], sets: Sequence[str]) -> tuple[str, ...]:
    """What is asked for and some run has, in order."""
    known = dict.fromkeys(name for record in done for name in record.numbers)
    found = {
        "quality": [*(n for n in known if n.startswith("test/")), *CRITERIA],
        "balance": LAYER,
        "specialisation": [n for n in known if n.startswith("NMI ")],
        "cost": COST,
    }
    chosen = [name for part in sets for name in found[part]] if sets else [*CRITERIA, *DEFAULT]
    return tuple(dict.fromkeys([*metrics, *(n for n in chosen if n in known or (not sets and n not in CRITERIA))]))


def _row(values: tuple[str, ...], twin: bool, group: Sequence[Record], columns: Sequence[str]) -> Row:
    newest = {frozenset(r.setting.items()): r for r in sorted(group, key=lambda r: r.status == "finished")}
    finished = tuple(record for record in newest.values() if record.status == "finished")
    unfinished = tuple(record for record in newest.values() if record.status != "finished")
    by_seed = _over_seeds(finished, f"test/{finished[0].headline}") if finished else {}
    cells = {column: _interval(_over_seeds(finished, column)) for column in columns}
    return Row(values, twin, finished, unfinished, cells, by_seed, settings(finished))


def _one_of_equal_twins(rows: Sequence[Row]) -> list[Row]:
    """A dense twin has no router, so twins of several routers can be one network, bit by bit: then they are one row."""
    found: dict[Any, Row] = {}
    for row in sorted(rows, key=lambda row: row.name):
        same = frozenset(map(_bits, row.finished)) if row.twin and row.finished else row.name
        if same in found:
            together = zip(found[same].values, row.values, strict=True)
            values = tuple(a if a == b else f"{a} and {b}" for a, b in together)
            found[same] = replace(found[same], values=values)
        else:
            found[same] = row
    return list(found.values())


def _bits(record: Record) -> tuple[Any, ...]:
    """All that came out of a run but the time it took."""
    return record.seed, *sorted((name, value) for name, value in record.numbers.items() if name != "seconds")


def _over_seeds(records: Sequence[Record], column: str) -> dict[int, float]:
    """{seed: the mean over its runs}: a row that mixes settings still has one value a seed."""
    found: dict[int, list[float]] = {}
    for record in records:
        if column in record.numbers:
            found.setdefault(record.seed, []).append(record.numbers[column])
    return {seed: math.fsum(values) / len(values) for seed, values in sorted(found.items())}


def _interval(by_seed: dict[int, float]) -> Interval | None:
    return interval(list(by_seed.values())) if by_seed else None


def _differs(rows: Sequence[Row], by: Sequence[str]) -> dict[str, dict[str, str]]:
    """Keys that two rows have, with different values: what else could make a difference between rows."""
    found: dict[str, dict[str, str]] = {}
    for row in rows:
        for key, values in row.settings.items():
            if key not in (*by, "seed", "model.twin"):
                found.setdefault(key, {})[row.name] = " / ".join(sorted(values))
    return {key: of_row for key, of_row in found.items() if len(set(of_row.values())) > 1}


# -- which rows differ ------------------------------------------------------------------------------


def _sign(row: Row) -> int:
    return 1 if all(record.higher_is_better for record in row.finished) else -1


def _order(row: Row) -> tuple[bool, float, int, str]:
    """Best first, NaN last; of equal ones that with more seeds."""
    lost = math.isnan(row.quality)
    return lost, 0.0 if lost else -_sign(row) * row.quality, -row.count, row.name


def _judged(found: Comparison, baseline: str | None) -> Comparison:
    """Marks: the best rows, the Pareto front, and every row's test against the baseline."""
    contest = _contest(found.rows)
    base = _named(found.rows, baseline) if baseline else (contest[0] if contest else None)
    ties = {row.name for row in contest if row.quality == contest[0].quality}
    front = _front(contest)
    rows = [replace(row, best=row.name in ties and len(contest) > 1, front=row.name in front) for row in found.rows]
    if base is None or len(rows) < 2:
        return replace(found, rows=rows)
    verdicts = _verdicts(rows, base, named=baseline is not None)
    judged = [replace(row, verdict=verdict) for row, verdict in zip(rows, verdicts, strict=True)]
    return replace(found, rows=judged, baseline=base.name, named=baseline is not None)


def _contest(rows: Sequence[Row]) -> list[Row]:
    """Rows that can be best: with a finite quality, and of a router that saw no future, where there is one."""
    finite = [row for row in rows if not math.isnan(row.quality)]
    return [row for row in finite if not row.leak] or finite


def _named(rows: Sequence[Row], name: str) -> Row:
    from moecli.config import nearest

    wanted = [row for row in rows if row.name == name] or [row for row in rows if name == "dense twin" and row.twin]
    if len(wanted) != 1 or not wanted[0].finished:
        names = [row.name for row in rows if row.finished]
        raise UsageError(f"--baseline {name}: no such row.{nearest(name, names)} Choose from: {'; '.join(names)}")
    return wanted[0]


def _front(rows: Sequence[Row]) -> set[str]:
    """Rows to which no other is better at as few FLOPs, nor as good at fewer."""
    found: set[str] = set()
    best = -math.inf
    for flops in sorted({row.flops for row in rows if math.isfinite(row.flops)}):
        there = [row for row in rows if row.flops == flops]
        level = max(_sign(row) * row.quality for row in there)
        if level > best:
            found |= {row.name for row in there if _sign(row) * row.quality == level}
            best = level
    return found


def _verdicts(rows: Sequence[Row], base: Row, named: bool) -> list[Verdict]:
    """A verdict a row.

    A baseline that was named before looking makes a test of each other row.  The best row was found by looking at all
    pairs, so all pairs are the family: else one of five equal rows is called worse too often.
    """
    known = _finite(base)
    tests = [None if row.name == base.name else difference(_finite(row), known) for row in rows]
    testable = sum(test is not None for test in tests)
    family = testable if named else testable * (testable + 1) // 2
    adjusted = holm([test.p if test else math.nan for test in tests], family)
    level = LEVEL / max(family, 1)  # of the strictest test: what seeds are planned with
    return [
        Verdict("baseline") if row.name == base.name else _verdict(test, p, _sign(base), level)
        for row, test, p in zip(rows, tests, adjusted, strict=True)
    ]


def _finite(row: Row) -> dict[int, float]:
    """Nothing for a row with a NaN: without the seeds that failed it would look better than it is."""
    return {} if math.isnan(row.quality) else row.by_seed


def _verdict(test: Difference | None, p: float, sign: int, level: float) -> Verdict:
    if test is None or math.isnan(p):
        return Verdict("untested", test)
    if p >= LEVEL:
        return Verdict("same", test, p, seeds_needed(test, level))
    return Verdict("better" if sign * test.mean > 0 else "worse", test, p)
