"""Train and resume in forked children that are killed at random: python killing.py FOLDER KILLS SEED STEPS

Prints one JSON line: how many kills, and the most steps that any of them lost.  The parent only
imports torch and never computes, so that a child may.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import sys
import time
import traceback
from pathlib import Path

import torch
import torch._dynamo  # what the first optimizer would import: a child that dies of it never gets anywhere

import moecli.run
from moecli.record import checkpoint
from moecli.record.folder import read_lines

WORDS = [
    "task=spirals", "task.rows=200", "trainer.batch_size=32", "num_experts=4", "expert.hidden=8", "router=noisy_top_k",
    "trainer.eval_every=20", "trainer.checkpoint_every=10", "threads=1",
]  # fmt: skip


def quick() -> None:
    """Leave out what the weights do not depend on."""
    moecli.run._draw = lambda run: None
    moecli.run._change_without = lambda *args: None


def attempt(root: Path, steps: int) -> bool:
    quick()
    torch.set_num_threads(1)
    found = sorted(root.glob("*/*/run.json"))
    if found:
        moecli.run.resume(found[0].parent)
    else:
        moecli.run.train(*WORDS, f"trainer.steps={steps}", runs=root)
    return True


def reached(root: Path) -> int:
    """The last step that left a trace in the metrics."""
    lines = [line for file in root.glob("*/*/metrics.jsonl") for line in read_lines(file)]
    return max((line["step"] for line in lines), default=0)


def saved(root: Path) -> int:
    return max((step for run in root.glob("*/*/run.json") for step in checkpoint.steps(run.parent)), default=0)


def child(root: Path, steps: int) -> int:
    """A forked attempt: exit 0 when the run is finished, 1 with a traceback when it fails."""
    number = os.fork()
    if number == 0:
        try:
            attempt(root, steps)
            os._exit(0)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
    return number


def kill_one_run(root: Path, most: int, draw: random.Random, steps: int) -> tuple[int, int]:
    """Kill and go on until the run is finished: (kills, most steps lost).  Raises where an attempt fails."""
    kills = lost = 0
    while True:
        number = child(root, steps)
        if kills < most:
            time.sleep(draw.uniform(0.05, 0.5))
            os.kill(number, signal.SIGKILL)
        _, status = os.waitpid(number, 0)
        if os.WIFEXITED(status):
            if os.WEXITSTATUS(status):
                raise RuntimeError(f"an attempt failed in {root}")
            return kills, lost
        kills, lost = kills + 1, max(lost, reached(root) - saved(root))


def main(folder: Path, total: int, seed: int, steps: int) -> dict[str, int]:
    draw, kills, lost, runs = random.Random(seed), 0, 0, 0
    while kills < total:
        more, most = kill_one_run(folder / str(runs), min(10, total - kills), draw, steps)
        kills, lost, runs = kills + more, max(lost, most), runs + 1
    return {"kills": kills, "lost": lost, "runs": runs}


IO = ((os, "mkdir"), (os, "fsync"), (os, "replace"), (os, "rename"), (shutil, "rmtree"))


def crash_in_save(number: int, step: int) -> None:
    """Die, as if killed, before the ``number``-th input or output of the save after ``step``."""
    counted = {"calls": 0}
    real = checkpoint.save

    def counting(call):
        def count(*args, **kwargs):
            counted["calls"] += 1
            if counted["calls"] == number:
                os._exit(137)
            return call(*args, **kwargs)

        return count

    def save(folder, at, *args):
        if at == step:
            for module, name in IO:
                setattr(module, name, counting(getattr(module, name)))
        path = real(folder, at, *args)
        if at == step:
            counted["calls"] = -10_000  # the save is over: die no more
        return path

    checkpoint.save = save


def crash_everywhere(folder: Path, steps: int) -> dict[str, int]:
    """One run for each point of a save that it can die at: killed there, looked at, gone on with."""
    points = 0
    while True:
        root = folder / str(points)
        number = os.fork()
        if number == 0:
            crash_in_save(points + 1, step=30)
            os._exit(not attempt(root, steps))
        if os.waitstatus_to_exitcode(os.waitpid(number, 0)[1]) != 137:
            return {"points": points}
        (run,) = root.glob("*/*")
        whole = [step for step in checkpoint.steps(run) if checkpoint.verify(run / f"checkpoints/step-{step:08d}")]
        assert whole[-1] in (20, 30) and len(whole) >= 2, (points, whole)
        number = child(root, steps)
        assert os.waitpid(number, 0)[1] == 0
        points += 1


if __name__ == "__main__":
    if sys.argv[2] == "everywhere":
        print(json.dumps(crash_everywhere(Path(sys.argv[1]), int(sys.argv[3]))))
    else:
        print(json.dumps(main(Path(sys.argv[1]), *map(int, sys.argv[2:5]))))
