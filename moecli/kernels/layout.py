"""Where rows of expert work lie, and how a stretch of them meets the experts' matrices."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate, pairwise
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from moecli.kernels import matmul


class Stretch(Protocol):
    """Some rows, and the products of their experts; weights are (E, K, N), biases (E, N)."""

    @property
    def places(self) -> slice: ...

    def product(self, a: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        """(P, K) -> (P, N)."""

    def add_product(self, total: Tensor, a: Tensor, weight: Tensor) -> Tensor:
        """``product`` added to ``total`` (P, N), which may be overwritten."""

    def gradient(self, a: Tensor, b: Tensor, whole: Tensor | None) -> Tensor:
        """``whole`` (E, K, N) with each expert's a.T @ b of a (P, K), b (P, N) in its place."""

    def sums(self, a: Tensor, whole: Tensor | None) -> Tensor:
        """``whole`` (E, N) with each expert's sum of a (P, N) in its place."""

    def spread(self, vectors: Tensor) -> Tensor:
        """Each expert's vector at its places: (E, N) -> (P, N), or (1, N) where all are of one expert."""


@dataclass(frozen=True)
class One:
    """The rows of one expert: plain products, whose operands stay in the cache."""

    places: slice
    expert: int
    num_experts: int

    def product(self, a: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        return matmul.product(a, weight[self.expert], None if bias is None else bias[self.expert])

    def add_product(self, total: Tensor, a: Tensor, weight: Tensor) -> Tensor:
        return matmul.add_product(total, a, weight[self.expert])

    def gradient(self, a: Tensor, b: Tensor, whole: Tensor | None) -> Tensor:
        whole = a.new_empty(self.num_experts, a.shape[1], b.shape[1]) if whole is None else whole
        matmul.gradient(a, b, whole[self.expert])
        return whole

    def sums(self, a: Tensor, whole: Tensor | None) -> Tensor:
        whole = a.new_empty(self.num_experts, a.shape[1]) if whole is None else whole
        torch.sum(a, 0, out=whole[self.expert])
        return whole

    def spread(self, vectors: Tensor) -> Tensor:
        return vectors[self.expert, None]


@dataclass(frozen=True)
class Even:
    """All experts, with equally many places each: batched products."""

    places: slice
    num_experts: int
    size: int  # places of each

    def _table(self, a: Tensor) -> Tensor:  # (E C, K) -> (E, C, K)
        return a.view(self.num_experts, self.size, a.shape[-1])

    def product(self, a: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        a = self._table(a)
        return (torch.bmm(a, weight) if bias is None else torch.baddbmm(bias[:, None], a, weight)).flatten(0, 1)

    def add_product(self, total: Tensor, a: Tensor, weight: Tensor) -> Tensor:
        return self._table(total).baddbmm_(self._table(a), weight).flatten(0, 1)

    def gradient(self, a: Tensor, b: Tensor, whole: Tensor | None) -> Tensor:
        return self._table(a).mT @ self._table(b)

    def sums(self, a: Tensor, whole: Tensor | None) -> Tensor:
        return self._table(a).sum(1)

    def spread(self, vectors: Tensor) -> Tensor:
        return vectors.repeat_interleave(self.size, 0)


@dataclass(frozen=True)
class Ragged:
    """All experts, with any number of rows each: ``grouped_mm``, which on a GPU asks the host nothing."""

    places: slice
    expert: Tensor  # (R,)
    ends: Tensor  # (E,) int32

    def product(self, a: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        y = F.grouped_mm(a, weight, offs=self.ends)
        return y if bias is None else y.add_(self.spread(bias))

    def add_product(self, total: Tensor, a: Tensor, weight: Tensor) -> Tensor:
        return total.add_(self.product(a, weight))

    def gradient(self, a: Tensor, b: Tensor, whole: Tensor | None) -> Tensor:
        return F.grouped_mm(a.T, b, offs=self.ends)

    def sums(self, a: Tensor, whole: Tensor | None) -> Tensor:
        return a.new_zeros(len(self.ends), a.shape[1]).index_add_(0, self.expert, a)

    def spread(self, vectors: Tensor) -> Tensor:
        return vectors[self.expert]


@dataclass(frozen=True)
class Layout:
    """Rows sorted by expert, at places that may be padded: a padded place holds token 0, and weighs nothing."""

    rows: Tensor  # (R,) int64 token of each row
    num_tokens: int
    stretches: Sequence[Stretch]
    at: Tensor | None = None  # (R,) int64 place of each row; None: places are rows

    @property
    def num_places(self) -> int:
        return self.stretches[-1].places.stop

    @property
    def largest(self) -> int:
        """Places of the largest stretch."""
        return max(stretch.places.stop - stretch.places.start for stretch in self.stretches)

    @cached_property
    def token(self) -> Tensor:  # (P,) int64
        return self.spread(self.rows)

    @cached_property
    def bags(self) -> tuple[Tensor, Tensor]:
        """The places of token 0, then those of token 1, ... (R,), and where each token's begin and end (N + 1,)."""
        order = self.rows.argsort(stable=True)
        ends = self.rows.new_zeros(self.num_tokens + 1).index_add(0, self.rows + 1, torch.ones_like(self.rows))
        return order if self.at is None else self.at[order], ends.cumsum(0)

    def spread(self, rows: Tensor) -> Tensor:  # (R, ...) -> (P, ...), zero where nothing is
        if self.at is None:
            return rows
        return rows.new_zeros(self.num_places, *rows.shape[1:]).index_copy_(0, self.at, rows)

    def gather(self, places: Tensor) -> Tensor:  # (P, ...) -> (R, ...)
        return places if self.at is None else places.index_select(0, self.at)

    def combine(self, places: Tensor, weight: Tensor | None = None) -> Tensor:
        """Sum of each token's places, each times its weight: (P, Y), (P,) -> (N, Y)."""
        bag, ends = self.bags
        weight = None if weight is None else weight[bag]
        return F.embedding_bag(bag, places, ends, mode="sum", per_sample_weights=weight, include_last_offset=True)


def ragged(rows: Tensor, expert: Tensor, counts: Tensor, num_tokens: int) -> Layout:
    stretch = Ragged(slice(0, len(rows)), expert, counts.cumsum(0).to(torch.int32))
    return Layout(rows, num_tokens, [stretch])


def even(rows: Tensor, num_experts: int, num_tokens: int) -> Layout:
    """Of groups that are equal as they are."""
    return Layout(rows, num_tokens, [Even(slice(0, len(rows)), num_experts, len(rows) // num_experts)])


def padded(rows: Tensor, expert: Tensor, counts: Tensor, num_tokens: int, multiple: int) -> Layout:
    """Every group padded to the largest one."""
    num_experts = len(counts)
    size = _up(int(counts.max()), multiple)
    at = _places(expert, counts, torch.arange(num_experts, device=rows.device) * size)
    return Layout(rows, num_tokens, [Even(slice(0, num_experts * size), num_experts, size)], at)


def each(rows: Tensor, expert: Tensor, counts: Tensor, num_tokens: int, multiple: int) -> Layout:
    """Every expert by itself, its group padded to a multiple of so many rows."""
    sizes = [_up(count, multiple) for count in counts.tolist()]
    bounds = list(accumulate(sizes, initial=0))
    stretches = [One(slice(a, b), e, len(sizes)) for e, (a, b) in enumerate(pairwise(bounds))]
    at = None if multiple == 1 else _places(expert, counts, torch.tensor(bounds[:-1], device=rows.device))
    return Layout(rows, num_tokens, stretches, at)


def _places(expert: Tensor, counts: Tensor, starts: Tensor) -> Tensor:
    """Where rows (R,) go whose groups begin at ``starts`` (E,)."""
    return torch.arange(len(expert), device=expert.device) + (starts - counts.cumsum(0) + counts)[expert]


def _up(number: int, multiple: int) -> int:
    return -(-number // multiple) * multiple
