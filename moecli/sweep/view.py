"""What a sweep shows: a live table in a terminal, a line for each run that ends elsewhere; and its state at any time."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from typing import Any, TextIO, cast

from rich.console import Console
from rich.live import Live
from rich.text import Text

from moecli.analysis.statistics import interval
from moecli.config import flat
from moecli.record.view import BAR, Watched
from moecli.report.terminal import columns, number, visible
from moecli.sweep.folder import Record, Sweep
from moecli.sweep.plan import Job, Plan, Point

REFRESH = 0.3  # seconds between two pictures of the live table
SHOWN = 12  # trials in the live table
MOST_TOLD = 20  # refusals that are told one by one


def measured(values: Sequence[float]) -> str:
    """``0.971 ± 0.004``: mean and half width of the 95 % interval over seeds."""
    if not values:
        return ""
    found = interval(list(values))
    return number(found.mean) + (f" ± {number(found.half)}" if len(values) > 1 else "")


def rows(sweep: Sweep) -> list[list[str]]:
    """A row for each trial, best first, those without a value in their order."""
    ranked = [point for point, _ in sweep.ranked()]
    rest = [point for point in sweep.points() if point not in ranked]
    return [_row(sweep, point) for point in [*ranked, *rest]]


def _row(sweep: Sweep, point: Point) -> list[str]:
    records = [sweep.done().get(Job(point.number, seed).id) for seed in sweep.plan.seeds]
    done = sum(record is not None for record in records)
    seeds = "-" if point.refused else f"{done}/{len(records)}"
    return [f"{point.number:04d}", point.name, seeds, measured(sweep.values(point)), _state(point, records)]


def _state(point: Point, records: Sequence[Record | None]) -> str:
    """What is unusual about a trial."""
    if point.refused:
        return "refused"
    found = [record["status"] for record in records if record]
    return next((status for status in ("failed", "refused", "pruned") if status in found), "")


def table(sweep: Sweep, most: int | None = None) -> list[str]:
    found = rows(sweep)
    head = ["trial", "what", "seeds", (sweep.plan.metric or "value").replace("/", " "), ""]
    more = [f" … {len(found) - most} more"] if most is not None and len(found) > most else []
    return [*columns([head, *found[:most]], left=(0, 1, 4)), *more]


def progress(sweep: Sweep) -> str:
    """``12 of 64 runs finished, 2 running, 1 failed``."""
    counts = sweep.counts()
    others = ("running", "waiting", "failed", "refused", "pruned", "skipped")
    return f"{counts['finished']} of {counts['total']} runs finished" + "".join(
        f", {counts[name]} {name}" for name in others if counts[name]
    )


def refusals(points: Sequence[Point]) -> list[str]:
    """A line for each trial that cannot be."""
    refused = [point for point in points if point.refused]
    lines = [f" refused {point.number:04d} {point.name}: {point.refused}" for point in refused[:MOST_TOLD]]
    more = len(refused) - MOST_TOLD
    return [*lines, *([f" … and {more} more refused: moe sweep --status FOLDER --json has all"] if more > 0 else [])]


def failures(sweep: Sweep) -> list[str]:
    """A line for each run that did not finish, with the reason."""
    found = [(job, r) for job, r in sorted(sweep.done().items()) if r["status"] in ("failed", "refused")]
    lines = [f" {record['status']} {job}: {record['error']}" for job, record in found[:MOST_TOLD]]
    return [*lines, *([f" … and {len(found) - MOST_TOLD} more"] if len(found) > MOST_TOLD else [])]


def ending(sweep: Sweep) -> list[str]:
    """The end of a sweep: the table, what failed, the best trial, and what to do next."""
    best = sweep.ranked()[:1]
    lines = ["", *table(sweep), "", *failures(sweep)]
    for point, _ in best:
        values, asked = sweep.values(point), len(sweep.plan.seeds)
        of_asked = "" if len(values) == asked else f"{len(values)} of "
        seeds = f" over {of_asked}{asked} seeds" if asked > 1 else ""
        name = (sweep.plan.metric or "").replace("/", " ")
        lines.append(f" best  {point.name}: {name} {measured(values)}{seeds}")
    if not best and sweep.plan.metric is not None:
        lines.append(" best  none: no trial has a value")
    return [*lines, f" {progress(sweep)} · {sweep.path}", "", f" next   {_next(sweep)}"]


def _next(sweep: Sweep) -> str:
    state = sweep.state
    if state in ("stopped", "out of time"):
        why = "the budget is spent" if state == "out of time" else "it was stopped"
        if (sweep.path / "sweep.sbatch").exists():  # whose array may be waiting: the folder cannot tell
            return f"moe sweep --resume {sweep.path} --engine slurm   ({why}, unless squeue still has its array)"
        return f"moe sweep --resume {sweep.path}   ({why})"
    return f"moe compare {sweep.path}{_by(sweep.plan)}"


def _by(plan: Plan) -> str:
    """The option that makes a row of each trial; a key that no run.json has, such as experiment, is left out."""
    if not plan.axes:
        return " --by seed"
    known = {key for base in plan.bases if base.config for key in flat(base.config)}
    keys = [axis.key for axis in plan.axes if axis.key in known]
    return f" --by {','.join(keys)}" if keys else ""


def as_dict(sweep: Sweep) -> dict[str, Any]:
    """What ``--json`` prints."""
    done, best = sweep.done(), sweep.ranked()[:1]
    return {
        "folder": str(sweep.path),
        "state": sweep.state,
        "sampler": sweep.plan.sampler,
        "metric": sweep.plan.metric,
        "higher_is_better": sweep.plan.higher_is_better,
        "seeds": sweep.plan.seeds,
        "counts": sweep.counts(),
        "best": {"trial": best[0][0].number, "words": best[0][0].words, "value": best[0][1]} if best else None,
        "trials": [
            {
                "trial": point.number,
                "words": point.words,
                "refused": point.refused,
                "value": sweep.value(point),
                "runs": {str(s): done[j] for s in sweep.plan.seeds if (j := Job(point.number, s).id) in done},
            }
            for point in sweep.points()
        ],
    }


class Quiet:
    """Shows nothing."""

    def __init__(self, sweep: Sweep):
        self.sweep = sweep

    def look(self) -> None:
        pass

    def close(self) -> None:
        pass


class Lines(Quiet):
    """A line for each run that ends, for pipes and log files."""

    def __init__(self, sweep: Sweep, console: Console):
        super().__init__(sweep)
        self.console, self.told = console, set(sweep.done())
        asked = sweep.plan.trials if sweep.plan.sampler == "tpe" else sum(not p.refused for p in sweep.points())
        self.total = asked * len(sweep.plan.seeds)

    def look(self) -> None:
        names = {point.number: point.name for point in self.sweep.points()}
        for job, record in sorted(self.sweep.done().items()):
            if job not in self.told:
                self.told.add(job)
                self.console.print(Text(visible(self._line(names[record["trial"]], record))), soft_wrap=True)

    def _line(self, name: str, record: Record) -> str:
        total = self.total
        what = f" {len(self.told):>{len(str(total))}}/{total}  {name} seed={record['seed']}  {record['status']}"
        if record["status"] == "finished":
            metric = record["metric"].replace("/", " ")
            return f"{what}  {metric} {number(record['value'])}  {record['seconds']:.0f} s"
        return f"{what}  {record.get('error', '')}".rstrip()


class Table(Quiet):
    """Progress and the best trials, drawn in place."""

    def __init__(self, sweep: Sweep, console: Console):
        super().__init__(sweep)
        self.live = Live(console=console, auto_refresh=False, transient=True)
        self.live.start()
        self.drawn, self.started, self.before = 0.0, time.monotonic(), len(sweep.done())

    def look(self) -> None:
        if time.monotonic() - self.drawn > REFRESH:
            self.drawn = time.monotonic()
            self.live.update(self.picture(), refresh=True)

    def picture(self) -> Text:
        counts = self.sweep.counts()
        ended = counts["total"] - counts["waiting"] - counts["running"]
        bar = round(BAR * ended / max(counts["total"], 1))
        text = Text(" ").append("━" * bar, "green").append("━" * (BAR - bar), "bright_black")
        text.append(f"  {progress(self.sweep)}   {self._left(counts)}\n")
        return text.append("\n".join(visible(line) for line in table(self.sweep, SHOWN)))

    def _left(self, counts: dict[str, int]) -> str:
        new = len(self.sweep.done()) - self.before
        if not new:
            return ""
        passed = time.monotonic() - self.started
        seconds = round(passed / new * (counts["waiting"] + counts["running"]))
        return f"about {seconds // 60}:{seconds % 60:02d} left"

    def close(self) -> None:
        self.live.stop()


def view(sweep: Sweep, quiet: bool) -> Quiet:
    """The view that fits where standard output goes."""
    if quiet:
        return Quiet(sweep)
    console = Console(highlight=False, file=cast(TextIO, Watched(sys.stdout)))
    return Table(sweep, console) if console.is_terminal else Lines(sweep, console)
