"""Experts that answer the same for every x."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from moecli.experts.experts import Experts
from moecli.experts.least_squares import Normal, normal_equations
from moecli.plan import Groups


class Constant(Experts):
    """f_e(x) = b_e: with a gate that knows no x either, an ordinary mixture of distributions."""

    needs = frozenset()  # of any item, because it looks at none
    gives = frozenset({"expert fit"})

    def __init__(self, dim: int, out: int, num_experts: int):
        super().__init__()
        self.dim, self.num_experts = dim, num_experts
        self.bias = nn.Parameter(torch.randn(num_experts, out))

    def forward(self, rows: Tensor, groups: Groups) -> Tensor:  # (R, *item) -> (R, Y)
        return groups.spread(self.bias.to(rows.dtype), len(rows))

    @torch.no_grad()
    def normal(self, x: Tensor, z: Tensor, w: Tensor) -> Normal:
        return normal_equations(z.new_ones(len(x), 1), z, w)

    @torch.no_grad()
    def solve(self, normal: Normal) -> None:
        self.bias.copy_(normal.step(self.bias[..., None].to(normal.cross.dtype))[..., 0])

    def flops(self) -> int:
        return 0

    def twin(self, flops: float) -> Experts:
        """A constant has nothing to widen, so its twin reads x: one hidden ReLU layer, 2 h (D + Y) FLOPs."""
        from moecli.experts.feed_forward import FeedForward

        out = self.bias.shape[1]
        return FeedForward(self.dim, out, 1, hidden=max(1, round(flops / (2 * (self.dim + out)))), activation="relu")
