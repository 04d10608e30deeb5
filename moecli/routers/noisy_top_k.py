"""Trainable Gaussian noise before top-k (Shazeer et al., 2017, eqs. 3-5 and 8-10)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from moecli.errors import UsageError
from moecli.gates.gate import Gate
from moecli.plan import Sparse
from moecli.routers.top_k import chance, check_k
from moecli.routing import NoisyRouting, Router, Tokens
from moecli.types import PositiveInt


@dataclass(frozen=True)
class Choice:
    """The k best of noisy logits; where gates stand side by side, each tensor has an axis G before its last."""

    noisy: Tensor  # (N, E)
    top: Tensor  # (N, K) int64
    log_weight: Tensor  # (N, K)
    chance: Tensor  # (N, E) of staying among the k best under fresh noise


class Noise(nn.Module):
    """H(x) = gate(x) + N(0, 1) softplus(noise(x)) and its k best; no noise in evaluation."""

    def __init__(self, gate: Callable[[int], Gate], num_experts: int, k: int):
        super().__init__()
        self.gate, self.noise, self.k = gate(num_experts), gate(num_experts), k

    def forward(self, x: Tensor, training: bool, groups: int | None = None) -> Choice:
        """x (N, D); with ``groups`` the experts are chosen in each group apart."""
        clean = self.gate(x)  # (N, E)
        std = F.softplus(self.noise(x)) + 1e-2
        noisy = clean + std * torch.randn_like(clean) if training else clean
        if groups is not None:
            clean, std, noisy = (t.unflatten(-1, (groups, -1)) for t in (clean, std, noisy))
        top, expert = noisy.topk(self.k, dim=-1)  # (N, K)
        return Choice(noisy, expert, top.log_softmax(-1), chance(clean, noisy, std, self.k))


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
        self.choose, self.k, self.choices = Noise(gate, num_experts, k), k, k
        self.own = replace(self.own, balanced=k == num_experts)

    @property
    def gate(self) -> Gate:
        return self.choose.gate

    def route(self, tokens: Tokens) -> NoisyRouting:
        choice = self.choose(tokens.x, self.training)
        chosen = Sparse.from_choices(choice.top, choice.log_weight, choice.noisy.shape[-1])
        return NoisyRouting(chosen, choice.noisy.softmax(-1), choice.noisy, chance=choice.chance)
