"""What experts specialised in, from the routing trace: shares, mutual information, and their chance level.

Arrays are those of ``TraceReader.tokens``: expert and weight (n, K), the rest (n,).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.integer]
Floats = NDArray[np.floating]
FEWEST_UNITS = 8  # below which permutations mostly repeat what was observed
PERMUTATIONS = 100  # of the documents, for a chance level


@dataclass(frozen=True)
class AgainstChance:
    """A number beside what it would be if experts ignored the label."""

    value: float
    chance: float
    chance_sd: float


def shares(tokens: dict[str, NDArray], num_experts: int) -> Floats:
    """Each token's work, split over the experts that served it: (n, E), rows sum to one or zero."""
    expert, weight = tokens["expert"].astype(np.int64), tokens["weight"].astype(np.float64)
    table = np.zeros((len(expert), num_experts))
    rows = np.arange(len(expert))[:, None]
    np.add.at(table, (np.broadcast_to(rows, expert.shape), np.maximum(expert, 0)), np.where(expert < 0, 0.0, weight))
    return table / np.maximum(table.sum(1, keepdims=True), 1e-30)


def by_label(share: Floats, label: Ints, num_labels: int) -> Floats:
    """Work by label and expert: (L, E) sums of shares."""
    table = np.zeros((num_labels, share.shape[1]))
    np.add.at(table, label, share)
    return table


def nmi(a: Ints, b: Ints) -> float:
    """Mutual information over the mean of the two entropies: 0 when unrelated, 1 when the same partition."""
    if not len(a):
        return 0.0
    table = np.zeros((int(a.max()) + 1, int(b.max()) + 1))
    np.add.at(table, (a, b), 1.0)
    joint = table / table.sum()
    rows, columns = joint.sum(1), joint.sum(0)
    mutual = entropy(rows) + entropy(columns) - entropy(joint.ravel())
    mean = (entropy(rows) + entropy(columns)) / 2
    return float(max(mutual, 0.0) / mean) if mean > 0 else 0.0


def entropy(probs: Floats) -> float:
    """In nats."""
    kept = probs[probs > 0]
    return float(-(kept * np.log(kept)).sum())


def nmi_against_chance(first: Ints, label: Ints, document: Ints, seed: int = 0) -> AgainstChance:
    """NMI of each token's first expert and a label; chance permutes whole documents, not tokens.

    Tokens of one document are not independent, so a token-wise null would call everything significant.
    With fewer than eight documents there is no chance level to tell: NaN.
    """
    served = first >= 0
    first, label, document = first[served], label[served], document[served]
    order = np.argsort(document, kind="stable")
    first, label = first[order], label[order]
    blocks = np.split(label, np.flatnonzero(np.diff(document[order])) + 1)
    if len(blocks) < FEWEST_UNITS:
        return AgainstChance(nmi(first, label), float("nan"), float("nan"))
    draw = np.random.default_rng(seed)
    null = [nmi(first, _shuffled(blocks, draw)) for _ in range(PERMUTATIONS)]
    return AgainstChance(nmi(first, label), float(np.mean(null)), float(np.std(null)))


def _shuffled(blocks: list[Ints], draw: np.random.Generator) -> Ints:
    return np.concatenate([blocks[i] for i in draw.permutation(len(blocks))])


def serves(table: Floats, names: list[str], expert: int, most: int = 2) -> list[tuple[str, float]]:
    """The labels that make up most of an expert's work: (name, share of its work)."""
    work = table[:, expert]
    if work.sum() <= 0:
        return []
    top = np.argsort(-work, kind="stable")[:most]
    return [(names[label], float(work[label] / work.sum())) for label in top if work[label] > 0]
