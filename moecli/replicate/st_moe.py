"""Small router logits at a high learning rate, and what they cost (Zoph et al., 2022)."""

from __future__ import annotations

import math

import numpy as np

from moecli.record.folder import Run
from moecli.record.trace import TraceReader
from moecli.replicate.bench import Bench, Outcome, Quantity, gap, metric, nlls

HALF = 0.5
AS_GOOD = 1.01  # times the loss without the term


def replicate(bench: Bench) -> Outcome:
    runs = bench.over_seeds({"z-loss": (), "no z-loss": ("auxiliary=[switch_balance]",)})
    held, free = runs.values()
    end, start = ({name: squared(found, which) for name, found in runs.items()} for which in (-1, 0))
    return Outcome(
        [
            *(Quantity(f"logsumexp squared at the end, {name}", value) for name, value in end.items()),
            *nlls(runs),
            *(Quantity(f"logsumexp squared at the first evaluation, {name}", value) for name, value in start.items()),
            Quantity("gain by the z-loss in nats", gap(held, free)),
            Quantity("stable runs, z-loss", stable(held), "3 of 3"),
            Quantity("stable runs, no z-loss", stable(free), "4 of 6"),
        ],
        f"the z-loss at least halves the mean square of the router's logsumexp, and the loss on test is at most {AS_GOOD:g} "
        "times that without it",
        end["z-loss"] <= HALF * end["no z-loss"] and metric(held, "test/nll") <= AS_GOOD * metric(free, "test/nll"),
    )


def squared(runs: list[Run], which: int) -> float:
    """Mean of logsumexp(logits)^2 over validation tokens, layers and runs, at an evaluation."""
    return float(np.mean([_squared(TraceReader(run.path), layer, which) for run in runs for layer in run.layers]))


def _squared(reader: TraceReader, layer: str, which: int) -> float:
    step = reader.steps(layer, "valid")[which]
    return float(np.square(reader.tokens(layer, "valid", step)["logsumexp"]).mean())


def stable(runs: list[Run]) -> str:
    """Runs whose loss is finite and below chance at the end."""
    losses = [(metric(run, "test/nll"), run.summary["chance"]["test/nll"]) for run in runs]
    return f"{sum(math.isfinite(loss) and loss < chance for loss, chance in losses)} of {len(runs)}"
