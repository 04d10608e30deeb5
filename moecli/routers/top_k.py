"""Each token's k best experts (Shazeer et al., 2017; Fedus et al., 2021; Jiang et al., 2024)."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor
from torch.distributions import Normal

from moecli.errors import UsageError
from moecli.gates.gate import Gate
from moecli.plan import Sparse
from moecli.routing import NoisyRouting, Router, Routing, Tokens
from moecli.types import NonNegativeFloat, PositiveFloat, PositiveInt, Probability


class TopK(Router):
    """Softmax over the k best logits (Mixtral), or without ``renormalize`` over all of them (Switch, V-MoE, OLMoE).

    y = sum_e w_e f_e(x) over the k largest logits h_e = gate(x)_e, with w_e = exp(h_e) / sum exp(h) over those k, or
    over all E.  The two orders, softmax before or after the selection, choose the same experts and differ in this alone.
    In training ``jitter`` scales each input by U[1 - jitter, 1 + jitter] (Switch), and ``noise`` adds
    N(0, (noise / E)^2) to the logits (V-MoE), so that the term ``load`` has a say; ``scale`` multiplies the weights (DeepSeek-V2).

    Raises UsageError for k = 1 renormalised: its weight is a constant, so the gate would never learn.
    """

    def __init__(
        self,
        gate: Callable[[int], Gate],
        num_experts: int,
        k: PositiveInt = 2,
        renormalize: bool = True,
        scale: PositiveFloat = 1.0,
        jitter: Probability = 0.0,
        noise: NonNegativeFloat = 0.0,
        **filters,
    ):
        super().__init__(**filters)
        check_k(k, num_experts)
        check_graded(k, num_experts, renormalize)
        self.gate, self.k, self.renormalize, self.choices = gate(num_experts), k, renormalize, k
        self.scale, self.jitter, self.noise = scale, jitter, noise
        self.gives = Router.gives | {"noise"} if noise else Router.gives
        everyone = k == num_experts
        self.own = replace(self.own, density=(renormalize or everyone) and scale == 1, balanced=everyone)
        if not self.own.density:
            self.reasons = {"density": "the weights of the chosen do not sum to one (router.renormalize, router.scale)"}

    def route(self, tokens: Tokens) -> Routing:
        clean = self.gate(self._jittered(tokens.x))  # (N, E)
        std = self.noise / clean.shape[-1]
        logits = clean + std * torch.randn_like(clean) if self.training and std else clean
        top, expert = logits.topk(self.k, dim=-1)  # (N, K)
        total = (top if self.renormalize else logits).logsumexp(-1, keepdim=True)
        chosen = Sparse.from_choices(expert, top - total + math.log(self.scale), logits.shape[-1])
        if not std:
            return Routing(chosen, logits.softmax(-1), logits)
        return NoisyRouting(chosen, logits.softmax(-1), logits, chance=chance(clean, logits, std, self.k))

    def _jittered(self, x: Tensor) -> Tensor:
        if not (self.training and self.jitter):
            return x
        return x * torch.empty_like(x).uniform_(1 - self.jitter, 1 + self.jitter)


def chance(clean: Tensor, noisy: Tensor, std: Tensor | float, k: int) -> Tensor:
    """Probability that fresh noise on one expert alone keeps it among the k best (Shazeer et al., eqs. 8-9): (..., E)."""
    if k == clean.shape[-1]:
        return torch.ones_like(clean)
    top = noisy.topk(k + 1, dim=-1).values  # (..., K + 1)
    last, next_best = top[..., k - 1, None], top[..., k, None]
    bar = torch.where(noisy >= last, next_best, last)  # the k-th best of the others
    return Normal(0.0, 1.0).cdf((clean - bar) / std)


def check_k(k: int, num_experts: int) -> None:
    """Raise UsageError where a token would have to choose more experts than there are."""
    if k > num_experts:
        raise UsageError(
            f"router.k={k}: there are only {num_experts} experts to choose from. Lower router.k or raise num_experts"
        )


def check_graded(k: int, num_experts: int, renormalize: bool) -> None:
    """Raises UsageError for one choice renormalised: its weight is a constant, so the gate would never learn."""
    if k == 1 and renormalize and num_experts > 1:
        raise UsageError(
            "router.k=1 with router.renormalize=true: the one weight is the constant 1, so no gradient reaches "
            "the gate and it never learns. Set router.renormalize=false, or router.k=2"
        )
