"""A gamma gate over positive inputs beside a Gaussian and a softmax gate (Xu, Jordan & Hinton, 1995)."""

from __future__ import annotations

from moecli.record.folder import Run
from moecli.replicate.bench import Bench, Outcome, Quantity, curve, metric


def replicate(bench: Bench) -> Outcome:
    gamma = bench.train()
    gaussian = bench.train("gate.families=gaussian")
    softmax = bench.train("gate=linear")
    falls = sum(largest_fall(run) > 1e-9 for run in (gamma, gaussian))
    return Outcome(
        [
            Quantity("joint nll of the training rows, gamma gate", last(gamma)),
            Quantity("joint nll of the training rows, Gaussian gate", last(gaussian)),
            Quantity("test accuracy, gamma gate", metric(gamma, "test/accuracy")),
            Quantity("test accuracy, Gaussian gate", metric(gaussian, "test/accuracy")),
            Quantity("test accuracy, softmax gate", metric(softmax, "test/accuracy")),
            Quantity("runs in which an iteration lowered the likelihood", falls),
        ],
        "the joint likelihood never falls, and that of the gamma gate is higher than the Gaussian gate's",
        falls == 0 and last(gamma) < last(gaussian),
    )


def last(run: Run) -> float:
    return float(curve(run, "joint_nll")[1][-1])


def largest_fall(run: Run) -> float:
    """By how much the likelihood fell at most from one iteration to the next, in nats a row."""
    nll = curve(run, "joint_nll")[1]
    return float((nll[1:] - nll[:-1]).max(initial=0.0))
