"""Several views of one state, and how much each counts in this context: what both mixtures of a head mix."""

from __future__ import annotations

from torch import Tensor, nn


class Components(nn.Module):
    """h_k = tanh(V_k g + b_k) and pi = softmax(U g): state (..., D) -> contexts (..., K, D), log pi (..., K)."""

    def __init__(self, dim: int, components: int):
        super().__init__()
        self.latent = nn.Linear(dim, components * dim)
        self.prior = nn.Linear(dim, components, bias=False)
        self.components = components

    def forward(self, state: Tensor) -> tuple[Tensor, Tensor]:
        contexts = self.latent(state).tanh().unflatten(-1, (self.components, -1))
        return contexts, self.prior(state).log_softmax(-1)
