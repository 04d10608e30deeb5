"""Full covariance beside diagonal and isotropic ones, by likelihood (Jordan & Jacobs, 1994)."""

from __future__ import annotations

from moecli.replicate.bench import Bench, Outcome, Quantity, metric

COVARIANCES = ("full", "diagonal", "isotropic")


def replicate(bench: Bench) -> Outcome:
    runs = {name: bench.train(f"family.covariance={name}") for name in COVARIANCES}
    nll = {name: metric(run, "test/nll") for name, run in runs.items()}
    return Outcome(
        [Quantity(f"test nll in nats, {name} covariance", value) for name, value in nll.items()],
        "the test likelihood is higher with full covariances than with diagonal ones",
        nll["full"] < nll["diagonal"],
    )
