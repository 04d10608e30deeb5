"""A mixture of softmaxes, which breaks the bottleneck of one: log P may have any rank."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from moecli.heads.components import Components
from moecli.heads.head import Head
from moecli.types import PositiveInt


class MixtureOfSoftmaxes(Head):
    """P(v | g) = sum_k pi_k softmax(W h_k)_v with h_k = tanh(V_k g + b_k), pi = softmax(U g) (Yang et al., 2018).

    As log-probabilities, added up without leaving the logarithm.  With ``shared`` false each component has a matrix
    W_k of its own.
    """

    def __init__(self, dim: int, out: int, components: PositiveInt = 15, shared: bool = True):
        super().__init__()
        self.mixed, self.separate = Components(dim, components), not shared
        matrices = torch.empty(components, out, dim)
        self.matrices = None if shared else nn.Parameter(nn.init.normal_(matrices, std=dim**-0.5))

    def forward(self, state: Tensor, matrix: Tensor) -> Tensor:
        contexts, log_prior = self.mixed(state)  # (..., K, D), (..., K)
        logits = F.linear(contexts, matrix) if self.matrices is None else self._own(contexts)  # (..., K, V)
        return (log_prior[..., None] + logits.log_softmax(-1)).logsumexp(-2)

    def _own(self, contexts: Tensor) -> Tensor:  # (..., K, D) -> (..., K, V)
        return torch.einsum("...kd,kvd->...kv", contexts, self.matrices)
