"""Experts that read some of the features: ``expert.columns=[1]`` puts this around whatever experts were chosen."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from moecli.experts.experts import Experts
from moecli.experts.least_squares import Normal
from moecli.plan import Groups, Plan


class Columns(Experts):
    """f_e(x) = expert_e(x[..., columns])."""

    def __init__(self, experts: Experts, columns: Sequence[int]):
        super().__init__()
        self.experts, self.columns, self.num_experts = experts, list(columns), experts.num_experts
        self.needs, self.gives = experts.needs, experts.gives  # type: ignore[misc]  # an instance's own

    def forward(self, rows: Tensor, groups: Groups) -> Tensor:  # (R, ..., D) -> (R, *out)
        return self.experts(rows[..., self.columns], groups)

    def rows(self, plan: Plan, x: Tensor) -> Tensor:
        return self.experts.rows(plan, x[..., self.columns])

    def blend(self, plan: Plan, x: Tensor) -> Tensor:
        return self.experts.blend(plan, x[..., self.columns])

    def normal(self, x: Tensor, z: Tensor, w: Tensor) -> Normal:
        return self.experts.normal(x[..., self.columns], z, w)

    def solve(self, normal: Normal) -> None:
        self.experts.solve(normal)

    def flops(self) -> int:
        return self.experts.flops()

    def twin(self, flops: float) -> Experts:
        return Columns(self.experts.twin(flops), self.columns)
