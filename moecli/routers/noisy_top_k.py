"""Trainable Gaussian noise before top-k (Shazeer et al., 2017, eqs. 3-5 and 8-10)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.distributions import Normal

from moecli.errors import UsageError
from moecli.gates.gate import Gate
from moecli.plan import Sparse
from moecli.routers.top_k import check_k
from moecli.routing import NoisyRouting, Router, Tokens
from moecli.types import PositiveInt


class NoisyTopK(Router):
    """Softmax over the k best of H(x) = gate(x) + N(0, 1) softplus(noise(x)); no noise in evaluation.

    y = sum_e w_e f_e(x) over the k largest H_e, with w = softmax of those k.

    Raises UsageError for k = 1: the one weight is the constant 1, so the task never trains the gate.
    """

    gives = Router.gives | {"noise"}

    def __init__(self, gate: Callable[[int], Gate], num_experts: int, k: PositiveInt = 2, **filters):
        super().__init__(**filters)
        check_k(k, num_experts)
        if k == 1 and num_experts > 1:
            raise UsageError(
                "router.k=1 (router=noisy_top_k): the one weight is the constant 1, so no task gradient reaches the "
                "gate. Set router.k=2, or use router=top_k router.k=1 router.renormalize=false"
            )
        self.gate, self.noise, self.k, self.choices = gate(num_experts), gate(num_experts), k, k
        self.own = replace(self.own, balanced=k == num_experts)

    def route(self, tokens: Tokens) -> NoisyRouting:
        clean = self.gate(tokens.x)  # (N, E)
        std = F.softplus(self.noise(tokens.x)) + 1e-2
        noisy = clean + std * torch.randn_like(clean) if self.training else clean
        top, expert = noisy.topk(self.k, dim=-1)  # (N, K)
        chosen = Sparse.from_choices(expert, top.log_softmax(-1), clean.shape[-1])
        return NoisyRouting(chosen, noisy.softmax(-1), noisy, chance=self._chance(clean, noisy, std))

    def _chance(self, clean: Tensor, noisy: Tensor, std: Tensor) -> Tensor:
        """Probability that fresh noise on one expert alone keeps it among the k best (eqs. 8-9): (N, E)."""
        if self.k == clean.shape[-1]:
            return torch.ones_like(clean)
        top = noisy.topk(self.k + 1, dim=-1).values  # (N, K + 1)
        chosen = noisy >= top[:, self.k - 1, None]
        bar = torch.where(chosen, top[:, self.k, None], top[:, self.k - 1, None])  # k-th best of the others
        return Normal(0.0, 1.0).cdf((clean - bar) / std)
