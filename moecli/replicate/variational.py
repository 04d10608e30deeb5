"""How many experts variational Bayes keeps, beside maximum likelihood (Baldacchino et al., 2016)."""

from __future__ import annotations

from moecli.record.folder import Run
from moecli.replicate.bench import Bench, Outcome, Quantity, metric

WORKS = 0.02  # an expert with this share of the test rows or more
PLANTED = 4  # lines of task=piecewise


def replicate(bench: Bench) -> Outcome:
    seeds = [(f"seed={seed}", f"task.split_seed={seed}") for seed in bench.seeds(3)]
    bayes = [bench.train(*words) for words in seeds]
    likelihood = [bench.train(*words, "trainer=em") for words in seeds]
    kept = [working(run) for run in bayes]
    return Outcome(
        [
            Quantity("lines in the data", PLANTED),
            Quantity("experts at work, variational", ", ".join(map(str, kept))),
            Quantity("experts at work, EM", ", ".join(str(working(run)) for run in likelihood)),
            Quantity("test nll in nats, variational", metric(bayes, "test/nll")),
            Quantity("test nll in nats, EM", metric(likelihood, "test/nll")),
        ],
        f"in every data set {PLANTED} of 8 experts are left at work, give or take one, and EM keeps more",
        all(abs(count - PLANTED) <= 1 for count in kept) and sum(map(working, likelihood)) > sum(kept),
    )


def working(run: Run) -> int:
    return sum(expert["load"] >= WORKS for expert in run.summary["experts"])
