"""Experts fitted side by side in processes of their own; none outlives the one that asked for it.

Each worker is a fresh Python that reads one part after the other from a pipe: nothing is forked, so threads
of the parent cannot hang it, and no script needs a main guard.  The pickles on the pipe never reach a disk.
"""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path
from queue import SimpleQueue
from typing import Any

from moecli.errors import EnvironmentFailure, UsageError
from moecli.experts.estimators import Part

LOOK = 0.05  # seconds between two looks whether to stop
HOME = Path(__file__).resolve().parents[2]


class Stopped(Exception):
    """Somebody asked to stop before all experts were fitted."""


class Worker:
    """A process that fits what it is sent.  A session of its own keeps Ctrl-C of a terminal from it."""

    def __init__(self) -> None:
        path = os.pathsep.join(filter(None, [str(HOME), os.environ.get("PYTHONPATH")]))
        self.process = subprocess.Popen(
            [sys.executable, "-c", "from moecli.experts.workers import serve; serve()"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, start_new_session=True,
            env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
        )  # fmt: skip

    def fit(self, part: Part) -> tuple[Any, list[str]]:
        """As ``Part.fit``.  Raises EnvironmentFailure where the process died."""
        assert self.process.stdin is not None and self.process.stdout is not None
        try:
            pickle.dump(part, self.process.stdin)
            self.process.stdin.flush()
            fitted, warned = pickle.load(self.process.stdout)
        except (EOFError, OSError, pickle.UnpicklingError) as error:
            raise EnvironmentFailure(
                f"trainer.jobs: the process that fitted e{part.expert} to {len(part.y)} rows died. "
                "Lower trainer.jobs where memory ran out, or use more experts"
            ) from error
        if isinstance(fitted, UsageError):
            raise fitted
        return fitted, warned

    def end(self) -> None:
        self.process.kill()
        self.process.communicate()


class Pool:
    """At most ``jobs`` workers, started when first needed and ended with the ``with`` block."""

    def __init__(self, jobs: int):
        self.jobs, self.workers = jobs, list[Worker]()
        self.idle: SimpleQueue[Worker] = SimpleQueue()

    def __enter__(self) -> Pool:
        return self

    def __exit__(self, *error: object) -> None:
        self._end()

    def fit(self, parts: Sequence[Part], stopped: Callable[[], object] = bool) -> list[tuple[Any, list[str]]]:
        """Each part's estimator and warnings, in order; one job fits in this process.

        Raises Stopped where ``stopped()`` says so, with no worker left.
        """
        if self.jobs == 1:
            return [_unless(stopped, part.fit) for part in parts]
        while len(self.workers) < min(self.jobs, len(parts)):
            self.workers.append(Worker())
            self.idle.put(self.workers[-1])
        with ThreadPoolExecutor(self.jobs) as threads:
            futures = [threads.submit(_fit, part, self.idle) for part in parts]
            try:
                while wait(futures, LOOK).not_done:
                    _unless(stopped, lambda: None)
            except BaseException:
                threads.shutdown(wait=False, cancel_futures=True)
                self._end()
                raise
            if any(future.exception() for future in futures):
                self._end()  # one may be dead, and the next fit begins with fresh ones
        return [future.result() for future in futures]

    def _end(self) -> None:
        for worker in self.workers:
            worker.end()
        self.workers, self.idle = [], SimpleQueue()


def _fit(part: Part, idle: SimpleQueue[Worker]) -> tuple[Any, list[str]]:
    """The queue is handed over: a fit that ends after its pool must not put a dead worker among the next ones."""
    worker = idle.get()
    try:
        return worker.fit(part)
    finally:
        idle.put(worker)


def _unless(stopped: Callable[[], object], call: Callable[[], Any]) -> Any:
    if stopped():
        raise Stopped
    return call()


def serve() -> None:
    """Fit parts until the pipe ends or the parent is gone."""
    threading.Thread(target=_leave_with, args=(os.getppid(),), daemon=True).start()
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what an estimator prints must not mix with the answers
    while True:
        try:
            part = pickle.load(sys.stdin.buffer)
        except EOFError:
            return
        try:
            found: Any = part.fit()
        except UsageError as error:
            found = error, []
        pickle.dump(found, answers)
        answers.flush()


def _leave_with(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(1)
