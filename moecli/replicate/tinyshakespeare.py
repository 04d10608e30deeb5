"""The mixture language model on a text of the user's beside its dense twin, at equal FLOPs a token and steps."""

from __future__ import annotations

from moecli.replicate.bench import Bench, Outcome, Quantity, flops, gap, lower, means, nlls


def replicate(bench: Bench) -> Outcome:
    runs = bench.over_seeds({"mixture": (), "dense twin": ("model.twin=true",)})
    mixture, twin = runs.values()
    return Outcome(
        [
            *nlls(runs),
            Quantity("gain over the dense twin in nats", gap(mixture, twin)),
            Quantity("chance", mixture[0].summary["chance"]["test/nll"]),
            *means("test accuracy", runs, "test/accuracy"),
            *flops("a token", runs),
        ],
        "the mixture has the lower test loss with every seed",
        lower(mixture, twin),
    )
