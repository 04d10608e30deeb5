"""64 runs of the piecewise toy by warm workers, from prompt to prompt: python benchmarks/sweep.py [JOBS]

Beside it what one such run takes by itself: a fresh `moe train`, and one more in a process that has trained before.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import moecli.run as engine
from moecli.config import compose

WORDS = ["task=piecewise", "num_experts=8", "trainer.steps=500"]


def command(*words: str) -> float:
    """Seconds of ``moe ...`` from prompt to prompt."""
    started = time.perf_counter()
    subprocess.run([sys.executable, "-m", "moecli", *words, "--quiet"], check=True)
    return time.perf_counter() - started


def warm(root: Path) -> float:
    """Seconds of a run without pictures in a process that has trained one."""
    for seed in (0, 1):
        started = time.perf_counter()
        place = engine.Place(root, "warm", pictures=False)
        engine.train_built(engine.assemble(compose([*WORDS, f"seed={seed}"])), place)
    return time.perf_counter() - started


if __name__ == "__main__":
    jobs = (sys.argv[1:] or ["2"])[0]
    with tempfile.TemporaryDirectory() as name:
        print(f"load before {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores", flush=True)
        seconds = command("sweep", *WORDS, "router=top_k,dense", "seed=0..31", "--jobs", jobs, "--runs", name)
        print(f"moe sweep, 64 runs, --jobs {jobs}: {seconds:.1f} s ({seconds / 64:.2f} s a run)", flush=True)
        print(f"moe train, one run with pictures: {command('train', *WORDS, '--runs', name):.1f} s", flush=True)
        print(f"one run in a warm process, without: {warm(Path(name)):.2f} s")
        print(f"load after {os.getloadavg()[0]:.1f}")
