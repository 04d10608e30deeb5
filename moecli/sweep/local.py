"""The engine ``local``: workers on this machine, and a supervisor that replaces those which die."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import moecli
from moecli.errors import EnvironmentFailure, Interrupted
from moecli.record.folder import open_own
from moecli.record.lock import locked
from moecli.sweep.folder import Sweep
from moecli.training.stop import Stop, listening

TICK = 0.1  # seconds between two looks of the supervisor
GRACE = 4.0  # seconds in which workers save and leave
MOST_LOG = 1_000_000  # bytes of a worker's log, of which the last two are kept
MOST_IDLE_DEATHS = 3  # of workers in a row that held no run: something is wrong with all of them

Command = Callable[[Path], Sequence[str]]


def cores() -> int:
    """That this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def threads(workers: int) -> int:
    """For each of so many workers on this machine."""
    own = os.environ.get("OMP_NUM_THREADS", "")
    share = max(1, cores() // workers)
    return min(share, int(own)) if own.isdecimal() and int(own) > 0 else share


def worker_command(folder: Path, plugins: Sequence[Path] = (), child: bool = True) -> list[str]:
    named = [word for plugin in plugins for word in ("--plugin", str(plugin.absolute()))]
    return [sys.executable, "-m", "moecli.sweep.worker", *(["--child"] if child else []), *named, str(folder)]


def home() -> Path:
    """Where ``-m moecli`` finds the package that runs now."""
    return Path(moecli.__file__).resolve().parents[1]


@dataclass
class Worker:
    """A process, and the log of what it prints."""

    process: subprocess.Popen[bytes]
    log: Path
    last: bytes = b""  # line of its output

    @classmethod
    def start(cls, words: Sequence[str], log: Path) -> Worker:
        process = subprocess.Popen(
            words,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            cwd=home(),
            start_new_session=True,  # Ctrl-C reaches the supervisor alone, which lets them save
        )
        worker = cls(process, log)
        threading.Thread(target=worker._copy, args=(process.stdout,), daemon=True).start()
        return worker

    def _copy(self, output: IO[bytes]) -> None:
        """What it prints, into its log: two files of at most MOST_LOG bytes, the older one ``.old``."""
        while data := os.read(output.fileno(), 65536):
            self.last = (data.strip().splitlines() or [self.last])[-1]
            try:
                self._append(data)
            except OSError:  # a full disk keeps no worker from writing
                continue
        output.close()

    def _append(self, data: bytes) -> None:
        if self.log.exists() and self.log.stat().st_size + len(data) > MOST_LOG:
            os.replace(self.log, f"{self.log}.old")
        descriptor = open_own(self.log, os.O_WRONLY | os.O_APPEND)
        os.write(descriptor, data)
        os.close(descriptor)

    @property
    def ended(self) -> str | None:
        """How, in words; None while it runs."""
        code = self.process.poll()
        if code is None:
            return None
        return signal.Signals(-code).name if code < 0 else f"exit {code}"


@dataclass
class Pool:
    """As many workers as there is work for."""

    sweep: Sweep
    size: int
    command: Command
    workers: list[Worker] = field(default_factory=list)
    started: int = 0
    idle_deaths: int = 0

    def fill(self) -> None:
        if len(self.workers) == self.size or self.sweep.out_of_time:
            return
        wanted = min(self.size, len(self.sweep.open_jobs()) + self._asked())
        while len(self.workers) < wanted:
            log = self.sweep.path / "logs" / f"worker-{self.started % self.size}.log"
            self.workers.append(Worker.start(self.command(self.sweep.path), log))
            self.started += 1

    def _asked(self) -> int:
        """Trials that a search has still to ask for."""
        return max(0, self.sweep.plan.trials - len(self.sweep.points())) if self.sweep.plan.sampler == "tpe" else 0

    def reap(self) -> None:
        """Bury those that ended.  Raises EnvironmentFailure where the machine is to blame."""
        for worker in [worker for worker in self.workers if worker.ended]:
            self.workers.remove(worker)
            how = worker.ended or ""
            held = self.sweep.leases.bury(worker.process.pid, how)
            self.idle_deaths = self.idle_deaths + 1 if held is None and how != "exit 0" else 0
            if worker.process.returncode == EnvironmentFailure.code or self.idle_deaths >= MOST_IDLE_DEATHS:
                said = worker.last.decode(errors="replace").removeprefix("moe: error: ").rstrip(".")
                raise EnvironmentFailure(
                    f"{self.sweep.path}: a worker ended ({said or how}). See {worker.log}; then go on with: "
                    f"moe sweep --resume {self.sweep.path}"
                )

    def stop(self, grace: float = GRACE) -> None:
        """Let all save and leave, and kill who has not left in time."""
        for worker in self.workers:
            worker.process.terminate()
        end = time.monotonic() + grace
        for worker in self.workers:
            try:
                worker.process.wait(max(0.0, end - time.monotonic()))
            except subprocess.TimeoutExpired:
                worker.process.kill()
                worker.process.wait()


def run(sweep: Sweep, jobs: int, command: Command = worker_command, show: Callable[[], Any] = lambda: None) -> None:
    """Work until every run is finished or explained, or the budget is spent; ``show`` is called at every look.

    Raises Interrupted where a signal asked to stop, with the workers gone, EnvironmentFailure where the machine
    fails, ConflictError where another supervisor works on the folder.
    """
    with locked(sweep.path), listening() as stop:
        sweep.reopen()
        pool = Pool(sweep, jobs, command)
        try:
            while _goes_on(sweep, pool, stop):
                pool.fill()
                show()
                time.sleep(TICK)
                pool.reap()
            show()
        finally:
            pool.stop()


def _goes_on(sweep: Sweep, pool: Pool, stop: Stop) -> bool:
    if stop.signal is not None:
        raise Interrupted(
            f"stopped by {signal.Signals(stop.signal).name} with everything saved. Go on with: moe sweep --resume {sweep.path}",
            128 + stop.signal,
        )
    return bool(pool.workers) if sweep.out_of_time else not sweep.is_complete()
