"""Whether an expert is fixed by the token's own id: share of each id's tokens that each expert serves."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

FEWEST = 10  # tokens of an id, below which its share says little (as in the tables of OLMoE's script)


@dataclass(frozen=True)
class Vocabulary:
    """``share[v, e]``: of the tokens with id ``ids[v]``, those that expert e serves."""

    ids: NDArray[np.integer]  # (V,) those with enough tokens, in order
    count: NDArray[np.integer]  # (V,) tokens of each
    share: NDArray[np.floating]  # (V, E) in [0, 1]; a row adds up to the mean number of experts a token

    @property
    def specialisation(self) -> float:
        """Mean over ids of the largest share; NaN where no id is frequent enough."""
        return float(self.share.max(1).mean()) if len(self.ids) else float("nan")

    def top(self, expert: int, most: int = 10) -> list[tuple[int, float, int]]:
        """The ids that an expert serves the largest share of: (id, share, tokens of the id), the more frequent first."""
        order = np.lexsort((-self.count, -self.share[:, expert]))[:most]
        return [(int(self.ids[v]), float(self.share[v, expert]), int(self.count[v])) for v in order]


def vocabulary(
    token: NDArray[np.integer], expert: NDArray[np.integer], num_experts: int, fewest: int = FEWEST
) -> Vocabulary:
    """N_{v,e} / N_v for every id v of at least ``fewest`` tokens (Muennighoff et al., 2024, §5.4).

    ``token`` (n,) ids (negative: padding, left out), ``expert`` (n, K) with -1 where a place is empty; tokens that
    nobody serves count among N_v.  Unrelated routing has k / E everywhere.
    """
    kept = token >= 0
    ids, row, count = np.unique(token[kept], return_inverse=True, return_counts=True)
    chosen = expert[kept].astype(np.int64)
    key = (row[:, None] * num_experts + chosen)[chosen >= 0]
    table = np.bincount(key, minlength=len(ids) * num_experts).reshape(len(ids), num_experts)
    often = count >= fewest
    return Vocabulary(ids[often], count[often], table[often] / count[often, None])
