"""A mixture of contexts under one softmax: as many parameters as a mixture of softmaxes, and the bottleneck of one."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from moecli.heads.components import Components
from moecli.heads.head import Head
from moecli.types import PositiveInt


class MixtureOfContexts(Head):
    """P(v | g) = softmax(W sum_k pi_k h_k)_v with h_k = tanh(V_k g + b_k), pi = softmax(U g) (Yang et al., 2018).

    The mixture is one vector again, so log P has a rank of at most D + 1, as with one softmax.
    """

    def __init__(self, dim: int, out: int, components: PositiveInt = 15):
        super().__init__()
        self.mixed = Components(dim, components)

    def forward(self, state: Tensor, matrix: Tensor) -> Tensor:
        contexts, log_prior = self.mixed(state)  # (..., K, D), (..., K)
        return F.linear(torch.einsum("...k,...kd->...d", log_prior.exp(), contexts), matrix)
