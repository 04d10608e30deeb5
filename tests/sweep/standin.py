"""A worker whose runs are not trained: python -m tests.sweep.standin FOLDER WHAT [SECONDS]

A run takes STEPS steps of SECONDS, each kept in a file, and its value is a function of its trial and seed alone.
WHAT is ``steps``, or how the runs of trial 1 go wrong: ``segfault``, ``abort``, ``exit``, ``raise``, ``full``, ``nan``, ``flood``.
"""

from __future__ import annotations

import ctypes
import errno
import os
import sys
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path

from moecli.record.folder import write_whole
from moecli.sweep.folder import Claim, Record, Sweep
from moecli.sweep.grammar import parse
from moecli.sweep.plan import Plan, make
from moecli.sweep.worker import main

STEPS = 5


@cache
def planned(words: tuple[str, ...], sampler: str, trials: int | None) -> Plan:
    plan = make(parse(words), sampler, trials)
    plan.metric = "valid/r2"
    return plan


def swept(root: Path, *words: str, name: str = "s", sampler: str = "grid", trials: int | None = None) -> Sweep:
    """A sweep folder for stand-ins."""
    return Sweep.create(root, name, planned(words, sampler, trials))


def value(job) -> float:
    return round(1 / (1 + job.trial) + job.seed / 1000, 6)


def step(claimed: Claim, sweep: Sweep, seconds: float) -> bool:
    """One more step of the run; False once it has all."""
    file = sweep.path / "runs" / f"{claimed.job.id}.steps"
    done = int(file.read_text()) if file.exists() else 0
    with open(sweep.path / "logs" / "steps.log", "a") as log:
        log.write(f"{claimed.job.id} {done} {os.getpid()}\n")
    if done == STEPS:
        return False
    time.sleep(seconds)
    write_whole(file, str(done + 1).encode())
    return True


def segfault() -> None:
    ctypes.string_at(0)


def full() -> None:
    raise OSError(errno.ENOSPC, "No space left on device", "runs/x")


def flood() -> None:
    for _ in range(300):
        os.write(1, b"\xff\x00 h\xc3\xa9 " * 2000)


WRONG = {"segfault": segfault, "abort": os.abort, "exit": lambda: os._exit(3), "full": full, "flood": flood}


def trainer(what: str, seconds: float) -> Callable[[Sweep], Callable[[Claim], Record]]:
    def train(sweep: Sweep, claimed: Claim) -> Record:
        if claimed.job.trial == 1 and what in WRONG:
            WRONG[what]()
        while step(claimed, sweep, seconds):
            pass
        return {"status": "finished", "value": value(claimed.job), "metric": "valid/r2", "seconds": 0.0}

    return lambda sweep: lambda claimed: train(sweep, claimed)


if __name__ == "__main__":
    folder, what, seconds = Path(sys.argv[1]), sys.argv[2], float(sys.argv[3])
    sys.exit(main(folder, trainer(what, seconds), child=True))
