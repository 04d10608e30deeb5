"""One run of a sweep, from its claim to what is recorded of it."""

from __future__ import annotations

import errno
import math
import shlex
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from moecli.errors import ConflictError, EnvironmentFailure, Interrupted, MoeError, UsageError
from moecli.record.folder import Run
from moecli.run import Place, resume_in, train_built
from moecli.sweep.fit import assembler
from moecli.sweep.folder import Claim, Record, Sweep

DISK = (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS, errno.EFBIG)


@dataclass
class Trainer:
    """Trains one claim after another; what they share is read once."""

    sweep: Sweep
    assemble: Callable[..., Any] = field(default_factory=assembler)

    def __call__(self, claimed: Claim) -> Record:
        """How the run ended.

        Raises Interrupted where a signal asked to stop, and what the machine is to blame for: EnvironmentFailure
        and OSError of a full or failing disk.
        """
        pruning = Pruning(self.sweep, claimed)
        try:
            return _finished(self._run(claimed, pruning), claimed)
        except Interrupted:
            if pruning.at is None:
                raise
            return pruning.record()
        except (Exception, SystemExit) as error:
            if self._is_of_machine(error, claimed):
                raise
            return _failed(error)

    def _run(self, claimed: Claim, pruning: Pruning) -> Run:
        words = self.sweep.plan.train_words(claimed.point, claimed.job.seed)
        place = Place(
            self.sweep.path / "runs",
            claimed.job.id,
            command=shlex.join(["moe", "train", *words]),
            pictures=False,
            told=pruning.told if self.sweep.plan.sampler == "tpe" else None,
        )
        before = self.sweep.run_of(claimed.job)
        if before is not None:
            return resume_in(before, place)
        return train_built(self.assemble(self.sweep.plan.composed(claimed.point, claimed.job.seed)), place)

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
