"""Positive targets whose spread grows with their mean: each expert gives the logarithm of the mean."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.distributions import Distribution, Independent
from torch.distributions import Gamma as GammaDistribution

from moecli.families.family import EMPTY, Family, Statistics, replace_where
from moecli.families.shape import solve_shape
from moecli.plan import Groups

LIMIT = 60.0  # of |log mean|
LEAST, MOST = 1e-3, 1e6  # of the shape: relative deviations from 30 down to 0.001


class Gamma(Family):
    """p_e(y | x) = prod_y Gamma(y; shape k_e, mean exp f_e(x)_y); the relative deviation is k_e^-1/2, k in [1e-3, 1e6]."""

    needs = frozenset({"positive"})

    def __init__(self, out: int, num_experts: int):
        super().__init__()
        self.log_shape = nn.Parameter(torch.zeros(num_experts, out))

    @property
    def shape(self) -> Tensor:  # (E, Y)
        return self.log_shape.exp().clamp(LEAST, MOST)

    def forward(self, rows: Tensor, groups: Groups) -> Distribution:
        shape = groups.spread(self.shape, len(rows))
        return Independent(GammaDistribution(shape, shape / self.mean(rows, groups), validate_args=False), 1)

    def mean(self, rows: Tensor, groups: Groups) -> Tensor:
        return rows.clamp(-LIMIT, LIMIT).exp()

    def working(self, loc: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Fisher's step: the expected curvature is the same for every row."""
        return loc + y[:, None] / loc.clamp(-LIMIT, LIMIT).exp() - 1, torch.ones_like(loc[..., :1])

    def statistics(self, loc: Tensor, y: Tensor, resp: Tensor) -> Statistics:
        ratio = y[:, None] / loc.clamp(-LIMIT, LIMIT).exp()
        return {"total": resp.sum(0), "gap": torch.einsum("ne,ney->ey", resp, ratio - 1 - ratio.log())}

    @torch.no_grad()
    def adopt(self, statistics: Statistics) -> None:
        """log k - digamma(k) = mean of y/m - 1 - log y/m, which is where the likelihood is largest."""
        total = statistics["total"]
        shape = solve_shape(statistics["gap"] / total.clamp_min(EMPTY)[:, None], LEAST, MOST)
        replace_where(total > EMPTY, self.log_shape, shape.log())

    def cornered(self) -> Tensor:
        return self.shape.amax(-1) >= MOST * (1 - 1e-6)

    def alone(self) -> Gamma:
        return Gamma(self.log_shape.shape[1], 1)
