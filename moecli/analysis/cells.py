"""Which experts serve which label more than chance would have it, with the false discoveries kept few."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from moecli.analysis import chance
from moecli.analysis.chance import Documents

Ints = NDArray[np.integer]
Floats = NDArray[np.floating]
FALSE = 0.05  # the share of false ones among those called above chance


@dataclass(frozen=True)
class Cells:
    """Of each label's tokens the share that each expert serves, all (L, E), beside what chance alone would give."""

    share: Floats  # rows sum to one (to zero for a label without tokens)
    chance: Floats
    chance_low: Floats
    chance_high: Floats
    p: Floats  # one-sided, NaN where too few documents tell
    q: Floats  # adjusted: calling all cells with q <= 0.05 above chance errs in about 5 % of those calls

    @property
    def above(self) -> NDArray[np.bool_]:
        return self.q <= FALSE


def cells(
    expert: Ints, weight: Floats, label: Ints, document: Ints, num_labels: int, num_experts: int, seed: int = 0
) -> Cells:
    """``expert`` and ``weight`` (n, K) as in the trace, -1 and 0 where there is none; ``label``, ``document`` (n,).

    Each token counts once, split over its experts by weight; tokens without label (-1) or expert are left out.
    A cell's p is the share of all cells' null draws, each standardised by its own cell's mean and deviation, that lie
    as high (the pooled permutation null of Storey & Tibshirani, 2003): with few draws it still tells small p apart.
    q are Benjamini & Hochberg's (1995).
    """
    expert, work, label, document = _served(expert, weight, label, document)
    value = _rows(_table(label, expert, work, num_labels, num_experts))
    documents = Documents.of(document)
    if not documents.enough:
        unknown = np.full_like(value, np.nan)
        return Cells(value, *[unknown] * 5)
    order = documents.order
    drawn = _null(expert[order], work[order], label[order], documents, num_labels, num_experts, seed)
    null = np.concatenate([_rows(stack) for stack in drawn])  # (P, L, E)
    tail = (len(null) + 1) // 40
    ordered = np.sort(null, axis=0)
    p = _pooled_p(value, null)
    return Cells(value, null.mean(0), ordered[tail - 1], ordered[-tail], p, adjusted(p))


def _served(expert: Ints, weight: Floats, label: Ints, document: Ints) -> tuple[Ints, Floats, Ints, Ints]:
    """Of the tokens that have a label and an expert: experts, the shares of their work (n, K), label, document."""
    used = (expert >= 0).any(0)
    work = np.where(expert >= 0, weight, 0.0)[:, used]
    kept = (label >= 0) & (work.sum(1) > 0)
    expert, work = np.maximum(expert[:, used], 0)[kept].astype(np.int64), work[kept]
    return expert, work / work.sum(1, keepdims=True), label[kept].astype(np.int64), document[kept]


def _table(row: Ints, expert: Ints, work: Floats, num_rows: int, num_experts: int) -> Floats:
    """Sums of ``work`` (n, K) by a number of each token (n,) and by expert: (M, E)."""
    key = (row[:, None] * num_experts + expert).ravel()
    counts = np.bincount(key, work.ravel(), minlength=num_rows * num_experts).astype(np.float64)
    return counts.reshape(num_rows, num_experts)


def _null(
    expert: Ints, work: Floats, label: Ints, documents: Documents, num_labels: int, num_experts: int, seed: int
) -> Iterator[Floats]:
    """Tables (P', L, E) with documents exchanged; all arrays in the documents' order."""
    if documents.same(label):
        number = np.repeat(np.arange(len(documents)), documents.length)
        by_document = _table(number, expert, work, len(documents), num_experts)
        yield from chance.permuted_sums(by_document, label[documents.begin], num_labels, seed)
        return
    draw = np.random.default_rng(seed)
    for _ in range(chance.num_draws(work.size)):
        yield _table(label[documents.exchanged(draw)], expert, work, num_labels, num_experts)[None]


def _rows(table: Floats) -> Floats:
    return table / np.maximum(table.sum(-1, keepdims=True), 1e-30)


def _pooled_p(value: Floats, null: Floats) -> Floats:
    """The observed table is one draw more: counted in, it can be no stranger than the draws allow."""
    drawn = np.concatenate([null, value[None]])
    spread = drawn.std(0)
    moves = spread > 1e-9
    z = (drawn - drawn.mean(0))[:, moves] / spread[moves]  # (P + 1, M)
    pool = np.sort(z.ravel())
    p = np.ones(value.shape)
    p[moves] = (len(pool) - np.searchsorted(pool, z[-1] - chance.TIE)) / max(len(pool), 1)
    return p


def adjusted(p: Floats) -> Floats:
    """Benjamini & Hochberg's (1995) step-up values of any shape: the least of p_(j) m / j over j >= the rank."""
    order = p.ravel().argsort()
    steps = p.ravel()[order] * p.size / np.arange(1, p.size + 1)
    least = np.minimum.accumulate(steps[::-1])[::-1]
    return np.minimum(least[order.argsort()], 1.0).reshape(p.shape)
