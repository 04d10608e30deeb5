"""The folder of a sweep: its plan, who works on what, what came out, and the runs themselves.

``plan.json`` is written once.  ``trials/NNNN.json`` are the trials of a search, ``leases/`` says who works
(moecli/sweep/lease.py), ``done/JOB.json`` how a run ended, ``runs/JOB/`` has its run folder, ``logs/`` what
workers printed.  Every process of a sweep knows no more than this folder.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path
from statistics import fmean
from typing import Any

from moecli.errors import ArtifactError, EnvironmentFailure
from moecli.record.folder import MOST_JSON, claim, read_regular, to_json, write_whole
from moecli.record.lock import holder
from moecli.sweep.lease import Lease, Leases, Standing, is_gone
from moecli.sweep.plan import Job, Plan, Point, from_dict, point_from, to_dict

MOST_DEATHS = 3  # of a run's workers, since the sweep was last started
FOLDERS = ("leases", "done", "runs", "logs", "trials")
MACHINE = EnvironmentFailure.code  # of a failure that may go away by itself: such a run is tried again
Record = dict[str, Any]


@dataclass(frozen=True)
class Claim:
    """A run that this process now works on."""

    point: Point
    job: Job
    lease: Lease


class Sweep:
    """A sweep folder, read and worked on.  Raises ArtifactError where it is none."""

    def __init__(self, path: Path):
        self.path = path
        self.leases = Leases(path / "leases")
        self._done: dict[str, Record] = {}
        self._points: dict[int, Point] = {}
        file = path / "plan.json"
        if not file.is_file() or any(not (path / folder).is_dir() for folder in FOLDERS):
            raise ArtifactError(f"{path}: no sweep folder. Give the folder that moe sweep printed")
        self.plan = from_dict(_read(file), file)

    @classmethod
    def create(cls, root: Path, name: str, plan: Plan) -> Sweep:
        """A new folder below ``root/name``, claimed as a run's is."""
        path = claim(root.absolute(), name)
        for folder in FOLDERS:
            (path / folder).mkdir()
        write_whole(path / "plan.json", to_json(to_dict(plan)))
        return cls(path)

    # -- what is there ------------------------------------------------------------------------

    def points(self) -> list[Point]:
        """All trials so far; a search adds to them."""
        if self.plan.points:
            return self.plan.points
        for name in os.listdir(self.path / "trials"):
            number = name.partition(".")[0]
            if number and int(number) not in self._points:
                file = self.path / "trials" / name
                self._points[int(number)] = point_from(_read(file), file)
        return [self._points[number] for number in sorted(self._points)]

    def add(self, point: Point) -> None:
        write_whole(self.path / "trials" / f"{point.number:04d}.json", to_json(asdict(point)))

    def done(self) -> dict[str, Record]:
        """{job: how it ended}."""
        for name in os.listdir(self.path / "done"):
            job = name.partition(".")[0]
            if job and job not in self._done:
                self._done[job] = _read(self.path / "done" / name)
        return self._done

    def record(self, job: Job, record: Mapping[str, Any]) -> None:
        write_whole(self.path / "done" / f"{job.id}.json", to_json({"trial": job.trial, "seed": job.seed, **record}))

    def open_jobs(self) -> list[Job]:
        """Runs that are neither done nor refused, in the order in which they begin.

        In a search a trial's first seed goes ahead: where it is pruned or fails the others never begin.
        """
        done = self.done()
        found = [job for job in self.plan.jobs(self.points()) if job.id not in done]
        if self.plan.sampler != "tpe":
            return found
        ahead = {p.number: done.get(Job(p.number, self.plan.seeds[0]).id, {}).get("status") for p in self.points()}
        return [job for job in found if job.seed == self.plan.seeds[0] or ahead[job.trial] == "finished"]

    def is_complete(self) -> bool:
        """Whether every run that was asked for is finished or explained."""
        if self.plan.sampler != "tpe":
            return len(self.done()) >= self._number
        return len(self.points()) >= self.plan.trials and not self.open_jobs()

    @cached_property
    def _number(self) -> int:
        """Of runs that are not refused from the start, where all trials are known."""
        return len(self.plan.jobs(self.plan.points))

    # -- working ------------------------------------------------------------------------------

    @property
    def out_of_time(self) -> bool:
        """Whether the budget is spent: no run begins any more."""
        try:
            return time.time() > float((self.path / "deadline").read_text())
        except (OSError, ValueError):
            return False

    def allow(self, seconds: float | None) -> None:
        """Begin no run later than ``seconds`` from now; None is for ever."""
        (self.path / "deadline").unlink(missing_ok=True)
        if seconds is not None:
            write_whole(self.path / "deadline", str(time.time() + seconds).encode())

    def claim(self) -> Claim | None:
        """The next run for this process, or None: all are done, or others work on them.

        A run whose workers died again and again is recorded as failed.
        """
        if self.out_of_time:
            return None
        if self.plan.sampler == "tpe":
            from moecli.sweep.search import Search

            with Search.of(self) as search:  # asking and taking are one step, else a peer adopts half a trial
                return self._claim() or (self._claim() if search.ask() else None)
        return self._claim()

    def _claim(self) -> Claim | None:
        standing = self.leases.standing()
        return next(filter(None, (self._take(job, standing) for job in self.open_jobs())), None)

    def claim_alike(self, claimed: Claim) -> list[Claim]:
        """A claimed run and those that may train as one with it: free, not begun, as many as ``trainer.stack`` says."""
        most = self.plan.stack(claimed.point)
        if most == 1 or self.run_of(claimed.job) is not None:
            return [claimed]
        points = {p.number: p for p in self.points() if self.plan.alike(p, claimed.point)}
        jobs = [job for job in self.open_jobs() if job.trial in points and self.run_of(job) is None]
        standing = self.leases.standing()
        more = filter(None, (self._take(job, standing) for job in jobs if job != claimed.job))
        return [claimed, *islice(more, most - 1)]

    def _take(self, job: Job, standing: Standing) -> Claim | None:
        """A run for this process, where nobody has it and it has not killed too many."""
        if self.leases.deaths(job.id, standing) >= MOST_DEATHS:
            self._give_up(job, self.leases.cause(job.id, standing))
            return None
        lease = self.leases.take(job.id, standing)
        if lease is not None and (self.path / "done" / f"{job.id}.json").exists():
            self._close(job, lease)  # it was finished between the two looks
            return None
        return None if lease is None else Claim(self._point(job), job, lease)

    def _point(self, job: Job) -> Point:
        return next(point for point in self.points() if point.number == job.trial)

    def _give_up(self, job: Job, cause: str) -> None:
        said = (
            f"its worker died {MOST_DEATHS} times ({cause}). Look into {self.path / 'logs'}, then: moe sweep --resume"
        )
        self.record(job, {"status": "failed", "error": said, "code": MACHINE})

    def finish(self, claimed: Claim, record: Mapping[str, Any]) -> None:
        """Write how the run ended, and let go of it."""
        self.record(claimed.job, record)
        self._close(claimed.job, claimed.lease)

    def _close(self, job: Job, lease: Lease) -> None:
        lease.stop()
        self.leases.forget(job.id, self.leases.standing())

    def reopen(self) -> None:
        """Before going on: what the machine made fail is tried again, and deaths count from here."""
        for job, record in self.done().items():
            if record.get("status") == "failed" and record.get("code") == MACHINE:
                (self.path / "done" / f"{job}.json").unlink(missing_ok=True)
        self._done.clear()
        self.leases.pardon()

    def run_of(self, job: Job) -> Path | None:
        """The job's run folder, the latest where a kill left several."""
        found = sorted(file.parent for file in (self.path / "runs" / job.id).glob("*/run.json"))
        return found[-1] if found else None

    # -- what came out ------------------------------------------------------------------------

    def records(self, point: Point) -> list[Record]:
        """How the runs of a trial ended, of those that did, in the order of the seeds."""
        done = self.done()
        return [done[job] for seed in self.plan.seeds if (job := Job(point.number, seed).id) in done]

    def values(self, point: Point) -> list[float]:
        return [record["value"] for record in self.records(point) if record["status"] == "finished"]

    def value(self, point: Point) -> float | None:
        """The mean over the seeds that have finished, None where none has or one did not."""
        values = self.values(point)
        return fmean(values) if values and len(values) == len(self.records(point)) else None

    def ranked(self) -> list[tuple[Point, float]]:
        """Trials with a value, best first; none where they share no metric."""
        if self.plan.metric is None:
            return []
        found = [(point, value) for point in self.points() if (value := self.value(point)) is not None]
        sign = -1.0 if self.plan.higher_is_better else 1.0
        return sorted(found, key=lambda pair: (sign * pair[1], pair[0].number))

    def counts(self) -> dict[str, int]:
        """How many runs ended how, are being trained, and wait; ``skipped`` are further seeds of pruned trials."""
        points, seeds, searching = self.points(), self.plan.seeds, self.plan.sampler == "tpe"
        found = dict.fromkeys(("finished", "failed", "refused", "pruned", "skipped", "running"), 0)
        for record in self.done().values():
            found[record["status"]] += 1
        found["refused"] += len(seeds) * sum(point.refused is not None for point in points)
        ended = [p for p in points if any(r["status"] != "finished" for r in self.records(p))] if searching else []
        found["skipped"] = sum(len(seeds) - len(self.records(point)) for point in ended)
        found["running"] = sum(not is_gone(who) for who in self.leases.held().values())
        found["total"] = len(seeds) * (self.plan.trials if searching else len(points))
        return {**found, "waiting": found["total"] - sum(v for name, v in found.items() if name != "total")}

    @property
    def state(self) -> str:
        """``complete``, ``running`` (a supervisor or a worker is at it), ``out of time`` or ``stopped``."""
        if self.is_complete():
            return "complete"
        if holder(self.path) or any(not is_gone(who) for who in self.leases.held().values()):
            return "running"
        return "out of time" if self.out_of_time else "stopped"


def _read(file: Path) -> dict[str, Any]:
    try:
        found = json.loads(read_regular(file, MOST_JSON))
    except (OSError, ValueError, RecursionError) as error:
        raise ArtifactError(f"{file}: cannot be read ({error}). The file was changed after it was written") from error
    if not isinstance(found, dict):
        raise ArtifactError(f"{file}: holds no JSON object. The file was changed after it was written")
    return found
