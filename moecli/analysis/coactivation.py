"""Which experts serve the same tokens: (n, K) chosen experts -> (E, E) shares."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

AT_ONCE = 2**16  # tokens whose table of experts is held at a time


def coactivation(expert: NDArray[np.integer], num_experts: int, adjacent: bool = False) -> NDArray[np.floating]:
    """C[i, j] = N_ij / N_i, the share of expert i's tokens that expert j serves too (Muennighoff et al., 2024, §5.2).

    ``expert`` (n, K) holds each token's experts, -1 where a place is empty, each expert at most once a token.
    Returns (E, E), not symmetric, its diagonal 0, a row of zeros for an expert without tokens; every value lies in
    [0, 1].  With ``adjacent`` a pair counts only where the two are neighbours among the token's experts, in the order
    they are given in, i before j or j before i: that is what OLMoE's own script counts.
    """
    together = _adjacent(expert, num_experts) if adjacent else _together(expert, num_experts)
    served = np.bincount(expert[expert >= 0].ravel(), minlength=num_experts)
    np.fill_diagonal(together, 0.0)
    return together / np.maximum(served, 1)[:, None]


def _together(expert: NDArray[np.integer], num_experts: int) -> NDArray[np.floating]:
    """N_ij for all pairs: A^T A of the tokens' table A (n, E) of zeros and ones."""
    counts = np.zeros((num_experts, num_experts))
    for start in range(0, len(expert), AT_ONCE):
        part = expert[start : start + AT_ONCE]
        table = np.zeros((len(part), num_experts + 1), np.float32)  # its last column takes the empty places
        table[np.arange(len(part))[:, None], part] = 1.0
        counts += table[:, :-1].T @ table[:, :-1]
    return counts


def _adjacent(expert: NDArray[np.integer], num_experts: int) -> NDArray[np.floating]:
    before, after = expert[:, :-1].ravel().astype(np.int64), expert[:, 1:].ravel().astype(np.int64)
    both = (before >= 0) & (after >= 0)
    key = before[both] * num_experts + after[both]
    counts = np.bincount(key, minlength=num_experts**2).reshape(num_experts, num_experts).astype(float)
    return counts + counts.T
