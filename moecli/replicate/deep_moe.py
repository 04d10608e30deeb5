"""Two mixtures on top of each other: where the first layer looks, what the second sees (Eigen et al., 2013)."""

from __future__ import annotations

import numpy as np

from moecli.record.folder import Run
from moecli.replicate.bench import Bench, Outcome, Quantity, metric, told

LABELS = ("translation", "class")
HALF = 2.0  # effective experts of four


def replicate(bench: Bench) -> Outcome:
    seeds = bench.seeds(3)
    held = [bench.train(f"seed={seed}") for seed in seeds]
    free = [bench.train(f"seed={seed}", "router=dense", "auxiliary=[]") for seed in seeds]
    where, what = ({label: told(held, layer, label) for label in LABELS} for layer in (0, 1))
    working = [effective(runs, layer) for runs in (held, free) for layer in (0, 1)]
    return Outcome(
        [
            *(Quantity(f"NMI of the first layer's experts and {label}", where[label]) for label in LABELS),
            *(Quantity(f"NMI of the second layer's experts and {label}", what[label]) for label in LABELS),
            Quantity("test accuracy, balance in the first phase", metric(held, "test/accuracy")),
            Quantity("test accuracy, no balance", metric(free, "test/accuracy")),
            *(
                Quantity(f"effective experts of 4, layer {layer + 1}, {name}", working[2 * number + layer])
                for number, name in enumerate(("balance in the first phase", "no balance"))
                for layer in (0, 1)
            ),
        ],
        "the first layer tells more of the place than of the digit, the second the reverse, and without the balance some "
        "layer works with half of its experts at most, and with it none",
        where["translation"] > where["class"]
        and what["class"] > what["translation"]
        and min(working[2:]) <= HALF < min(working[:2]),
    )


def effective(runs: list[Run], layer: int) -> float:
    return float(np.mean([run.summary["layers"][layer]["effective_experts"] for run in runs]))
