"""One run of a sweep, from its claim to what is recorded of it."""

from __future__ import annotations

import errno
import math
import shlex
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from moecli.errors import ConflictError, EnvironmentFailure, Interrupted, MoeError, UsageError
from moecli.record.folder import Run
from moecli.run import Built, Place, resume_in, train_built
from moecli.sweep.fit import assembler
from moecli.sweep.folder import Claim, Record, Sweep
from moecli.sweep.plan import Job
from moecli.sweep.together import Ready, train_together
from moecli.sweep.worker import finish, robbed

DISK = (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS, errno.EFBIG)


@dataclass
class Trainer:
    """Trains one claim after another, or several as one; what they share is read once."""

    sweep: Sweep
    assemble: Callable[..., Any] = field(default_factory=assembler)

    def __call__(self, claimed: Claim) -> Record:
        """How the run ended.  Where more can train as one with it, they do, and end here too.

        Raises Interrupted where a signal asked to stop, and what the machine is to blame for: EnvironmentFailure
        and OSError of a full or failing disk.
        """
        claims = self.sweep.claim_alike(claimed)
        if len(claims) > 1:
            return self._together(claims)
        pruning = Pruning(self.sweep, claimed)
        try:
            return _finished(self._run(claimed, pruning), claimed)
        except Interrupted:
            if pruning.at is None:
                raise
            return pruning.record()
        except (Exception, SystemExit) as error:
            return self._failed(error, claimed)

    def _together(self, claims: list[Claim]) -> Record:
        """How the first of several ended; the others are recorded, or free again."""
        first, *left = claims
        for other in left:
            other.lease.beat(robbed)
        try:
            found = self._trained(claims)
            while left:
                finish(self.sweep, left[0], self._record(found[left[0].job], left[0]))
                left.pop(0)
        finally:
            for other in left:
                other.lease.free()
        return self._record(found[first.job], first)

    def _trained(self, claims: list[Claim]) -> dict[Job, Run | BaseException]:
        """What became of each."""
        ready, found = dict[Job, Ready](), dict[Job, Run | BaseException]()
        for claimed in claims:
            try:
                ready[claimed.job] = Ready(self._assembled(claimed), self._place(claimed))
            except Interrupted:
                raise
            except (Exception, SystemExit) as error:
                found[claimed.job] = error
        runs = train_together(list(ready.values())) if ready else []
        return found | dict(zip(ready, runs, strict=True))

    def _record(self, found: Run | BaseException, claimed: Claim) -> Record:
        if isinstance(found, Run):
            return _finished(found, claimed)
        return self._failed(found, claimed)

    def _run(self, claimed: Claim, pruning: Pruning) -> Run:
        told = pruning.told if self.sweep.plan.sampler == "tpe" else None
        place = replace(self._place(claimed), told=told)
        before = self.sweep.run_of(claimed.job)
        if before is not None:
            return resume_in(before, place)
        return train_built(self._assembled(claimed), place)

    def _assembled(self, claimed: Claim) -> Built:
        return self.assemble(self.sweep.plan.composed(claimed.point, claimed.job.seed))

    def _place(self, claimed: Claim) -> Place:
        words = self.sweep.plan.train_words(claimed.point, claimed.job.seed)
        command = shlex.join(["moe", "train", *words])
        return Place(self.sweep.path / "runs", claimed.job.id, command=command, pictures=False)

    def _failed(self, error: BaseException, claimed: Claim) -> Record:
        """What is recorded of an error; one of the machine, or of a wish to stop, is raised."""
        wished = isinstance(error, Interrupted) or not isinstance(error, Exception | SystemExit)
        if wished or self._is_of_machine(error, claimed):
            raise error
        return _failed(error)

    def _is_of_machine(self, error: BaseException, claimed: Claim) -> bool:
        """A disk that takes no more: the next run would meet it too.  Before a run began it is of its own demands."""
        begun = isinstance(error, EnvironmentFailure) and self.sweep.run_of(claimed.job) is not None
        return begun or isinstance(error, ConflictError) or (isinstance(error, OSError) and error.errno in DISK)


def _finished(run: Run, claimed: Claim) -> Record:
    metric = f"valid/{run.info['headline']}"
    value = run.summary["metrics"].get(metric)
    told = {"run": run.path.name, "metric": metric, "seconds": run.info["seconds"]}
    if value is None or not math.isfinite(value):
        return {"status": "failed", "error": f"its {metric.replace('/', ' ')} is not a number", "code": 6, **told}
    return {"status": "finished", "value": value, **told}


def _failed(error: BaseException) -> Record:
    said = str(error) if isinstance(error, MoeError) else f"{type(error).__name__}: {error}"
    status = "refused" if isinstance(error, UsageError) else "failed"
    return {"status": status, "error": " ".join(said.split()), "code": getattr(error, "code", 1)}


class Pruning:
    """Reports a search's first seed at each evaluation, and ends it where trials before it were better there."""

    def __init__(self, sweep: Sweep, claimed: Claim):
        self.sweep, self.claimed = sweep, claimed
        self.at: tuple[int, float] | None = None

    def told(self, step: int, metrics: Mapping[str, float]) -> None:
        from moecli.sweep.search import Search

        plan, job = self.sweep.plan, self.claimed.job
        value = metrics.get((plan.metric or "").removeprefix("valid/"), math.nan)
        if job.seed != plan.seeds[0] or not math.isfinite(value):
            return
        with Search.of(self.sweep) as search:
            if search.report(job.trial, step, value):
                self.at = step, value
                raise Interrupted(f"pruned at step {step}")

    def record(self) -> Record:
        step, value = self.at or (0, math.nan)
        return {"status": "pruned", "value": value, "step": step, "metric": self.sweep.plan.metric}
