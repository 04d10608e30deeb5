"""Seconds of ``moe compare`` over many run folders, from prompt to prompt: python benchmarks/compare.py [RUNS]

Each folder is a copy of one small trained run with another router, seed and result; its large files are links.
"""

from __future__ import annotations

import json
import os
import random
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

import moecli
from moecli.record.folder import Run

ROUTERS = ("top_k", "dense", "expert_choice", "sigmoid_bias")


def copy(run: Run, target: Path, number: int) -> None:
    """The run again, as another one of its kind."""
    for source in run.path.rglob("*"):
        place = target / source.relative_to(run.path)
        place.parent.mkdir(parents=True, exist_ok=True)
        if source.is_file() and source.name not in ("run.json", "summary.json"):
            os.link(source, place)
    changed = {"seed": number // len(ROUTERS), "router": ROUTERS[number % len(ROUTERS)]}
    info = {**run.info, "config": {**run.info["config"], **changed}, "id": target.name, "seed": changed["seed"]}
    metrics = {**run.summary["metrics"], f"test/{run.info['headline']}": random.Random(number).random()}
    (target / "run.json").write_text(json.dumps(info))
    (target / "summary.json").write_text(json.dumps({**run.summary, "metrics": metrics}))


def seconds(path: Path) -> tuple[float, float]:
    """(from prompt to prompt, of the processor) of ``moe compare path``."""
    started, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, "-m", "moecli", "compare", str(path)], check=True, capture_output=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    worked = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return time.perf_counter() - started, worked


if __name__ == "__main__":
    count = int((sys.argv[1:] or ["2000"])[0])
    with tempfile.TemporaryDirectory() as root:
        run, many = moecli.train("task=digits", "trainer.steps=100", runs=Path(root) / "trained"), Path(root) / "many"
        for number in range(count):
            copy(run, many / f"20260101T{number:06d}-aaaa", number)
        print(f"{count} runs, {sum(1 for _ in many.rglob('*')):,} files; medians of 5")
        times = {
            name: [seconds(path) for _ in range(5)] for name, path in (("all of them", many), ("one run", run.path))
        }
        for name, found in times.items():
            wall, worked = map(median, zip(*found, strict=True))
            print(f"{name:12s} {wall:.2f} s from prompt to prompt, {worked:.2f} s of the processor")
