"""Counts: each expert gives the logarithm of a rate."""

from __future__ import annotations

from torch import Tensor
from torch.distributions import Distribution, Independent
from torch.distributions import Poisson as PoissonDistribution

from moecli.families.family import Family
from moecli.plan import Groups

LIMIT = 60.0  # of |log rate|: beyond it the rate is no longer what any count tells


class Poisson(Family):
    """p_e(y | x) = prod_y Poisson(y; exp f_e(x)_y): a mixture of log-linear models (Grün & Leisch, 2008)."""

    needs = frozenset({"counts"})

    def __init__(self, out: int, num_experts: int):
        super().__init__()
        self.out = out

    def forward(self, rows: Tensor, groups: Groups) -> Distribution:
        return Independent(PoissonDistribution(self.mean(rows, groups), validate_args=False), 1)

    def mean(self, rows: Tensor, groups: Groups) -> Tensor:
        return rows.clamp(-LIMIT, LIMIT).exp()

    def working(self, loc: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Newton's step; curvature is the rate."""
        rate = loc.clamp(-LIMIT, LIMIT).exp()
        return loc + (y[:, None] - rate) / rate, rate

    def alone(self) -> Poisson:
        return Poisson(self.out, 1)
