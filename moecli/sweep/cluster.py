"""The engine ``ray``: workers on the machines of a Ray cluster, which all see the sweep's folder.

Ray only starts the workers, and again where a machine is lost; what they do stands in the folder.  The cluster is the
one of ``RAY_ADDRESS``, else this machine.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from moecli.errors import EnvironmentFailure, Interrupted
from moecli.record.lock import locked
from moecli.sweep.folder import Sweep
from moecli.sweep.local import home, worker_command
from moecli.training.stop import listening

TICK = 0.2  # seconds between two looks


def run(sweep: Sweep, jobs: int, plugins: Sequence[Path] = (), show: Callable[[], Any] = lambda: None) -> None:
    """Work until every run is finished or explained, or the budget is spent.

    Raises EnvironmentFailure without Ray or where a worker says that its machine failed, Interrupted where a signal
    asked to stop.
    """
    ray = _ray()
    words = worker_command(sweep.path, plugins)
    with locked(sweep.path), listening() as stop:
        sweep.reopen()
        ray.init(
            address=os.environ.get("RAY_ADDRESS"), log_to_driver=False, include_dashboard=False, logging_level="error"
        )
        try:
            started = ray.remote(num_cpus=sweep.plan.threads, max_retries=-1)(_work)
            left = [started.remote(words, str(home())) for _ in range(jobs)]
            while left:
                ended, left = ray.wait(left, timeout=TICK)
                show()
                if stop.signal is not None:
                    raise Interrupted(f"stopped. Go on with: moe sweep --resume {sweep.path}", 128 + stop.signal)
                _refuse([code for code in ray.get(ended) if code], sweep)
        finally:
            ray.shutdown()


def _work(words: list[str], folder: str) -> int:
    """On any machine of the cluster: one worker, to its end or ours, which closes its standard input."""
    with subprocess.Popen(words, cwd=folder, stdin=subprocess.PIPE) as worker:
        return worker.wait()


def _refuse(codes: list[int], sweep: Sweep) -> None:
    if codes:
        raise EnvironmentFailure(
            f"{sweep.path}: a worker ended (exit {codes[0]}). See Ray's logs; then: moe sweep --resume {sweep.path} --engine ray"
        )


def _ray() -> Any:
    try:
        import ray
    except ImportError as error:
        raise EnvironmentFailure(
            "--engine ray: it needs Ray, which is not installed. Install it: python -m pip install 'moecli[ray]'"
        ) from error
    return ray
