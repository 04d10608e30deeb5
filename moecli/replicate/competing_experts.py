"""Two experts of nearly equal ability: whether the lesser one starves (Jacobs et al., 1991).

Under the expected error of an expert drawn by the gate, an expert's gradient is weighted by its share, and the share grows
where the error is below the other's.  With a constant gate the two experts have the same rows to win, so nothing but that
feedback tells them apart.  The same start is fitted by the likelihood of the mixture, where the shares are responsibilities.
"""

from __future__ import annotations

import numpy as np

from moecli.record.folder import Run
from moecli.record.trace import TraceReader
from moecli.replicate.bench import Bench, Outcome, Quantity

STARVED = 0.05  # share of the lesser expert


def replicate(bench: Bench) -> Outcome:
    runs = [bench.train(f"seed={seed}") for seed in bench.seeds(5)]
    likelihood = [bench.train(f"seed={seed}", "objective=nll") for seed in bench.seeds(5)]
    shares = [lesser(run) for run in runs]
    starved = sum(share[-1] < STARVED for share in shares)
    return Outcome(
        [
            Quantity("share of the lesser expert at the start, mean", float(np.mean([s[0] for s in shares]))),
            Quantity("half way", float(np.mean([share[len(share) // 2] for share in shares]))),
            Quantity("at the end", float(np.mean([share[-1] for share in shares]))),
            Quantity(f"seeds in which it ends below {STARVED:g}", f"{starved} of {len(runs)}"),
            Quantity("at the end, by likelihood", float(np.mean([lesser(run)[-1] for run in likelihood]))),
        ],
        f"in every seed the lesser expert ends with less than {STARVED:g} of the gate's weight",
        starved == len(runs),
    )


def lesser(run: Run) -> np.ndarray:
    """(S,): over training, the share of the expert that has less of it at the end."""
    usage = TraceReader(run.path).usage("layer0")
    share = usage["mass"] / usage["tokens"][:, None]
    return share[:, share[-1].argmin()]
