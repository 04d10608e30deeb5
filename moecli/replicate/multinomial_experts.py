"""A mixture of multinomial regressions beside one (Jordan & Jacobs, 1994)."""

from __future__ import annotations

from moecli.replicate.bench import Bench, Outcome, Quantity, metric


def replicate(bench: Bench) -> Outcome:
    return against_one(bench, "multinomial regression")


def against_one(bench: Bench, what: str) -> Outcome:
    """The experiment's mixture, and one of its experts alone, over seeds of the start."""
    mixture = [bench.train(f"seed={seed}") for seed in bench.seeds(3)]
    one = bench.train("num_experts=1", "gate=constant")
    quantities = [
        Quantity(f"test {name}, {label}", metric(runs, f"test/{name}"))
        for name in ("accuracy", "nll")
        for label, runs in (("mixture", mixture), (f"one {what}", [one]))
    ]
    better = metric(mixture, "test/nll") < metric(one, "test/nll")
    more = metric(mixture, "test/accuracy") > metric(one, "test/accuracy")
    return Outcome(
        quantities, f"the mixture has the higher test accuracy and likelihood than one {what}", better and more
    )
