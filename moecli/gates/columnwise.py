"""Densities of independent columns that are not real numbers: binary, counts, positive."""

from __future__ import annotations

import math
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from moecli.gates.generative import Density, keep_dead

FAINTEST = 1e-6  # no rate or probability is fitted below this, nor a probability as near to one
SMALLEST, LARGEST = 1e-30, 1e30  # of positive numbers
SHARPEST = 1e4  # no gamma shape is fitted above this: a spread of one hundredth of the mean


class Columnwise(Density):
    """log p_e(x) = sum_d log p_ed(x_d), for columns that cannot have every value."""

    wants: ClassVar[str]

    def possible(self, x: Tensor) -> Tensor:
        """Which values the family can have: (N, D) bool."""
        raise NotImplementedError

    def nearest(self, x: Tensor) -> Tensor:
        """The same values, those beyond the family's range moved to its edge."""
        raise NotImplementedError


class Bernoulli(Columnwise):
    """x in {0, 1}: log p = x logit - log(1 + exp logit)."""

    wants = "0 or 1"

    def __init__(self, dim: int, num_experts: int):
        super().__init__()
        self.logit = nn.Parameter(torch.randn(num_experts, dim))

    def possible(self, x: Tensor) -> Tensor:
        return (x == 0) | (x == 1)

    def nearest(self, x: Tensor) -> Tensor:
        return x.clamp(0, 1)

    def forward(self, x: Tensor) -> Tensor:  # (N, D) -> (N, E)
        logit = bounded(self.logit.to(x.dtype), FAINTEST, 1 / FAINTEST)  # the odds are
        return x @ logit.T - F.softplus(logit).sum(-1)

    def fit(self, x: Tensor, share: Tensor, alive: Tensor) -> None:
        odds = (share.T @ x).logit(eps=FAINTEST)
        self.logit.copy_(keep_dead(odds, self.logit, alive))


class Poisson(Columnwise):
    """x in {0, 1, 2, ...}: log p = x log rate - rate - log x!."""

    wants = "whole numbers of at least 0"

    def __init__(self, dim: int, num_experts: int):
        super().__init__()
        self.log_rate = nn.Parameter(torch.randn(num_experts, dim))

    def possible(self, x: Tensor) -> Tensor:
        return (x >= 0) & (x == x.round())

    def nearest(self, x: Tensor) -> Tensor:
        return x.clamp_min(0)

    def forward(self, x: Tensor) -> Tensor:  # (N, D) -> (N, E)
        log_rate = bounded(self.log_rate.to(x.dtype), FAINTEST, LARGEST)
        return x @ log_rate.T - log_rate.exp().sum(-1) - (x + 1).lgamma().sum(-1, keepdim=True)

    def fit(self, x: Tensor, share: Tensor, alive: Tensor) -> None:
        rate = (share.T @ x).clamp(FAINTEST, LARGEST)
        self.log_rate.copy_(keep_dead(rate.log(), self.log_rate, alive))


class Gamma(Columnwise):
    """x > 0, of shape k and mean m: log p = k log(k / m) - log Gamma(k) + (k - 1) log x - k x / m."""

    wants = "numbers above 0"

    def __init__(self, dim: int, num_experts: int):
        super().__init__()
        self.log_mean = nn.Parameter(torch.randn(num_experts, dim))
        self.log_shape = nn.Parameter(torch.zeros(num_experts, dim))

    def possible(self, x: Tensor) -> Tensor:
        return x > 0

    def nearest(self, x: Tensor) -> Tensor:
        return x.clamp_min(SMALLEST)

    def forward(self, x: Tensor) -> Tensor:  # (N, D) -> (N, E)
        log_mean = bounded(self.log_mean.to(x.dtype), SMALLEST, LARGEST)
        log_shape = bounded(self.log_shape.to(x.dtype), FAINTEST, SHARPEST)
        shape = log_shape.exp()
        constant = (shape * (log_shape - log_mean) - shape.lgamma()).sum(-1)  # (E,)
        return x.log() @ (shape - 1).T - x @ (shape / log_mean.exp()).T + constant

    def fit(self, x: Tensor, share: Tensor, alive: Tensor) -> None:
        mean = (share.T @ x).clamp(SMALLEST, LARGEST)
        shape = gamma_shape(mean.log() - share.T @ x.log())
        self.log_shape.copy_(keep_dead(shape.log(), self.log_shape, alive))
        self.log_mean.copy_(keep_dead(mean.log(), self.log_mean, alive))


def bounded(log: Tensor, low: float, high: float) -> Tensor:
    """Logarithms of numbers between ``low`` and ``high``."""
    return log.clamp(math.log(low), math.log(high))


def gamma_shape(gap: Tensor) -> Tensor:
    """The shape k with log k - digamma(k) = gap (log of the mean less mean of the logs), at most ``SHARPEST``.

    Newton's method in 1 / k from a start that is right to 1.5 % (Minka, 2002).
    """
    gap = gap.clamp_min(0.5 / SHARPEST)
    k = (3 - gap + ((gap - 3).square() + 24 * gap).sqrt()) / (12 * gap)
    for _ in range(6):
        error = k.log() - torch.digamma(k) - gap
        k = 1 / (1 / k + error / (k - k.square() * torch.polygamma(1, k)))
    return k.clamp_max(SHARPEST)
