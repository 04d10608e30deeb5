"""How tokens reach experts and come back: two linear maps, held as one value.

Every mixture layer is ``y = combine(experts(dispatch(x)))``.  The axis letters of the whole
project:

    N  tokens        E  experts        R  rows of expert work (sum of counts)
    G  groups        S  tokens of a group            P  slots per expert and group
    K  choices       D  input          Y  output

``Dense`` sends each token to each expert, ``Sparse`` follows a list of token-expert edges,
``Slots`` feeds experts weighted averages of tokens.  The first two keep one row per
(token, expert) pair, so they also know what a *mixture of densities* is; a slot is not a
token, so ``Slots`` offers no ``log_mix``.  A zero weight is an absent edge, never log 0.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor


@dataclass(frozen=True)
class Groups:
    """Rows lie sorted by expert; ``counts`` says how many belong to each."""

    counts: Tensor  # (E,) int64
    even: bool = False  # all counts equal: one batched matmul serves every expert

    def split(self, rows: Tensor) -> tuple[Tensor, ...]:  # (R, *item) -> E x (counts[e], *item)
        return rows.split(self.counts.tolist())

    def spread(self, per_expert: Tensor, num_rows: int) -> Tensor:
        """Each expert's parameter, once for each of its rows: (E, *item) -> (R, *item)."""
        if self.even:
            item = per_expert.shape[1:]
            return per_expert[:, None].expand(-1, num_rows // len(per_expert), *item).reshape(num_rows, *item)
        return per_expert.repeat_interleave(self.counts, dim=0, output_size=num_rows)


@dataclass(frozen=True)
class Batched:
    """Tokens laid out by group, ragged groups padded: a table (G, S) of token indices."""

    index: Tensor  # (G, S) int64 token at each place; N where the place is empty
    size: Tensor  # (G,) int64 tokens of each group
    num_tokens: int

    @classmethod
    def by(cls, group: Tensor) -> Batched:
        """Lay tokens out by any integer vector ``group`` (N,), in the order of their index."""
        _, dense, size = group.unique(return_inverse=True, return_counts=True)
        order = dense.argsort(stable=True)
        place = torch.arange(len(group), device=group.device) - (size.cumsum(0) - size)[dense[order]]
        index = group.new_full((len(size), int(size.max()) if len(size) else 0), len(group))
        return cls(index.index_put((dense[order], place), order), size, len(group))

    @cached_property
    def full(self) -> bool:
        """No place is empty: all groups are equal."""
        return self.index.numel() == self.num_tokens

    def pad(self, x: Tensor, fill: float = 0.0) -> Tensor:  # (N, *item) -> (G, S, *item)
        if not self.full:
            x = torch.cat([x, x.new_full((1, *x.shape[1:]), fill)])
        return x[self.index]

    def unpad(self, x: Tensor) -> Tensor:  # (G, S, *item) -> (N, *item)
        order = self.index.flatten()
        kept = x.flatten(0, 1) if self.full else x.flatten(0, 1)[order < self.num_tokens]
        order = order if self.full else order[order < self.num_tokens]
        return torch.zeros_like(kept).index_copy(0, order, kept)


@dataclass(frozen=True)
class Dense:
    """Every token visits every expert (Jacobs et al., 1991)."""

    log_weight: Tensor  # (N, E)

    @property
    def groups(self) -> Groups:
        n, e = self.log_weight.shape
        return Groups(torch.full((e,), n, device=self.log_weight.device), even=True)

    @property
    def weights(self) -> Tensor:  # (N, E)
        return self.log_weight.exp()

    demand = weights  # what each token asks of each expert: a dense plan asks by mass

    def dispatch(self, x: Tensor) -> Tensor:  # (N, *item) -> (E N, *item)
        e = self.log_weight.shape[1]
        return x.expand(e, *x.shape).reshape(e * x.shape[0], *x.shape[1:])

    def combine(self, rows: Tensor) -> Tensor:  # (E N, *out) -> (N, *out)
        n, e = self.log_weight.shape
        weight = self.weights.to(rows.dtype)
        return torch.einsum("ne,en...->n...", weight, rows.view(e, n, *rows.shape[1:]))

    def joint(self, log_rows: Tensor) -> Tensor:  # (R,) -> (N, E)  log w_e + log p_e
        return self.log_weight + log_rows.view(self.log_weight.shape[::-1]).T

    def log_mix(self, log_rows: Tensor) -> Tensor:  # (R,) -> (N,)
        return self.joint(log_rows).logsumexp(-1)

    def narrow(self, start: int, stop: int) -> Dense:
        """The same plan, for experts ``start`` to ``stop`` alone."""
        return Dense(self.log_weight[:, start:stop])

    def edges(self) -> Sparse:
        """The same plan as a list of edges, for filters that drop some."""
        n, e = self.log_weight.shape
        every = torch.arange(e, device=self.log_weight.device).expand(n, e)
        return Sparse.from_choices(every, self.log_weight, e)

    def without(self, expert: int) -> Sparse:
        return self.edges().without(expert)


@dataclass(frozen=True)
class Sparse:
    """R token-expert edges, sorted by expert; no pair occurs twice."""

    token: Tensor  # (R,) int64
    expert: Tensor  # (R,) int64, non-decreasing
    log_weight: Tensor  # (R,)
    choice: Tensor  # (R,) int64, 0 where the expert was the token's first choice
    num_tokens: int
    num_experts: int
    even: bool = False  # known without looking: every expert has the same number of edges

    @classmethod
    def from_choices(cls, expert: Tensor, log_weight: Tensor, num_experts: int) -> Sparse:
        """``expert[n, k]`` is token n's k-th choice, taken with weight ``exp(log_weight[n, k])``."""
        n, k = expert.shape
        flat = expert.T.flatten()  # all first choices before any second one, as in GShard
        order = flat.argsort(stable=True)
        choice = torch.arange(k, device=expert.device).repeat_interleave(n)
        return cls(order % n if n else order, flat[order], log_weight.T.flatten()[order], choice[order], n, num_experts)

    @classmethod
    def from_mask(cls, chosen: Tensor, log_weight: Tensor, liking: Tensor) -> Sparse:
        """Tokens with any number of experts: a mask, log-weights and what ranks a token's choices, (N, E) each."""
        order = liking.masked_fill(~chosen, float("-inf")).argsort(dim=-1, descending=True, stable=True)
        rank = order.argsort(dim=-1)
        expert, token = chosen.T.nonzero(as_tuple=True)  # sorted by expert
        return cls(token, expert, log_weight[token, expert], rank[token, expert], *chosen.shape)

    @cached_property
    def groups(self) -> Groups:
        counts = self.expert.new_zeros(self.num_experts)  # index_add, unlike bincount, needs no sync
        return Groups(counts.index_add(0, self.expert, torch.ones_like(self.expert)), self.even)

    @property
    def weights(self) -> Tensor:  # (N, E), zero where there is no edge
        return self._table(self.log_weight.exp())

    @property
    def demand(self) -> Tensor:  # (N, E), one for each edge
        return self._table(torch.ones_like(self.log_weight))

    def _table(self, values: Tensor) -> Tensor:  # (R,) -> (N, E)
        empty = values.new_zeros(self.num_tokens, self.num_experts)
        return empty.index_put((self.token, self.expert), values)

    def dispatch(self, x: Tensor) -> Tensor:  # (N, *item) -> (R, *item)
        return x.index_select(0, self.token)

    def combine(self, rows: Tensor) -> Tensor:  # (R, *out) -> (N, *out)
        weight = self.log_weight.exp().to(rows.dtype).view(-1, *[1] * (rows.ndim - 1))
        return rows.new_zeros(self.num_tokens, *rows.shape[1:]).index_add(0, self.token, weight * rows)

    def joint(self, log_rows: Tensor) -> Tensor:
        """Log w_e + log p_e as a table (R,) -> (N, E), -inf where there is no edge.

        Raises ValueError for an edge that occurs twice: one of the two would be lost.
        """
        if (self.token * self.num_experts + self.expert).unique().numel() < len(self.token):
            raise ValueError("a plan's edges must be unique: some token asks the same expert twice")
        empty = log_rows.new_full((self.num_tokens, self.num_experts), float("-inf"))
        return empty.index_put((self.token, self.expert), self.log_weight.to(log_rows.dtype) + log_rows)

    def log_mix(self, log_rows: Tensor) -> Tensor:  # (R,) -> (N,), -inf for a token without edges
        return self.joint(log_rows).logsumexp(-1)

    def narrow(self, start: int, stop: int) -> Sparse:
        """The same plan, for experts ``start`` to ``stop`` alone."""
        inside = (self.expert >= start) & (self.expert < stop)
        part = self.keep(inside)
        return replace(part, expert=part.expert - start, num_experts=stop - start, even=self.even)

    def keep(self, edge: Tensor) -> Sparse:
        """The edges of a mask or an index (R',) that lies sorted by expert; counts are no longer known even."""
        return replace(
            self,
            token=self.token[edge],
            expert=self.expert[edge],
            log_weight=self.log_weight[edge],
            choice=self.choice[edge],
            even=False,
        )

    def edges(self) -> Sparse:
        return self

    def without(self, expert: int) -> Sparse:
        """Take one expert out; what is left of a token's weights keeps their sum."""
        part = self.keep(self.expert != expert)
        before, after = (p.log_mix(torch.zeros_like(p.log_weight)) for p in (self, part))  # (N,), no underflow
        return replace(part, log_weight=part.log_weight + (before - after)[part.token])


@dataclass(frozen=True)
class Slots:
    """Experts read weighted averages of tokens (Puigcerver et al., 2023)."""

    into: Tensor  # (N, E, P), sums to one over the tokens of a group: how a slot averages tokens
    out: Tensor  # (N, E, P), sums to one over (E, P): how a token averages slots
    batched: Batched

    @property
    def groups(self) -> Groups:
        _, e, p = self.into.shape
        return Groups(torch.full((e,), len(self.batched.index) * p, device=self.into.device), even=True)

    @property
    def weights(self) -> Tensor:  # (N, E)
        return self.out.sum(-1)

    demand = weights

    def dispatch(self, x: Tensor) -> Tensor:  # (N, *item) -> (E G P, *item)
        into = self.batched.pad(self.into.to(x.dtype))
        return torch.einsum("gsep,gs...->egp...", into, self.batched.pad(x)).flatten(0, 2)

    def combine(self, rows: Tensor) -> Tensor:  # (E G P, *out) -> (N, *out)
        _, e, p = self.out.shape
        slots = rows.view(e, len(self.batched.index), p, *rows.shape[1:])
        out = self.batched.pad(self.out.to(rows.dtype))
        return self.batched.unpad(torch.einsum("gsep,egp...->gs...", out, slots))

    def narrow(self, start: int, stop: int) -> Slots:
        """The same plan, for experts ``start`` to ``stop`` alone."""
        return replace(self, into=self.into[:, start:stop], out=self.out[:, start:stop])

    def without(self, expert: int) -> Slots:
        """Take one expert out; what is left of a token's weights keeps their sum."""
        kept = torch.ones(self.out.shape[1], dtype=self.out.dtype, device=self.out.device)
        kept[expert] = 0
        out = self.out * kept[:, None]
        return replace(self, out=out / out.sum((1, 2), keepdim=True).clamp_min(torch.finfo(out.dtype).tiny))


Plan = Dense | Sparse | Slots


def even_shares(number: int, shares: int) -> list[int]:
    """Counts that differ by at most one; the first take what is left over."""
    return [number // shares + (e < number % shares) for e in range(shares)]
