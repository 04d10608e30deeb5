"""A Gaussian gate beside a softmax gate, by what EM takes to converge (Xu, Jordan & Hinton, 1995)."""

from __future__ import annotations

from moecli.record.folder import Run
from moecli.replicate.bench import Bench, Outcome, Quantity, curve, metric, training_seconds

SLACK = 0.02  # nats a row by which the fit may be worse
LESS = 0.8  # of the softmax gate's time: what a busy machine does not explain


def replicate(bench: Bench) -> Outcome:
    turns = [(bench.train(f"seed={seed}"), bench.train(f"seed={seed}", "gate=linear")) for seed in bench.seeds(5)]
    gaussian, softmax = (list(runs) for runs in zip(*turns, strict=True))
    fit, rival = metric(gaussian, "test/nll"), metric(softmax, "test/nll")
    quick, slow = (sum(map(training_seconds, runs)) / len(runs) for runs in (gaussian, softmax))
    return Outcome(
        [
            Quantity("test nll in nats, Gaussian gate", fit),
            Quantity("test nll in nats, softmax gate", rival),
            Quantity("iterations of EM, Gaussian gate", iterations(gaussian)),
            Quantity("iterations of EM, softmax gate", iterations(softmax)),
            Quantity("seconds a run, Gaussian gate", quick),
            Quantity("seconds a run, softmax gate", slow),
        ],
        f"EM with the Gaussian gate takes at most {LESS:g} times the softmax gate's time, and its test nll is at most "
        f"{SLACK:g} nats higher",
        quick <= LESS * slow and fit <= rival + SLACK,
    )


def iterations(runs: list[Run]) -> float:
    """Until the likelihood rose by less than the tolerance: mean over runs."""
    return sum(len(curve(run, "joint_nll")[0]) for run in runs) / len(runs)
