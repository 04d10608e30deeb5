"""How early routing takes the form that it ends in, on the same tokens at every evaluation."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from moecli.analysis.chance import AgainstChance, Documents, against, num_draws

Ints = NDArray[np.integer]


def saturation(expert_t: Ints, expert_T: Ints) -> float:
    """Mean over tokens of |E_t and E_T in common| / |E_T|: 1 where routing is the final one (OLMoE, 2024, §5.1).

    Both (n, K) name the experts of the same tokens, -1 where a place is empty; tokens without an expert at the end
    are left out, and NaN where all are.  In [0, 1]; two unrelated routings with k of E experts share k / E.
    """
    return _mean_share(_common(_used(expert_t), _used(expert_T)), (expert_T >= 0).sum(1))


def against_chance(expert_t: Ints, expert_T: Ints, document: Ints, seed: int = 0) -> AgainstChance:
    """Saturation, and what it would be if both had only their loads and documents in common (documents exchanged)."""
    value, documents = saturation(expert_t, expert_T), Documents.of(document)
    if not documents.enough:
        return against(value, np.empty(0))
    before, after = _used(expert_t[documents.order]), _used(expert_T[documents.order])
    size, draw = (after >= 0).sum(1), np.random.default_rng(seed)
    draws = num_draws(before.size * after.shape[1])
    others = (documents.exchanged(draw) for _ in range(draws))
    return against(value, np.array([_mean_share(_common(before, after[i]), size[i]) for i in others]))


def switched(first_t: Ints, first_T: Ints) -> float:
    """Share of tokens, of those that both serve, whose first expert changed: (n,), (n,), in [0, 1] (LibMoE, 2024)."""
    both = (first_t >= 0) & (first_T >= 0)
    return float((first_t != first_T)[both].mean()) if both.any() else float("nan")


def _used(expert: Ints) -> Ints:
    """Without the places that are empty for all tokens."""
    return expert[:, (expert >= 0).any(0)]


def _common(expert_a: Ints, expert_b: Ints) -> Ints:  # (n, K), (n, K') -> (n,)
    common = np.zeros(len(expert_a), dtype=np.int64)
    for a in expert_a.T:
        for b in expert_b.T:
            common += (a == b) & (a >= 0)
    return common


def _mean_share(part: Ints, whole: Ints) -> float:
    kept = whole > 0
    return float((part[kept] / whole[kept]).mean()) if kept.any() else float("nan")
