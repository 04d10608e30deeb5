"""Student-t experts beside Gaussian ones under a growing share of outliers (Chamroukhi, 2016).

The test rows have no outliers, so that the error says how well the lines were kept.
"""

from __future__ import annotations

from moecli.replicate.bench import Bench, Outcome, Quantity, metric

SHARES = (0.0, 0.02, 0.05)
WORSE = 1.05  # times the error that Gaussian experts have without outliers


def replicate(bench: Bench) -> Outcome:
    return against_gaussian(bench, "Student-t")


def against_gaussian(bench: Bench, label: str) -> Outcome:
    """The error of this experiment's family beside the Gaussian's, at every share of outliers."""
    quantities, holds = [], True
    for share in SHARES[-1:] if bench.small else SHARES:
        seeds = [(f"task.share={share}", f"task.split_seed={seed}") for seed in bench.seeds(3)]
        robust = metric([bench.train(*words) for words in seeds], "test/rmse")
        gaussian = metric([bench.train(*words, "family=gaussian") for words in seeds], "test/rmse")
        quantities += [
            Quantity(f"rmse with {share:.0%} outliers, {label}", robust),
            Quantity(f"rmse with {share:.0%} outliers, Gaussian", gaussian),
        ]
        holds &= robust < gaussian if share else robust < WORSE * gaussian
    rule = (
        f"{label} experts have the lower error at 2 % and 5 % of outliers, and at most {WORSE:g} times as much at none"
    )
    return Outcome(quantities, rule, holds)
