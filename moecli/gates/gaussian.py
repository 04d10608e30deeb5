"""A gate that models x: one Gaussian per expert (Xu, Jordan & Hinton, 1995)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.distributions import Normal

from moecli.gates.gate import Gate
from moecli.types import PositiveFloat


class Gaussian(Gate):
    """Logits = log prior_e + log N(x; mean_e, diag var_e): the M-step is closed, no inner loop."""

    gives = frozenset({"gate fit"})

    def __init__(self, dim: int, num_experts: int, min_var: PositiveFloat = 1e-4):
        super().__init__()
        self.log_prior = nn.Parameter(torch.zeros(num_experts))
        self.mean = nn.Parameter(torch.randn(num_experts, dim))
        self.log_var = nn.Parameter(torch.zeros(num_experts, dim))
        self.min_var = min_var

    def forward(self, x: Tensor) -> Tensor:  # (N, D) -> (N, E)
        prior, mean, log_var = (p.to(x.dtype) for p in (self.log_prior, self.mean, self.log_var))
        normal = Normal(mean, (0.5 * log_var).exp())
        return prior.log_softmax(-1) + normal.log_prob(x[:, None]).sum(-1)

    def log_joint(self, x: Tensor) -> Tensor:
        return self(x)

    def log_marginal(self, x: Tensor) -> Tensor:
        return self(x).logsumexp(-1)

    @torch.no_grad()
    def fit(self, x: Tensor, resp: Tensor, steps: int = 1) -> None:
        """Weighted moments, which maximise sum resp log p(e, x) exactly; an empty expert keeps its place."""
        total = resp.sum(0)  # (E,)
        share = resp / total.clamp_min(1e-12)  # (N, E), columns sum to one
        mean = share.T @ x
        var = torch.einsum("ne,ned->ed", share, (x[:, None] - mean).square())
        alive = (total > 1e-8)[:, None]
        self.log_prior.copy_(total.clamp_min(1e-12).log())
        self.mean.copy_(torch.where(alive, mean, self.mean))
        self.log_var.copy_(torch.where(alive, var.clamp_min(self.min_var).log(), self.log_var))
