"""Balance by a bias that no gradient reaches, beside balance by a loss (Wang et al., 2024; DeepSeek-V3, 2024).

All have sigmoid gates.  MaxVio is what the most loaded expert has above a fair share, over that share, on the test.
"""

from __future__ import annotations

from moecli.replicate.bench import Bench, Outcome, Quantity, gap, metric, nlls, of_layers

WITH_LOSS = ("router.rate=0", "auxiliary=[switch_balance]")
BIAS, LOSS = "bias", "loss"
SYSTEMS = {
    BIAS: (),
    LOSS: (*WITH_LOSS, "auxiliary.switch_balance.weight=0.01"),
    "bias, a tenth of the rate": ("router.rate=0.001",),
    "loss, a tenth of the weight": (*WITH_LOSS, "auxiliary.switch_balance.weight=0.001"),
    "neither": ("router.rate=0",),
}


def replicate(bench: Bench) -> Outcome:
    runs = bench.over_seeds(SYSTEMS)
    violation = {name: of_layers(found, "max_over_mean") - 1 for name, found in runs.items()}
    return Outcome(
        [
            *(Quantity(f"MaxVio, {name}", value) for name, value in violation.items()),
            *nlls(runs),
            Quantity("gain in nats, bias over loss", gap(runs[BIAS], runs[LOSS])),
        ],
        "the bias has a lower MaxVio than the loss, and an nll that is not higher, in the mean over seeds",
        violation[BIAS] < violation[LOSS] and metric(runs[BIAS], "test/nll") <= metric(runs[LOSS], "test/nll"),
    )
