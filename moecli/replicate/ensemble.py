"""Equal weights beside a gate that chooses, at the same cost (Jacobs et al., 1991)."""

from __future__ import annotations

from moecli.replicate.bench import Bench, Outcome, Quantity, flops, metric


def replicate(bench: Bench) -> Outcome:
    seeds = bench.seeds(3)
    systems = {
        "ensemble, density of equal weights": ("objective=nll",),
        "ensemble, experts sharing one error": ("objective=blend_error", "family.covariance=fixed"),
        "mixture with a gate": ("gate=linear", "num_experts=4"),
    }
    runs = {name: [bench.train(f"seed={seed}", *words) for seed in seeds] for name, words in systems.items()}
    error = {name: metric(found, "test/rmse") for name, found in runs.items()}
    mixture = error.pop("mixture with a gate")
    return Outcome(
        [
            *(Quantity(f"test rmse, {name}", value) for name, value in error.items()),
            Quantity("test rmse, mixture with a gate", mixture),
            *flops("an example", runs),
        ],
        "the mixture's error is below that of both ensembles",
        mixture < min(error.values()),
    )
