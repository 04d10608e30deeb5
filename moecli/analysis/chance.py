"""What a number would be if experts ignored the label: whole documents change places, never single tokens.

Tokens of one document are not independent, so a null that shuffles tokens calls everything significant.  Here each
document keeps its routing and takes the labels of another one, from a random place on and round its end.  Labels that
are the same throughout a document are thereby permuted among documents; labels that change within it, such as the
position, keep their own order.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from moecli.analysis import contingency

Ints = NDArray[np.integer]
Floats = NDArray[np.floating]
FEWEST_DOCUMENTS = 8  # below which permutations mostly repeat what was observed
DRAWS = (39, 79, 199, 399, 999)  # each has order statistics that enclose 95 % exactly
WORK = 1e7  # tokens or cells gone through for one null, which keeps it well below a second
CELLS = 2**21  # of the tables, and tokens of the exchanges, held at a time
TIE = 1e-12  # two values this close are equal: rounding decides nothing


@dataclass(frozen=True)
class AgainstChance:
    """A number beside what it would be if experts ignored the label; NaN where too few documents tell."""

    value: float
    chance: float  # mean of the null
    chance_sd: float
    chance_low: float  # the interval holds 95 % of the null
    chance_high: float
    p: float  # share of the null at least as far from it, the observed one counted in


def against(value: float, null: Floats, less: bool = False) -> AgainstChance:
    """Hold a value against draws (P,) of its null; with ``less`` the small values are the remarkable ones.

    P is one of ``DRAWS``: were the value a draw like the others, the interval between the (P + 1) / 40-th draws from
    both ends would hold it with probability 95 %.
    """
    if not len(null):
        return AgainstChance(value, *[float("nan")] * 5)
    ordered, tail = np.sort(null), (len(null) + 1) // 40
    beyond = (null <= value + TIE) if less else (null >= value - TIE)
    p = (1 + int(beyond.sum())) / (len(null) + 1)
    return AgainstChance(
        value, float(null.mean()), float(null.std()), float(ordered[tail - 1]), float(ordered[-tail]), p
    )


def num_draws(work: float) -> int:
    """The most draws whose total ``work`` stays within ``WORK``, at least the fewest that give an interval."""
    return max((draws for draws in DRAWS if draws * work <= WORK), default=DRAWS[0])


@dataclass(frozen=True)
class Documents:
    """Tokens laid out document by document."""

    order: Ints  # (n,) the tokens, sorted by document and within one as they came
    length: Ints  # (D,)

    @classmethod
    def of(cls, document: Ints) -> Documents:
        order = np.argsort(document, kind="stable")
        _, length = np.unique(document, return_counts=True)
        return cls(order, length)

    def __len__(self) -> int:
        return len(self.length)

    @property
    def enough(self) -> bool:
        return len(self) >= FEWEST_DOCUMENTS

    @cached_property
    def begin(self) -> Ints:  # (D,)
        return np.cumsum(self.length) - self.length

    @cached_property
    def place(self) -> Ints:
        """Each token's place in its document: (n,), in 32 bits, in which the exchange is three times as fast."""
        return (np.arange(len(self.order)) - np.repeat(self.begin, self.length)).astype(np.int32)

    def exchanged(self, draw: np.random.Generator) -> Ints:
        """For the tokens in ``order``: whose label each takes, as an index (n,) into ``order``."""
        other = draw.permutation(len(self))
        length, begin = self.length[other].astype(np.int32), self.begin[other].astype(np.int32)
        place = self.place + np.repeat(draw.integers(0, length, dtype=np.int32), self.length)
        place %= np.repeat(length, self.length)
        place += np.repeat(begin, self.length)
        return place

    def same(self, label: Ints) -> bool:
        """Whether no document has two labels; ``label`` (n,) in ``order``."""
        return bool((label == np.repeat(label[self.begin], self.length)).all())


def null_tables(
    first: Ints, labels: dict[str, Ints], sizes: dict[str, int], num_experts: int, documents: Documents, seed: int = 0
) -> Iterator[tuple[str, Floats]]:
    """Stacks (P', L, E) of each label's table under the null, by name, until all draws are through.

    ``first`` and every label are (n,), negative where there is none.  All labels that change within documents are
    exchanged together; one that does not is counted by document once, and its documents permuted.
    """
    first, labels = first[documents.order], {name: label[documents.order] for name, label in labels.items()}
    fixed = {name for name, label in labels.items() if documents.same(label)}
    for name in sorted(fixed):
        yield from (
            (name, stack) for stack in _permuted(first, labels[name], sizes[name], num_experts, documents, seed)
        )
    moving = {name: label for name, label in labels.items() if name not in fixed}
    if moving:
        yield from _exchanged(first, moving, sizes, num_experts, documents, seed)


def _permuted(
    first: Ints, label: Ints, num_labels: int, num_experts: int, documents: Documents, seed: int
) -> Iterator[Floats]:
    number = np.repeat(np.arange(len(documents)), documents.length)
    counts = contingency.count(number, first, len(documents), num_experts)  # (D, E)
    yield from permuted_sums(counts, label[documents.begin], num_labels, seed)


def permuted_sums(counts: contingency.Table, label: Ints, num_labels: int, seed: int = 0) -> Iterator[Floats]:
    """Sums of documents' rows ``counts`` (D, E) by a label of each document (D,), the labels permuted: (P', L, E)."""
    draws, most = num_draws(len(label) * num_labels), max(1, CELLS // max(len(label), 1))
    draw, work = np.random.default_rng(seed), counts.astype(float)
    for start in range(0, draws, most):
        shuffled = draw.permuted(np.tile(label, (min(most, draws - start), 1)), axis=1)  # (P', D)
        yield np.stack([(shuffled == value) @ work for value in range(num_labels)], axis=1)


def _exchanged(
    first: Ints, labels: dict[str, Ints], sizes: dict[str, int], num_experts: int, documents: Documents, seed: int
) -> Iterator[tuple[str, Floats]]:
    # negative ones go into a row of their own, left out at the end
    base = {name: np.where(label < 0, sizes[name], label).astype(np.int64) for name, label in labels.items()}
    base = {name: label * (num_experts + 1) for name, label in base.items()}
    expert = np.where(first < 0, num_experts, first).astype(np.int64)
    draw, draws = np.random.default_rng(seed), num_draws(len(first))
    widest = max((sizes[name] + 1) * (num_experts + 1) for name in labels)
    most = max(1, CELLS // max(widest, len(first)))
    for start in range(0, draws, most):
        others = [documents.exchanged(draw) for _ in range(min(most, draws - start))]
        for name, label in base.items():
            yield name, np.stack([_counted(label[i] + expert, sizes[name], num_experts) for i in others]).astype(float)


def _counted(key: Ints, num_labels: int, num_experts: int) -> Ints:
    """(L, E), without the row and the column of those that have none."""
    shape = num_labels + 1, num_experts + 1
    return np.bincount(key, minlength=shape[0] * shape[1]).reshape(shape)[:-1, :-1]
