"""Experts on devices, of which a token reaches a few; small experts and shared ones (DeepSeek-V2, 2024; Dai et al., 2024)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from moecli.record.folder import Run
from moecli.record.trace import TraceReader
from moecli.replicate.bench import Bench, Outcome, Quantity, metric, nlls

CLOSE = 0.01  # of the nll
SMALLER = 4  # small experts to a large one
LIMITED, ANYWHERE, LARGE = "three devices for a token", "any device", "large experts"
UNBALANCED = "three devices, no term for balance"
PLAIN = ("router=top_k", "auxiliary=[switch_balance]", "auxiliary.switch_balance.weight=0.003")


def replicate(bench: Bench) -> Outcome:
    settings = bench.compose().config
    k, shared, groups = settings["router"]["k"], settings["model"]["shared"], settings["router"]["groups"]
    large = (
        f"num_experts={(settings['num_experts'] + shared) // SMALLER}",
        f"expert.hidden={SMALLER * settings['expert']['hidden']}",
        f"router.k={(k + shared) // SMALLER}",
        "model.shared=0",
    )
    runs = bench.over_seeds(
        {
            LIMITED: (),
            ANYWHERE: (*PLAIN, f"router.k={k}"),
            UNBALANCED: ("auxiliary=[]",),
            LARGE: (*PLAIN, *large),
        }
    )
    nll = {name: metric(found, "test/nll") for name, found in runs.items()}
    busiest = {name: device_load(runs[name], groups) for name in (LIMITED, UNBALANCED)}
    reached = {name: devices(runs[name], groups) for name in (LIMITED, ANYWHERE)}
    size = {name: runs[name][0].summary["parameters"] for name in (LIMITED, LARGE)}
    return Outcome(
        [
            *nlls(runs),
            *(Quantity(f"devices that a token reaches, {name}", value) for name, value in reached.items()),
            *(Quantity(f"the busiest device's load over the mean, {name}", value) for name, value in busiest.items()),
            *(Quantity(f"parameters, {name}", value["total"]) for name, value in size.items()),
            *(Quantity(f"active parameters, {name}", value["active"]) for name, value in size.items()),
        ],
        f"in the mean over seeds a token on three devices has at most {CLOSE:.0%} more nll than one on any, the busiest device "
        "has less of the load with the terms than without, and large experts have a higher nll",
        nll[LIMITED] <= (1 + CLOSE) * nll[ANYWHERE]
        and busiest[LIMITED] < busiest[UNBALANCED]
        and nll[LIMITED] < nll[LARGE],
    )


def device_load(runs: Sequence[Run], groups: int) -> float:
    """The test load of the busiest of equal groups of experts, over a fair share: mean over layers and runs."""
    loads = [_load(run, layer).reshape(groups, -1).sum(1) for run in runs for layer in run.layers]
    return float(np.mean([groups * load.max() for load in loads]))


def _load(run: Run, layer: str) -> np.ndarray:  # -> (E,), sums to one
    return np.array([row["load"] for row in run.summary["experts"] if row["layer"] == layer])


def devices(runs: Sequence[Run], groups: int) -> float:
    """How many groups the experts of a test token stand in: mean over tokens, layers and runs."""
    return float(np.mean([_distinct(run, layer, groups).mean() for run in runs for layer in run.layers]))


def _distinct(run: Run, layer: str, groups: int) -> np.ndarray:  # -> (N,)
    tokens = TraceReader(run.path).tokens(layer, "test")
    device = tokens["expert"] * groups // run.layers[layer]["experts"]  # (N, E), of those that serve
    served = tokens["weight"] > 0
    return np.sum([((device == group) & served).any(1) for group in range(groups)], axis=0)
