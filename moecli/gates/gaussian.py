"""A gate that models x: one Gaussian per expert (Xu, Jordan & Hinton, 1995)."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor, nn

from moecli.gates.generative import Density, Generative, keep_dead
from moecli.types import PositiveFloat

LOG_2PI = math.log(2 * math.pi)


class Gaussian(Generative):
    """Logits = log share_e + log N(x; mean_e, cov_e), with a diagonal or a full covariance for each expert.

    ``min_var`` bounds the variance along every direction from below: an expert may not close in on one point.
    """

    def __init__(
        self,
        dim: int,
        num_experts: int,
        covariance: Literal["diagonal", "full"] = "diagonal",
        min_var: PositiveFloat = 1e-4,
    ):
        density = {"diagonal": DiagonalNormal, "full": FullNormal}[covariance](dim, num_experts, min_var)
        super().__init__(density, num_experts)


class DiagonalNormal(Density):
    """A Gaussian whose columns are independent."""

    def __init__(self, dim: int, num_experts: int, min_var: float):
        super().__init__()
        self.mean = nn.Parameter(torch.randn(num_experts, dim))
        self.log_var = nn.Parameter(torch.zeros(num_experts, dim))
        self.min_var = min_var

    def forward(self, x: Tensor) -> Tensor:  # (N, D) -> (N, E)
        return self._log_prob(x[:, None] - self.mean.to(x.dtype))

    def _log_prob(self, z: Tensor) -> Tensor:
        """Of independent deviations (N, E, D): (N, E)."""
        log_var = self.log_var.to(z.dtype).clamp_min(math.log(self.min_var))
        return -0.5 * (z.square() * (-log_var).exp() + log_var + LOG_2PI).sum(-1)

    def fit(self, x: Tensor, share: Tensor, alive: Tensor) -> None:
        mean = share.T @ x
        var = torch.stack([s @ (x - m).square() for s, m in zip(share.T, mean, strict=True)])  # no (N, E, D) table
        self.log_var.copy_(keep_dead(var.clamp_min(self.min_var).log(), self.log_var, alive))
        self.mean.copy_(keep_dead(mean, self.mean, alive))


class FullNormal(DiagonalNormal):
    """Columns that depend on each other: A_e (x - mean_e) is independent, with A_e unit lower triangular."""

    def __init__(self, dim: int, num_experts: int, min_var: float):
        super().__init__(dim, num_experts, min_var)
        self.lower = nn.Parameter(torch.zeros(num_experts, dim, dim))  # A_e below its diagonal

    def forward(self, x: Tensor) -> Tensor:  # (N, D) -> (N, E)
        z = x[:, None] - self.mean.to(x.dtype)
        return self._log_prob(z + torch.einsum("ned,efd->nef", z, self.lower.to(x.dtype).tril(-1)))

    def fit(self, x: Tensor, share: Tensor, alive: Tensor) -> None:
        """Weighted moments; eigenvalues below ``min_var`` are raised to it, which is the bounded maximum."""
        mean = share.T @ x
        cov = torch.stack([(x - m).T @ (s[:, None] * (x - m)) for s, m in zip(share.T, mean, strict=True)])
        value, vector = torch.linalg.eigh(cov)
        factor = torch.linalg.cholesky((vector * value.clamp_min(self.min_var)[:, None]) @ vector.mT)
        std = factor.diagonal(dim1=-2, dim2=-1)  # (E, D)
        eye = torch.eye(x.shape[1], dtype=x.dtype, device=x.device).expand_as(factor)
        whiten = std[..., None] * torch.linalg.solve_triangular(factor, eye, upper=False)  # A_e
        self.lower.copy_(keep_dead(whiten.tril(-1), self.lower, alive))
        self.log_var.copy_(keep_dead(2 * std.log(), self.log_var, alive))
        self.mean.copy_(keep_dead(mean, self.mean, alive))
