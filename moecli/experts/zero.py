"""Experts that answer nothing, so that a token may skip the layer (MoE++; Jin et al., 2024)."""

from __future__ import annotations

from torch import Tensor

from moecli.experts.experts import Experts, affordable
from moecli.plan import Groups


class Zero(Experts):
    """f_e(x) = 0; beside others under ``expert=several``."""

    def __init__(self, dim: int, out: int, num_experts: int):
        super().__init__()
        self.num_experts, self.dim, self.out = num_experts, dim, out

    def forward(self, rows: Tensor, groups: Groups) -> Tensor:  # (R, D) -> (R, Y)
        return rows.new_zeros(len(rows), self.out)

    def flops(self) -> int:
        return 0

    def twin(self, flops: float) -> Experts:
        return affordable(self.dim, self.out, flops)
