"""A mixture in every other layer beside its dense twin at equal FLOPs a token (Du et al., 2022)."""

from __future__ import annotations

import numpy as np

from moecli.replicate.bench import Bench, Outcome, Quantity, best, flops, gap, lower, nlls, or_never, steps_until


def replicate(bench: Bench) -> Outcome:
    runs = bench.over_seeds({"mixture": (), "dense twin": ("model.twin=true",)})
    mixture, twin = runs.values()
    reached = [steps_until(one, "nll", best(other), "valid") for one, other in zip(mixture, twin, strict=True)]
    needed = [steps_until(other, "nll", best(other), "valid") for other in twin]
    size = mixture[0].summary
    return Outcome(
        [
            *nlls(runs),
            Quantity("gain over the dense twin in nats", gap(mixture, twin)),
            Quantity(
                "share of the steps to the twin's best validation loss",
                or_never(float(np.mean(reached) / np.mean(needed))),
            ),
            Quantity(
                "share of the parameters at work for a token",
                size["parameters"]["active"] / size["parameters"]["total"],
            ),
            *flops("a token", runs),
        ],
        "with every seed the mixture has the lower test loss, and the twin's best validation loss in fewer steps",
        lower(mixture, twin) and all(a < b for a, b in zip(reached, needed, strict=True)),
    )
