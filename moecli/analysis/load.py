"""How evenly work is spread over experts: one load (E,) of counts or mass -> numbers.

Without any work there is nothing to compare, so every number but ``dead_share`` is NaN.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from moecli.training.health import effective_experts

Floats = NDArray[np.floating]
TAIL = 0.2  # of the experts, the most or the least used


def cv_squared(load: Floats) -> float:
    """Variance over squared mean, from 0 where even to E - 1 where one expert does all (Shazeer et al., 2017, eq. 7)."""
    return float(load.var() / load.mean() ** 2)


def max_over_mean(load: Floats) -> float:
    """The busiest expert's work in fair shares, from 1 to E (Shazeer et al., 2017, table 6)."""
    return float(load.max() / load.mean())


def max_violation(load: Floats) -> float:
    """(max - mean) / mean, from 0 to E - 1 (Wang et al., 2024)."""
    return max_over_mean(load) - 1


def normalised_entropy(load: Floats) -> float:
    """exp(entropy) / E, the share of experts that is effectively in use, from 1 / E to 1 (LibMoE, 2024)."""
    return effective_experts((load / load.sum()).tolist()) / len(load)


def gini(load: Floats) -> float:
    """Mean difference of two experts over twice the mean, from 0 to 1 - 1 / E (Gini, 1912)."""
    rank = 2 * np.arange(1, len(load) + 1) - len(load) - 1
    return float((rank * np.sort(load)).sum() / (len(load) * load.sum()))


def dead_share(load: Floats) -> float:
    """Share of experts that did no work at all, in [0, 1]."""
    return float((load == 0).mean())


def top_share(load: Floats) -> float:
    """Share of the work that the most used fifth of the experts does (NLLB, 2022): 1 / 5 at least, where E divides by 5."""
    return float(np.sort(load)[-_tail(load) :].sum() / load.sum())


def bottom_share(load: Floats) -> float:
    """Share of the work that the least used fifth of the experts does (NLLB, 2022)."""
    return float(np.sort(load)[: _tail(load)].sum() / load.sum())


def _tail(load: Floats) -> int:
    return max(1, math.ceil(TAIL * len(load)))


EVENNESS: dict[str, Callable[[Floats], float]] = {
    f.__name__: f
    for f in (cv_squared, max_over_mean, max_violation, normalised_entropy, gini, dead_share, top_share, bottom_share)
}


def evenness(load: NDArray) -> dict[str, float]:
    """All of them, of one load (E,)."""
    work = np.asarray(load, dtype=np.float64)
    if work.sum() <= 0:
        return {name: 1.0 if name == "dead_share" else math.nan for name in EVENNESS}
    return {name: f(work) for name, f in EVENNESS.items()}
