"""Plans of several models side by side: the tokens of L models, model after model, each among its own E experts.

A lane is one of the L models; its N tokens are a stretch of all L N.  A plan keeps to E experts for whoever reads
its weights, while its rows lie sorted by (lane, expert), as L E experts want them.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from moecli.plan import Dense, Groups, Plan, Sparse
from moecli.routing import Routing, Usage, entropy


@dataclass(frozen=True)
class DenseLanes(Dense):
    """Each token of a lane visits each expert of its lane; rows lie as (L, E, N)."""

    lanes: int = 1

    @property
    def groups(self) -> Groups:
        number = self.lanes * self.log_weight.shape[1]
        size = len(self.log_weight) // self.lanes
        return Groups(torch.full((number,), size, device=self.log_weight.device), even=True)

    def dispatch(self, x: Tensor) -> Tensor:  # (L N, *item) -> (L E N, *item)
        own = x.unflatten(0, (self.lanes, 1, -1))
        return own.expand(-1, self.log_weight.shape[1], *own.shape[2:]).flatten(0, 2)

    def combine(self, rows: Tensor) -> Tensor:  # (L E N, *out) -> (L N, *out)
        weight = self.weights.to(rows.dtype).unflatten(0, (self.lanes, -1))
        return torch.einsum("lne,len...->ln...", weight, self._by_lane(rows)).flatten(0, 1)

    def joint(self, log_rows: Tensor) -> Tensor:  # (R,) -> (L N, E)
        return self.log_weight + self._by_lane(log_rows).transpose(0, 1).flatten(1).T

    def _by_lane(self, rows: Tensor) -> Tensor:  # (L E N, *item) -> (L, E, N, *item)
        return rows.unflatten(0, (self.lanes, self.log_weight.shape[1], -1))

    def lane(self, index: int) -> Dense:
        return Dense(self.log_weight.unflatten(0, (self.lanes, -1))[index])


@dataclass(frozen=True)
class SparseLanes(Sparse):
    """Edges sorted by (lane, expert), each expert a number below E."""

    lanes: int = 1

    @classmethod
    def of(cls, plan: Sparse, lanes: int) -> SparseLanes:
        own = plan.token // (plan.num_tokens // lanes) * plan.num_experts + plan.expert
        edges = plan.keep(own.argsort(stable=True))
        parts = (edges.token, edges.expert, edges.log_weight, edges.choice)
        return cls(*parts, plan.num_tokens, plan.num_experts, lanes=lanes)

    @property
    def size(self) -> int:
        """Tokens of a lane."""
        return self.num_tokens // self.lanes

    @cached_property
    def wide(self) -> Sparse:
        """The same edges over L E experts: expert e of lane l is number l E + e."""
        expert = self.token // self.size * self.num_experts + self.expert
        number = self.lanes * self.num_experts
        return Sparse(self.token, expert, self.log_weight, self.choice, self.num_tokens, number)

    @property
    def groups(self) -> Groups:  # the parent caches, as the wide plan does here
        return self.wide.groups

    @cached_property
    def _edges(self) -> list[int]:
        """Of each lane."""
        return self.groups.counts.view(self.lanes, -1).sum(1).tolist()

    def lane(self, index: int) -> Sparse:
        start = sum(self._edges[:index])
        own = slice(start, start + self._edges[index])
        token = self.token[own] - index * self.size
        return Sparse(
            token, self.expert[own], self.log_weight[own], self.choice[own], self.size, self.num_experts, self.even
        )


Lanes = DenseLanes | SparseLanes


def in_lanes(plan: Plan, lanes: int) -> Lanes:
    """A plan over the tokens of all lanes, its rows sorted by lane first.  Raises ValueError for slots."""
    if isinstance(plan, Lanes):
        return plan
    if isinstance(plan, Sparse):
        return SparseLanes.of(plan, lanes)
    if isinstance(plan, Dense):
        return DenseLanes(plan.log_weight, lanes)
    raise ValueError("its router fills slots, which are averages over all tokens")


def apart(routing: Routing, lanes: int) -> list[Routing]:
    """The routing of each lane, as its own model would have decided it."""
    plan = in_lanes(routing.plan, lanes)
    asked = plan if routing.asked is routing.plan else in_lanes(routing.asked, lanes)
    whole = replace(routing, plan=plan, asked=asked)
    return [_of_lane(whole, index, lanes) for index in range(lanes)]


def _of_lane(routing: Routing, index: int, lanes: int) -> Routing:
    size = len(routing.probs) // lanes
    own = slice(index * size, (index + 1) * size)
    parts: dict[str, Any] = {f.name: getattr(routing, f.name) for f in fields(routing)}
    parts = {name: part[own] if isinstance(part, Tensor) else part for name, part in parts.items()}
    parts["example"] = parts["example"] - index * size
    return type(routing)(**{**parts, "plan": parts["plan"].lane(index), "asked": parts["asked"].lane(index)})


def usages(routing: Routing, lanes: int) -> list[Usage]:
    """Who was asked and who served in each lane: ``Routing.usage`` of ``apart``, counted for all lanes at once."""
    probs, (_, e) = routing.probs.detach(), routing.probs.shape
    size = len(probs) // lanes
    lane = torch.arange(lanes, device=probs.device).repeat_interleave(size)
    asked, served = (in_lanes(plan, lanes) for plan in (routing.asked, routing.plan))
    first = (lane * e + probs.max(-1).indices).bincount(minlength=lanes * e).view(lanes, e)
    mass = _sum(served.weights.detach(), lanes)
    if isinstance(asked, SparseLanes) and isinstance(served, SparseLanes):
        counts = [plan.groups.counts.view(lanes, e) for plan in (asked, served)]
    else:
        counts = [_sum(asked.weights.detach(), lanes), mass]
    ranks = torch.stack([_by_rank(asked), _by_rank(served)], 1)  # (L, 2, E)
    found = (*counts, ranks, first, mass, _sum(entropy(probs), lanes))
    of_lanes: Any = zip(*(part.unbind() for part in found), [size] * lanes, strict=True)
    return [Usage(*parts) for parts in of_lanes]


def _sum(values: Tensor, lanes: int) -> Tensor:  # (L N, *item) -> (L, *item)
    return values.unflatten(0, (lanes, -1)).sum(1)


def _by_rank(plan: Lanes) -> Tensor:
    """How many edges of each lane are some token's first, second, ... choice: (L, E) int64, zero for dense plans."""
    number = plan.lanes * plan.weights.shape[1]
    if not isinstance(plan, SparseLanes):
        return torch.zeros(number, dtype=torch.int64, device=plan.log_weight.device).view(plan.lanes, -1)
    rank = plan.choice.clamp_max(plan.num_experts - 1) + plan.token // plan.size * plan.num_experts
    return rank.bincount(minlength=number).view(plan.lanes, -1)
