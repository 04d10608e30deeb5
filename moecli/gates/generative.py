"""What gates have in common that model x itself: a share and a density for each expert (Xu, Jordan & Hinton, 1995)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from moecli.gates.constant import log_share
from moecli.gates.gate import Gate


class Density(nn.Module):
    """p_e(x) for each expert, fitted by weighted maximum likelihood within bounds that keep it from collapsing."""

    def forward(self, x: Tensor) -> Tensor:
        """Log p_e(x): (N, D) -> (N, E)."""
        raise NotImplementedError

    def fit(self, x: Tensor, share: Tensor, alive: Tensor) -> None:
        """The exact maximum of sum_n share log p_e(x) within the bounds; an expert that is not alive stays as it is.

        x (N, D) and share (N, E) float64, columns of share sum to one; alive (E,) bool.
        """
        raise NotImplementedError


class Generative(Gate):
    """Logits = log share_e + log p_e(x), so that the M-step is closed: no inner loop over the gate.

    EM raises the joint likelihood p(y, x), which ``joint_nll`` shows.
    """

    gives = frozenset({"gate fit"})

    def __init__(self, density: Density, num_experts: int):
        super().__init__()
        self.log_prior = nn.Parameter(torch.zeros(num_experts))
        self.density = density

    def forward(self, x: Tensor) -> Tensor:  # (N, D) -> (N, E)
        return self.log_prior.to(x.dtype).log_softmax(-1) + self.density(x)

    def log_joint(self, x: Tensor) -> Tensor:
        return self(x)

    def log_marginal(self, x: Tensor) -> Tensor:
        return self(x).logsumexp(-1)

    @torch.no_grad()
    def fit(self, x: Tensor, resp: Tensor, steps: int = 1) -> None:
        """Maximise sum resp log p(e, x); an empty expert keeps its place."""
        resp = resp.double()
        total = resp.sum(0)  # (E,)
        self.log_prior.copy_(log_share(resp))
        self.density.fit(x.double(), resp / total.clamp_min(1e-300), total > 1e-8)


def keep_dead(new: Tensor, old: Tensor, alive: Tensor) -> Tensor:
    """The new parameters (E, ...) of experts that are alive, the old ones of the others."""
    return torch.where(alive.view(-1, *[1] * (new.ndim - 1)), new, old.to(new.dtype))
