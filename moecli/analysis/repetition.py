"""Whether a token goes where the one before it went."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from moecli.analysis.chance import AgainstChance, Documents, against, num_draws

Ints = NDArray[np.integer]


def repetition(expert: Ints, sequence: Ints, position: Ints, choices: int = 1) -> float:
    """Share of consecutive tokens of a sequence that have one of their first ``choices`` experts in common.

    With one choice P(first expert of t + 1 = first expert of t), with two "first or second choice" (Jiang et al.,
    2024, table 5).  ``expert`` (n, K), heaviest first, -1 where a place is empty; ``sequence`` and ``position`` (n,)
    say which tokens follow each other, in any order; NaN where none do.
    """
    before, after = _followers(sequence, position)
    again = _again(expert[before, :choices], expert[after, :choices])
    return float(again.mean()) if len(again) else float("nan")


def against_chance(
    expert: Ints, sequence: Ints, position: Ints, document: Ints, choices: int = 1, seed: int = 0
) -> AgainstChance:
    """Repetition, and what it would be if the token before were another document's (documents exchanged)."""
    value = repetition(expert, sequence, position, choices)
    before, after = _followers(sequence, position)
    documents = Documents.of(document[after])
    if not documents.enough:
        return against(value, np.empty(0))
    a, b = (expert[index[documents.order], :choices] for index in (before, after))
    draw, draws = np.random.default_rng(seed), num_draws(b.size * choices)
    return against(value, np.array([_again(a[documents.exchanged(draw)], b).mean() for _ in range(draws)]))


def chance_at(load: NDArray[np.number]) -> float:
    """Of routing that ignores the token before, at the given load (E,) of first choices: sum of squared shares."""
    return float(np.square(load / max(load.sum(), 1)).sum())


def _followers(sequence: Ints, position: Ints) -> tuple[Ints, Ints]:
    """Indices (m,), (m,) of the tokens t and t + 1 of a sequence."""
    order = np.lexsort((position, sequence))
    sequence, position = sequence[order], position[order]
    follows = (sequence[1:] == sequence[:-1]) & (position[1:] == position[:-1] + 1)
    return order[:-1][follows], order[1:][follows]


def _again(before: Ints, after: Ints) -> NDArray[np.bool_]:
    """Whether two tokens share an expert: (m, c), (m, c) -> (m,)."""
    again = np.zeros(len(before), dtype=bool)
    for a in before.T:
        for b in after.T:
            again |= (a == b) & (a >= 0)
    return again
