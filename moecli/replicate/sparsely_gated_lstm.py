"""A mixture between LSTM layers beside LSTMs of as many operations per time step (Shazeer et al., 2017)."""

from __future__ import annotations

from moecli.replicate.bench import Bench, Outcome, Quantity, flops, gap, lower, means, nlls, of_layers

# The layer between is gone: experts that say nothing add the constant that a sigmoid makes of zero.
DEEPER = ("model.depth=3", "router=dense", "gate=uniform", "auxiliary=[]", "expert=zero", "num_experts=1")


def replicate(bench: Bench) -> Outcome:
    runs = bench.over_seeds({"mixture": (), "one LSTM layer more": DEEPER, "one wide layer": ("model.twin=true",)}, 2)
    mixture, deeper, wide = runs.values()
    return Outcome(
        [
            *nlls(runs),
            Quantity("gain over one LSTM layer more in nats", gap(mixture, deeper)),
            *means("test chrF", runs, "test/chrf"),
            *flops("a time step", runs),
            Quantity(
                "times as many parameters as with one LSTM layer more",
                mixture[0].summary["parameters"]["total"] / deeper[0].summary["parameters"]["total"],
            ),
            Quantity("largest load over the mean, test", of_layers(mixture, "max_over_mean")),
        ],
        "the mixture has a lower test loss than the deeper LSTM, and than one wide layer instead, with every seed",
        lower(mixture, deeper) and lower(mixture, wide),
    )
