"""Mixing proportions that do not depend on x: an ordinary mixture, or a mixture of regressions."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from moecli.gates.gate import Gate


class Constant(Gate):
    """p(e | x) = softmax(log_prior)_e, learned; under EM the mean responsibility (Dempster et al., 1977)."""

    needs = frozenset({"every expert"})
    blind = True

    def __init__(self, num_experts: int):
        super().__init__()
        self.log_prior = nn.Parameter(torch.zeros(num_experts))

    def forward(self, x: Tensor) -> Tensor:  # (N, ...) -> (N, E)
        return x.new_zeros(len(x), 1) + self.log_prior.to(x.dtype)

    @torch.no_grad()
    def fit(self, x: Tensor, resp: Tensor, steps: int = 1) -> None:
        """The closed M-step; an expert without any responsibility keeps a share of 1e-12."""
        self.log_prior.copy_(log_share(resp))


def log_share(resp: Tensor) -> Tensor:
    """Each expert's share of responsibilities (N, E), its logarithm: (E,) float64."""
    total = resp.sum(0, dtype=torch.float64)
    return (total / total.sum().clamp_min(1e-300)).clamp_min(1e-12).log()
