"""Double-exponential targets around each expert's output: a fit by absolute errors."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.distributions import Distribution, Independent
from torch.distributions import Laplace as LaplaceDistribution

from moecli.families.family import EMPTY, Family, Statistics, replace_where
from moecli.plan import Groups
from moecli.types import PositiveFloat

SHARPEST = 1e-6  # in scales: a smaller error weighs no more, where the weight 1 / |error| would have no bound


class Laplace(Family):
    """p_e(y | x) = prod_y exp(-|y - f_e(x)| / b_e) / 2 b_e (Nguyen & McLachlan, 2016).

    EM minorises -|error| by a parabola through the present error: weighted least squares with weight 1 / |error|.
    """

    needs = frozenset({"real"})

    def __init__(self, out: int, num_experts: int, min_scale: PositiveFloat = 1e-3):
        super().__init__()
        self.log_scale = nn.Parameter(torch.zeros(num_experts, out))
        self.min_scale = min_scale

    @property
    def scale(self) -> Tensor:
        """Mean absolute error of each expert and target: (E, Y)."""
        return self.log_scale.exp().clamp_min(self.min_scale)

    def forward(self, rows: Tensor, groups: Groups) -> Distribution:
        return Independent(LaplaceDistribution(rows, groups.spread(self.scale, len(rows)), validate_args=False), 1)

    def working(self, loc: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        error = (y[:, None] - loc).abs()
        return y[:, None].expand_as(loc), 1 / error.maximum(SHARPEST * self.scale)

    def statistics(self, loc: Tensor, y: Tensor, resp: Tensor) -> Statistics:
        return {"total": resp.sum(0), "error": torch.einsum("ne,ney->ey", resp, (y[:, None] - loc).abs())}

    @torch.no_grad()
    def adopt(self, statistics: Statistics) -> None:
        """The weighted mean absolute error is the scale's maximum likelihood."""
        total = statistics["total"]
        scale = (statistics["error"] / total.clamp_min(EMPTY)[:, None]).clamp_min(self.min_scale)
        replace_where(total > EMPTY, self.log_scale, scale.log())

    def cornered(self) -> Tensor:
        return self.scale.amin(-1) <= self.min_scale * (1 + 1e-6)

    def alone(self) -> Laplace:
        return Laplace(self.log_scale.shape[1], 1, self.min_scale)
