"""A mixture that translates texts of the user's beside its dense twin, at equal FLOPs a token and steps."""

from __future__ import annotations

from moecli.replicate.bench import Bench, Outcome, Quantity, flops, lower, means, metric, nlls


def replicate(bench: Bench) -> Outcome:
    runs = bench.over_seeds({"mixture": (), "dense twin": ("model.twin=true",)}, 1)
    mixture, twin = runs.values()
    return Outcome(
        [
            *nlls(runs),
            *means("test BLEU", runs, "test/bleu"),
            *means("test chrF", runs, "test/chrf"),
            Quantity("chance nll in nats", mixture[0].summary["chance"]["test/nll"]),
            *flops("a token", runs),
            *(
                Quantity(f"parameters, {name}", float(found[0].summary["parameters"]["total"]))
                for name, found in runs.items()
            ),
        ],
        "the mixture has the lower test loss and the higher BLEU, with one seed",
        lower(mixture, twin) and metric(mixture, "test/bleu") > metric(twin, "test/bleu"),
    )
