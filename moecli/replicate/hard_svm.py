"""A gated mixture of support vector machines beside one machine and an ungated mixture (Collobert et al., 2002).

The paper's set is Forest with 100,000 rows; ours are two noisy spirals.  A fit to a part takes the time of that part
only, but the mixture is fitted once a round, so what is counted is the whole training, in one process.
"""

from __future__ import annotations

import time

from moecli.record.folder import Run
from moecli.replicate.bench import Bench, Outcome, Quantity, metric, training_seconds
from moecli.run import load
from moecli.training.evaluate import evaluate


def replicate(bench: Bench) -> Outcome:
    runs = {
        "gated mixture": bench.train(),
        "uniform mixture": bench.train("gate=uniform", "trainer.rounds=1"),
        "one machine": bench.train("num_experts=1", "gate=constant", "trainer.rounds=1"),
    }
    error = {name: 1 - metric(run, "test/accuracy") for name, run in runs.items()}
    fit = {name: training_seconds(run) for name, run in runs.items()}
    return Outcome(
        [
            *(Quantity(f"test error, {name}", value) for name, value in error.items()),
            *(Quantity(f"seconds of training, {name}", value) for name, value in fit.items()),
            *(Quantity(f"seconds for the test rows, {name}", inference_seconds(run)) for name, run in runs.items()),
        ],
        "the gated mixture errs no more than one machine and takes less time to train",
        error["gated mixture"] <= error["one machine"] and fit["gated mixture"] < fit["one machine"],
    )


def inference_seconds(run: Run) -> float:
    """Of one pass over the test rows, loading left out."""
    loaded = load(run.path)
    started = time.perf_counter()
    evaluate(loaded.model, loaded.task, "test", loaded.device)
    return time.perf_counter() - started
