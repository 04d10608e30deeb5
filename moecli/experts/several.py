"""Kinds of experts side by side: some linear, some deep, under one router."""

from __future__ import annotations

from collections.abc import Callable
from itertools import accumulate, pairwise
from typing import Any

import torch
from torch import Tensor, nn

from moecli.errors import UsageError
from moecli.experts.experts import Experts
from moecli.plan import Groups, Plan, even_shares
from moecli.types import PositiveInt


class Several(Experts):
    """The first ``counts[0]`` experts are of the first kind, and so on; by default equal shares.

    Raises UsageError where the counts do not add up to the number of experts.
    """

    def __init__(
        self,
        kinds: dict[str, Callable[[int], Experts]],
        num_experts: int,
        counts: list[PositiveInt] | None = None,
    ):
        super().__init__()
        counts = counts or even_shares(num_experts, len(kinds))
        if len(counts) != len(kinds) or sum(counts) != num_experts:
            raise UsageError(
                f"expert.counts={counts}: {len(kinds)} kinds ({', '.join(kinds)}) need one count each, together "
                f"{num_experts}. Change expert.counts or num_experts"
            )
        self.num_experts, self.bounds = num_experts, [0, *accumulate(counts)]
        members = [kind(count) for kind, count in zip(kinds.values(), counts, strict=True)]
        self.kinds: Any = nn.ModuleList(members)
        self.needs = frozenset().union(*(member.needs for member in members))

    def forward(self, rows: Tensor, groups: Groups) -> Tensor:  # (R, *item) -> (R, *out)
        counts = [groups.counts[a:b] for a, b in pairwise(self.bounds)]
        parts = rows.split([int(c.sum()) for c in counts])
        return torch.cat(
            [kind(r, Groups(c, groups.even)) for kind, r, c in zip(self.kinds, parts, counts, strict=True)]
        )

    def blend(self, plan: Plan, x: Tensor) -> Tensor:
        """Each kind blends its own experts, so each may use its own kernel."""
        parts = zip(self.kinds, pairwise(self.bounds), strict=True)
        return torch.stack([kind.blend(plan.narrow(a, b), x) for kind, (a, b) in parts]).sum(0)

    def flops(self) -> int:
        """The mean over the experts: what a row costs under a uniform router."""
        counts = [b - a for a, b in pairwise(self.bounds)]
        return sum(k.flops() * c for k, c in zip(self.kinds, counts, strict=True)) // self.num_experts

    def twin(self, flops: float) -> Experts:
        """Of the dearest kind, which can hold what the others can."""
        return max(self.kinds, key=lambda kind: kind.flops()).twin(flops)
