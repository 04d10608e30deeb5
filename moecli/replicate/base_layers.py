"""Equal work by assignment, with no balance loss, beside the Switch with one (Lewis et al., 2021)."""

from __future__ import annotations

import numpy as np

from moecli.record.folder import Run
from moecli.replicate.bench import Bench, Outcome, Quantity, gap, metric, nlls, of_layers, trained

NEARLY = 1.2  # times the fair share, of the busiest expert where the choice is greedy


def replicate(bench: Bench) -> Outcome:
    switch = ("router=top_k", "router.k=1", "router.renormalize=false")
    runs = bench.over_seeds({"BASE": (), "Switch": switch, "dense twin": ("model.twin=true",)})
    base, learned, twin = runs.values()
    busiest, greedy = busiest_in_training(base), of_layers(base, "max_over_mean")
    return Outcome(
        [
            *nlls(runs),
            Quantity("max / mean load in training at its worst step, BASE", busiest),
            Quantity("max / mean load in training at its worst step, Switch", busiest_in_training(learned)),
            Quantity("max / mean load on test, BASE (greedy)", greedy),
            Quantity("max / mean load on test, Switch", of_layers(learned, "max_over_mean")),
            Quantity("gain over the Switch in nats", gap(base, learned)),
            Quantity("gain over the dense twin in nats", gap(base, twin)),
        ],
        f"in training all experts work alike, on test the busiest has at most {NEARLY:g} times its share, and the loss is "
        "at most that of the Switch with its balance loss",
        busiest == 1 and greedy <= NEARLY and metric(base, "test/nll") <= metric(learned, "test/nll"),
    )


def busiest_in_training(runs: list[Run]) -> float:
    """The busiest expert's load over the mean, of the worst recorded step of each layer: mean over layers and runs."""
    return float(np.mean([(usage["served"].max(1) / usage["served"].mean(1)).max() for usage in trained(runs)]))
