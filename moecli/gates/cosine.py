"""Scores by angle: x and the experts' keys are normalised first (Chi et al., 2022)."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from moecli.gates.gate import Gate, affine
from moecli.types import PositiveFloat, PositiveInt


class Cosine(Gate):
    """Logits = cos(P x, key_e) / temperature; the temperature is learned and stays above 0.01.

    Without ``project`` P is the identity: with ``router=soft_slots`` the normalised form of Soft MoE, whose learned
    scale is 1 / temperature (Puigcerver et al., 2023, section 2.3).
    """

    def __init__(self, dim: int, num_experts: int, project: PositiveInt | None = 32, temperature: PositiveFloat = 0.07):
        super().__init__()
        self.project = None if project is None else nn.Linear(dim, project, bias=False)
        self.key = nn.Parameter(torch.randn(num_experts, project or dim))
        self.log_temperature = nn.Parameter(torch.tensor(math.log(temperature)))

    def forward(self, x: Tensor) -> Tensor:  # (N, D) -> (N, E)
        x = x if self.project is None else affine(x, self.project)
        angle = F.normalize(x, dim=-1) @ F.normalize(self.key.to(x.dtype), dim=-1).T
        return angle / self.log_temperature.to(x.dtype).exp().clamp_min(0.01)
