"""Heavy-tailed targets around each expert's output, with the degrees of freedom learned."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.distributions import Distribution, Independent
from torch.distributions import StudentT as StudentTDistribution

from moecli.families.family import EMPTY, Family, Statistics, replace_where
from moecli.families.shape import solve_shape
from moecli.plan import Groups
from moecli.types import PositiveFloat

LEAST, MOST = 1.0, 200.0  # degrees of freedom: from the Cauchy to what no data tell from a normal


class StudentT(Family):
    """p_e(y | x) = prod_y t(y; f_e(x), s_e, df_e) (Chamroukhi, 2016); df lies in [1, 200].

    A t is a normal whose precision is itself drawn: EM weighs each row by that precision's
    expectation u = (df + 1) / (df + error^2 / s^2), so that an outlier counts for little.  The mean of a
    row is its centre, also at df = 1, where the distribution has none.
    """

    needs = frozenset({"real"})

    def __init__(self, out: int, num_experts: int, df: PositiveFloat = 5.0, min_scale: PositiveFloat = 1e-3):
        super().__init__()
        self.start, self.min_scale = df, min_scale
        self.log_scale = nn.Parameter(torch.zeros(num_experts, out))
        self.log_df = nn.Parameter(torch.full((num_experts, out), math.log(df)))

    @property
    def scale(self) -> Tensor:
        """(E, Y); the standard deviation is larger by sqrt(df / (df - 2))."""
        return self.log_scale.exp().clamp_min(self.min_scale)

    @property
    def df(self) -> Tensor:  # (E, Y)
        return self.log_df.exp().clamp(LEAST, MOST)

    def forward(self, rows: Tensor, groups: Groups) -> Distribution:
        df, scale = (groups.spread(parameter, len(rows)) for parameter in (self.df, self.scale))
        return Independent(StudentTDistribution(df, rows, scale, validate_args=False), 1)

    def precision(self, loc: Tensor, y: Tensor) -> Tensor:
        """E[u | y] of every row, in units of 1 / scale^2: (N, E, Y)."""
        return (self.df + 1) / (self.df + ((y[:, None] - loc) / self.scale).square())

    def working(self, loc: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        return y[:, None].expand_as(loc), self.precision(loc, y)

    def statistics(self, loc: Tensor, y: Tensor, resp: Tensor) -> Statistics:
        u = self.precision(loc, y)
        half = (self.df + 1) / 2
        log_u = u.log() + half.digamma() - half.log()  # E[log u | y]
        return {
            "total": resp.sum(0),
            "square": torch.einsum("ne,ney->ey", resp, u * (y[:, None] - loc).square()),
            "log": torch.einsum("ne,ney->ey", resp, log_u - u),
        }

    @torch.no_grad()
    def adopt(self, statistics: Statistics) -> None:
        """Scale and degrees of freedom given the expected precisions: log(df/2) - digamma(df/2) = -1 - E[log u - u]."""
        total = statistics["total"].clamp_min(EMPTY)[:, None]
        alive = statistics["total"] > EMPTY
        scale = (statistics["square"] / total).sqrt().clamp_min(self.min_scale)
        replace_where(alive, self.log_scale, scale.log())
        df = 2 * solve_shape(-1 - statistics["log"] / total, LEAST / 2, MOST / 2)
        replace_where(alive, self.log_df, df.log())

    def cornered(self) -> Tensor:
        return self.scale.amin(-1) <= self.min_scale * (1 + 1e-6)

    def alone(self) -> StudentT:
        return StudentT(self.log_scale.shape[1], 1, self.start, self.min_scale)
