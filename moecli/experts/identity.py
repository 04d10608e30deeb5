"""Experts that hand a token through, for routers that may spend less on easy ones (MoE++; Jin et al., 2024)."""

from __future__ import annotations

from torch import Tensor

from moecli.errors import UsageError
from moecli.experts.experts import Experts, affordable
from moecli.plan import Groups


class Identity(Experts):
    """f_e(x) = x; beside others under ``expert=several``.  Raises UsageError where input and output differ in width."""

    def __init__(self, dim: int, out: int, num_experts: int):
        super().__init__()
        if dim != out:
            raise UsageError(
                f"expert=identity: it gives back the {dim} numbers it reads, and {out} are asked for. "
                "Use it in a layer with a head (model.head=true), or expert=linear"
            )
        self.num_experts, self.dim = num_experts, dim

    def forward(self, rows: Tensor, groups: Groups) -> Tensor:  # (R, D) -> (R, D)
        return rows

    def flops(self) -> int:
        return 0

    def twin(self, flops: float) -> Experts:
        return affordable(self.dim, self.dim, flops)
