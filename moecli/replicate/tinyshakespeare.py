"""The mixture language model on a text of the user's beside its dense twin, at equal FLOPs a token and steps."""

from __future__ import annotations

from moecli.replicate.bench import Bench, Outcome, Quantity, gap, lower, metric, nlls


def replicate(bench: Bench) -> Outcome:
    runs = bench.over_seeds({"mixture": (), "dense twin": ("model.twin=true",)})
    mixture, twin = runs.values()
    return Outcome(
        [
            *nlls(runs),
            Quantity("gain over the dense twin in nats", gap(mixture, twin)),
            Quantity("chance", mixture[0].summary["chance"]["test/nll"]),
            *(Quantity(f"test accuracy, {name}", metric(found, "test/accuracy")) for name, found in runs.items()),
            *(Quantity(f"FLOPs a token, {name}", float(found[0].summary["flops"])) for name, found in runs.items()),
        ],
        "the mixture has the lower test loss with every seed",
        lower(mixture, twin),
    )
