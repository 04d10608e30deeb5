"""Trains combinations without pictures, two at a time, and tells of each its quality and how its experts share the work."""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

import torch
from torch import Tensor

from moecli.config import build, compose
from moecli.record.recorder import Recorder
from moecli.record.view import view
from moecli.routing import Usage
from moecli.run import Built, assemble, job
from moecli.training.evaluate import evaluate

PROCESSES = 2
BATCHES = 8  # of training, over which drops in training are counted


@dataclass(frozen=True)
class Fitted:
    """The last weights on the test split; of several mixture layers the last one."""

    quality: float  # the task's headline metric
    max_over_mean: float  # load of the busiest expert over the mean
    load_cv: float  # of the work done: choices, or weight where a plan has no edges
    importance_cv: float  # of the summed combine weights
    dropped: float  # share of the choices
    dropped_in_training: float


def fitted(words: Sequence[str]) -> Fitted:
    """Train what ``key=value`` words describe, in one thread and a folder that is thrown away."""
    built = assemble(compose([*words, "threads=1"]))
    with tempfile.TemporaryDirectory() as folder:
        record = Recorder(Path(folder), view(Path(folder) / "log.txt", quiet=True))
        build(built.config["trainer"]).fit(job(built, record))
        record.close()
    found = evaluate(built.model, built.task, "test", built.device, trace=True)
    usage = found.usage[list(found.usage)[-1]]
    load = usage.load.double()
    return Fitted(
        found.metrics[built.task.kind.headline],
        float(load.max() / load.mean()),
        cv(load),
        cv(usage.mass.double()),
        usage.dropped,
        usage_in_training(built).dropped,
    )


@torch.no_grad()
def usage_in_training(built: Built) -> Usage:
    """Of the last layer, over batches of training with its noise and capacity."""
    size = built.config["trainer"]["batch_size"]
    batches = (built.task.train_batch(step, size, built.config["seed"]) for step in range(BATCHES))
    usages = [list(built.model.train()(b.x, b.known).routings.values())[-1].usage for b in batches]
    return sum(usages[1:], start=usages[0])


def cv(values: Tensor) -> float:
    """Standard deviation over mean."""
    return float(values.std(unbiased=False) / values.mean())


def over_seeds(jobs: dict[str, Sequence[str]], seeds: int) -> dict[str, list[Fitted]]:
    """Each named combination, trained with seeds 0, 1, ..."""
    words = [[*common, f"seed={seed}"] for common in jobs.values() for seed in range(seeds)]
    with ProcessPoolExecutor(PROCESSES, mp_context=get_context("spawn")) as pool:
        found = list(pool.map(fitted, words))
    return {name: found[i * seeds : (i + 1) * seeds] for i, name in enumerate(jobs)}


def told(runs: Sequence[Fitted], what: Callable[[Fitted], float], digits: int = 2) -> str:
    """Mean ± standard deviation over seeds."""
    values = [what(run) for run in runs]
    return f"{statistics.mean(values):.{digits}f} ± {statistics.stdev(values):.{digits}f}"


def markdown(rows: Sequence[Sequence[str]]) -> str:
    """The first row is the head."""
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join([lines[0], "|" + "---|" * len(rows[0]), *lines[1:]])
