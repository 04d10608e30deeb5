"""A worker: python -m moecli.sweep.worker FOLDER [--plugin FOLDER]

It takes one run after another from a sweep's folder, trains it and writes how it ended, until all are done.  It may
be killed at any time; whoever comes later goes on with its run.  Started by a supervisor (``--child``), it ends with it.

Exit codes: 0 nothing is left to do, 5 the machine failed (the disk is full), 143 asked to stop, 1 a bug.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

from moecli.errors import ConflictError, EnvironmentFailure, Interrupted
from moecli.sweep.folder import Claim, Record, Sweep

TICK = 0.2  # seconds between two looks at a folder in which nothing is free
GRACE = 4.0  # seconds in which a worker saves and leaves, when its supervisor is gone
ROBBED = 75  # exit code of a worker that was declared dead while it was stopped


def pull(sweep: Sweep, train: Callable[[Claim], Record]) -> None:
    """Claim and train until every run is done.

    With nothing to claim it waits: whoever works on the rest may yet die.
    """
    while True:
        claimed = sweep.claim()
        if claimed is not None:
            _work(sweep, claimed, train)
        elif sweep.is_complete() or sweep.out_of_time:
            return
        else:
            time.sleep(TICK)


def _work(sweep: Sweep, claimed: Claim, train: Callable[[Claim], Record]) -> None:
    claimed.lease.beat(robbed)
    try:
        record = train(claimed)
    except ConflictError:  # whoever had it before still writes into the run
        claimed.lease.free()
        time.sleep(TICK)
        return
    except BaseException:
        claimed.lease.free()
        raise
    finish(sweep, claimed, record)


def finish(sweep: Sweep, claimed: Claim, record: Record) -> None:
    """Write how a run ended, and who trained it."""
    sweep.finish(claimed, {**record, "worker": f"process {os.getpid()} on {os.uname().nodename}"})


def robbed() -> None:
    """Another has taken our run: whatever we would still write does not belong there."""
    os._exit(ROBBED)


def follow_parent() -> None:
    """End when standard input does, which the supervisor holds open as long as it lives."""
    threading.Thread(target=_follow, daemon=True).start()


def _follow() -> None:
    while os.read(0, 1):
        pass
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(GRACE)
    os._exit(128 + signal.SIGTERM)


def _stop(number: int, frame: object) -> None:
    raise Interrupted("asked to stop", 128 + number)


def main(folder: Path, train: Callable[[Sweep], Callable[[Claim], Record]], child: bool) -> int:
    """``train`` makes the function that trains, once signals are heard."""
    signal.signal(signal.SIGTERM, _stop)
    signal.signal(signal.SIGINT, _stop)
    if child:
        follow_parent()
    sweep = Sweep(folder)
    try:
        pull(sweep, train(sweep))
    except Interrupted as error:
        return error.code
    except (EnvironmentFailure, OSError) as error:
        print(f"moe: error: {error}", file=sys.stderr, flush=True)
        return EnvironmentFailure.code
    return 0


def trainer(sweep: Sweep) -> Callable[[Claim], Record]:
    """What trains; all that it depends on stands in the plan, for a worker elsewhere inherits nothing."""
    if sweep.plan.folder:
        os.chdir(sweep.plan.folder)
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):  # which torch reads as it is imported, now
        os.environ[name] = str(sweep.plan.threads)
    from moecli.sweep.train import Trainer

    return Trainer(sweep)


if __name__ == "__main__":
    from moecli.config import use_plugins

    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--plugin", type=Path, action="append", default=[])
    parser.add_argument("--child", action="store_true")
    words = parser.parse_args()
    use_plugins(words.plugin)
    sys.exit(main(words.folder.absolute(), trainer, words.child))
