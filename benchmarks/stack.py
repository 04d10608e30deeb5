"""Many models as one against one after the other, through our own trainer: python benchmarks/stack.py [RUNS] [STEPS]

Model-steps per second of ``trainer.stack`` over those of the ordinary loop, interleaved in one process: a classical
mixture (8 linear experts, 1,000 rows of two features, full batch) and top-2 mixtures of ReLU networks.
The ordinary loop trains a few of the runs, the stack all of them; both evaluate and save at the first and last step,
which no stack shares, and which ``steps alone`` leaves out.
"""

from __future__ import annotations

import copy
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from statistics import median

import torch

from moecli.config import build, compose
from moecli.record.recorder import Recorder
from moecli.record.view import view
from moecli.run import Built, assemble, job
from moecli.training.gradient import Gradient, Job, Loop
from moecli.training.stack import Lane, Stack, fit_together

ALONE = 3  # runs that the ordinary loop trains
REPEATS = 3
CASES = {
    "classical": ["task=regions", "task.rows=1539", "gate=linear", "optimizer.lr=0.01", "trainer.batch_size=1000000"],
    "top-2, spirals": ["task=spirals"],
    "top-2, digits": ["task=digits", "expert.hidden=32"],
}


def assembled(words: Sequence[str], number: int) -> list[Built]:
    first = assemble(compose(words))
    return [first, *(assemble(compose([*words, f"seed={seed}"]), first.task) for seed in range(1, number))]


def jobs(runs: Sequence[Built], folder: Path, records: ExitStack) -> list[Job]:
    """Copies of the runs, each with a record of its own."""
    made = []
    for number, built in enumerate(runs):
        place = folder / str(number)
        place.mkdir(parents=True)
        record = Recorder(place, view(place / "log.txt", quiet=True))
        records.callback(record.close)
        made.append(job(replace(built, model=copy.deepcopy(built.model)), record))
    return made


def apart(made: Sequence[Job], plan: Gradient, steps: int) -> tuple[float, float]:
    """Model-steps a second, all in all and of the steps alone."""
    started = time.perf_counter()
    for one in made:
        plan.fit(one)
    whole = time.perf_counter() - started
    loops = [Loop(plan, one, None) for one in made]
    started = time.perf_counter()
    for loop in loops:
        for step in range(steps):
            loop.train(step)
    return len(made) * steps / whole, len(made) * steps / (time.perf_counter() - started)


def together(made: Sequence[Job], plan: Gradient, steps: int) -> tuple[float, float]:
    started = time.perf_counter()
    fit_together([Lane(plan, one) for one in made])
    whole = time.perf_counter() - started
    lanes = [Lane(plan, one) for one in made]
    for lane in lanes:
        lane.begin()
    stack = Stack(lanes)
    started = time.perf_counter()
    for step in range(steps):
        stack.train(step)
    return len(made) * steps / whole, len(made) * steps / (time.perf_counter() - started)


def measure(words: Sequence[str], number: int, steps: int) -> None:
    runs = assembled([*words, f"trainer.steps={steps}", f"trainer.eval_every={steps}"], number)
    plan, rates = build(runs[0].config["trainer"]), []
    for _ in range(REPEATS):
        with tempfile.TemporaryDirectory() as folder, ExitStack() as records:
            one = apart(jobs(runs[:ALONE], Path(folder) / "apart", records), plan, steps)
            all_ = together(jobs(runs, Path(folder) / "together", records), plan, steps)
            rates.append((*one, *all_))
    fit, bare, stack_fit, stack_bare = map(median, zip(*rates, strict=True))
    ratios = [median(r[2 + i] / r[i] for r in rates) for i in (0, 1)]
    print(f"  steps alone      {bare:7.0f} -> {stack_bare:7.0f}  {ratios[1]:.1f}x")
    print(f"  with evaluation  {fit:7.0f} -> {stack_fit:7.0f}  {ratios[0]:.1f}x", flush=True)


if __name__ == "__main__":
    number, steps = (int(word) for word in [*sys.argv[1:], *["32", "200"][len(sys.argv) - 1 :]])
    for name, words in CASES.items():
        torch.manual_seed(0)
        print(
            f"{name}: {number} runs, {steps} steps, {torch.get_num_threads()} threads; model-steps a second, one by one -> as one"
        )
        measure(words, number, steps)
