"""The engine ``slurm``: an array of workers that pull from the sweep's folder, submitted and left to the cluster.

A task that is preempted and queued again goes on where it was; one that ends leaves its run to the others.
Partition, time and account come from sbatch's own variables (``SBATCH_PARTITION``, ``SBATCH_TIMELIMIT``, ...).
"""

from __future__ import annotations

import re
import shlex
import subprocess
from collections.abc import Sequence
from pathlib import Path

from moecli.errors import EnvironmentFailure
from moecli.record.folder import write_whole
from moecli.record.lock import locked
from moecli.sweep.folder import Sweep
from moecli.sweep.local import home, worker_command

LIMIT = 60  # seconds that sbatch may take
SAVING = 60  # seconds before its end in which a task is told to save


def script(sweep: Sweep, jobs: int, plugins: Sequence[Path] = ()) -> str:
    """What sbatch is given: each task of the array is one worker."""
    worker = shlex.join(worker_command(sweep.path, plugins, child=False))
    return f"""#!/bin/bash
#SBATCH --job-name=moe-{sweep.path.parent.name}
#SBATCH --array=0-{jobs - 1}
#SBATCH --cpus-per-task={sweep.plan.threads}
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --signal=B:TERM@{SAVING}
#SBATCH --output={sweep.path}/logs/slurm-%A_%a.log
cd {shlex.quote(str(home()))}
exec {worker}
"""


def submit(sweep: Sweep, jobs: int, plugins: Sequence[Path] = ()) -> str:
    """The number of the array that sbatch queued.

    Raises EnvironmentFailure where there is no sbatch or it fails; nothing is lost then, for the folder has it all.
    """
    with locked(sweep.path):
        sweep.reopen()
    file = sweep.path / "sweep.sbatch"
    write_whole(file, script(sweep, jobs, plugins).encode())
    again = f"Put it right, then: moe sweep --resume {sweep.path} --engine slurm"
    try:
        done = subprocess.run(["sbatch", str(file)], capture_output=True, text=True, errors="replace", timeout=LIMIT)
    except FileNotFoundError as error:
        raise EnvironmentFailure(
            f"--engine slurm: no sbatch here. Go on where there is one: moe sweep --resume {sweep.path} --engine slurm"
        ) from error
    except (OSError, subprocess.TimeoutExpired) as error:
        raise EnvironmentFailure(f"--engine slurm: sbatch did not answer ({error}). {again}") from error
    if done.returncode:
        said = " ".join(done.stderr.split()) or f"exit {done.returncode}"
        raise EnvironmentFailure(f"--engine slurm: sbatch refused ({said}). {again}")
    found = re.search(r"Submitted batch job (\d+)", done.stdout)
    if found is None:
        raise EnvironmentFailure(f"--engine slurm: sbatch named no job ({done.stdout.strip()[:80]!r}). {again}")
    return found[1]
