"""A small network that scores experts (Eigen et al., 2013, use 50-64 hidden units)."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from moecli.gates.gate import Gate, affine
from moecli.types import PositiveInt


class Mlp(Gate):
    """Logits = W2 relu(W1 x + b1) + b2."""

    def __init__(self, dim: int, num_experts: int, hidden: PositiveInt = 64):
        super().__init__()
        self.up, self.down = nn.Linear(dim, hidden), nn.Linear(hidden, num_experts)

    def forward(self, x: Tensor) -> Tensor:  # (N, D) -> (N, E)
        return affine(F.relu(affine(x, self.up)), self.down)
