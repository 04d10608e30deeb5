"""Any modules at all, one per expert."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from moecli.experts.experts import Experts
from moecli.plan import Groups


class Distinct(Experts):
    """A module each: ``module(num_experts=1)`` builds them one by one; the loop runs them in turn."""

    def __init__(self, module: Callable[[int], Experts], num_experts: int):
        super().__init__()
        self.num_experts = num_experts
        members = [module(1) for _ in range(num_experts)]
        self.members: Any = nn.ModuleList(members)
        self.needs = members[0].needs  # all are of one kind

    def forward(self, rows: Tensor, groups: Groups) -> Tensor:  # (R, *item) -> (R, *out)
        parts = zip(self.members, groups.split(rows), strict=True)
        return torch.cat([module(r, Groups(groups.counts.new_tensor([len(r)]), even=True)) for module, r in parts])

    def flops(self) -> int:
        return self.members[0].flops()

    def twin(self, flops: float) -> Experts:
        return self.members[0].twin(flops)
