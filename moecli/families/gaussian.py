"""Normal targets around each expert's output, with one covariance per expert."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor, nn
from torch.distributions import Distribution, Independent, Normal

from moecli.families.correlated import Correlated
from moecli.families.family import EMPTY, Family, Statistics, replace_where
from moecli.plan import Groups
from moecli.types import PositiveFloat


class Gaussian(Family):
    """p_e(y | x) = N(y; f_e(x), C_e) (Jacobs et al., 1991, with the covariance learned).

    ``covariance``: ``diagonal`` one scale per expert and target, ``isotropic`` one per expert, ``full``
    a covariance matrix per expert, ``fixed`` the scale that it begins with.  ``min_scale`` keeps one
    expert from closing in on one point, where the likelihood has no bound: no direction is narrower.
    """

    needs = frozenset({"real"})
    gives = Family.gives | {"precisions"}

    def __init__(
        self,
        out: int,
        num_experts: int,
        covariance: Literal["fixed", "isotropic", "diagonal", "full"] = "diagonal",
        scale: PositiveFloat = 1.0,
        min_scale: PositiveFloat = 1e-3,
    ):
        super().__init__()
        self.out, self.covariance, self.start, self.min_scale = out, covariance, scale, min_scale
        width = out if covariance in ("diagonal", "full") else 1
        log_scale = torch.full((num_experts, width), math.log(scale))
        if covariance == "fixed":
            self.register_buffer("log_scale", log_scale)
        else:
            self.log_scale = nn.Parameter(log_scale)
        self.below = nn.Parameter(torch.zeros(num_experts, out, out)) if covariance == "full" else None

    @property
    def scale(self) -> Tensor:
        """Standard deviation of each expert and target: (E, Y)."""
        if self.below is not None:
            return self.factor.square().sum(-1).sqrt()
        return self._diagonal.expand(-1, self.out)

    @property
    def factor(self) -> Tensor:
        """L of the covariance L L^T, lower triangular: (E, Y, Y)."""
        diagonal = torch.diag_embed(self._diagonal.expand(-1, self.out))
        return diagonal if self.below is None else diagonal + self.below.tril(-1)

    @property
    def _diagonal(self) -> Tensor:  # (E, Y) or (E, 1)
        return self.log_scale.exp().clamp_min(self.min_scale)

    def forward(self, rows: Tensor, groups: Groups) -> Distribution:
        if self.below is not None:
            return Correlated(rows, self.factor.to(rows.dtype), groups)
        return Independent(Normal(rows, groups.spread(self.scale, len(rows)), validate_args=False), 1)

    def log_prob(self, loc: Tensor, y: Tensor) -> Tensor:
        """Without a distribution of all rows where the covariance is diagonal: half the time."""
        if self.below is not None:
            return super().log_prob(loc, y)
        distance = ((y[:, None] - loc) / self.scale).square().sum(-1)  # (N, E)
        return -0.5 * (distance + self.out * math.log(2 * math.pi)) - self.scale.log().sum(-1)

    def working(self, loc: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Least squares: under any covariance, because all targets have the same inputs."""
        return y[:, None].expand_as(loc), torch.ones_like(loc[..., :1])

    def statistics(self, loc: Tensor, y: Tensor, resp: Tensor) -> Statistics:
        error = y[:, None] - loc
        if self.below is None:
            square = torch.einsum("ne,ney->ey", resp, error.square())
        else:
            weighted = (resp[..., None] * error).permute(1, 2, 0)  # (E, Y, N)
            square = weighted @ error.transpose(0, 1)  # (E, Y, Y)
        return {"total": resp.sum(0), "square": square}

    @torch.no_grad()
    def adopt(self, statistics: Statistics) -> None:
        """The weighted mean of squares is the covariance of maximum likelihood, the floor included."""
        alive = statistics["total"] > EMPTY
        mean = statistics["square"] / statistics["total"].clamp_min(EMPTY).view(
            -1, *[1] * (1 + (self.below is not None))
        )
        if self.below is not None:
            self._adopt_full(alive, mean)
        elif self.covariance != "fixed":
            var = mean if self.covariance == "diagonal" else mean.mean(-1, keepdim=True)
            replace_where(alive, self.log_scale, 0.5 * var.clamp_min(self.min_scale**2).log())

    def _adopt_full(self, alive: Tensor, covariance: Tensor) -> None:  # (E,), (E, Y, Y)
        spread, axes = torch.linalg.eigh(covariance)
        floored = (axes * spread.clamp_min(self.min_scale**2)[:, None]) @ axes.mT
        factor = torch.linalg.cholesky(floored)
        replace_where(alive, self.log_scale, factor.diagonal(dim1=-2, dim2=-1).log())
        assert self.below is not None
        replace_where(alive, self.below, factor)

    def cornered(self) -> Tensor:
        if self.covariance == "fixed":
            return super().cornered()
        narrowest = torch.linalg.svdvals(self.factor).amin(-1) if self.below is not None else self._diagonal.amin(-1)
        return narrowest <= self.min_scale * (1 + 1e-6)

    def alone(self) -> Gaussian:
        return Gaussian(self.out, 1, self.covariance, self.start, self.min_scale)
