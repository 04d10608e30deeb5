"""Experts that choose their patches, in a model that reads in both directions (Zhou et al., 2022)."""

from __future__ import annotations

import numpy as np

from moecli.record.folder import Run
from moecli.record.trace import TraceReader
from moecli.replicate.bench import Bench, Outcome, Quantity, best, means, nlls, of_layers, or_never, shown, steps_until

TWICE = 2.0  # times fewer steps


def replicate(bench: Bench) -> Outcome:
    runs = bench.over_seeds(
        {
            "expert choice": (),
            "top-2": ("router=top_k",),
            "dense twin": ("model.twin=true",),
        }
    )
    chosen, two, _ = runs.values()
    needed = [steps_until(run, "nll", best(run), "valid") for run in two]
    reached = [steps_until(run, "nll", best(other), "valid") for run, other in zip(chosen, two, strict=True)]
    speed = float(np.mean(np.divide(needed, reached)))
    served = np.concatenate([experts_of_patches(run) for run in chosen])
    return Outcome(
        [
            Quantity("times fewer steps to the best validation loss of top-2, 0 where never", speed, "more than 2"),
            Quantity("steps of top-2 to its best validation loss, by seed", listed(needed)),
            Quantity("steps of expert choice to it, by seed", listed(reached)),
            Quantity("max / mean load on test, expert choice", of_layers(chosen, "max_over_mean"), 1.0),
            Quantity("max / mean load on test, top-2", of_layers(two, "max_over_mean")),
            *nlls(runs),
            *means("test accuracy", runs, "test/accuracy"),
            Quantity("patches that no expert takes", float((served == 0).mean())),
            Quantity("patches that more than two take", float((served > 2).mean())),
        ],
        f"expert choice reaches the best validation loss of top-2 in at most 1/{TWICE:g} of its steps, and loads every "
        "expert alike",
        speed >= TWICE and of_layers(chosen, "max_over_mean") == 1,
    )


def listed(steps: list[float]) -> str:
    return ", ".join(shown(or_never(step)) for step in steps)


def experts_of_patches(run: Run) -> np.ndarray:
    """(layers * n,): how many experts take each test patch, at every layer."""
    reader = TraceReader(run.path)
    return np.concatenate([(reader.tokens(layer, "test")["expert"] >= 0).sum(1) for layer in run.layers])
