"""Balance without a loss: a bias steers the choice and never the weight (Wang et al., 2024; DeepSeek-V3, 2024)."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from moecli.gates.gate import Gate
from moecli.plan import Sparse
from moecli.routers.group_limited import check_groups, reachable
from moecli.routing import GroupedRouting, Router, Tokens, Usage
from moecli.types import NonNegativeFloat, PositiveFloat, PositiveInt


class SigmoidBias(Router):
    """y = scale sum_e s_e f_e(x) over the k best of s + b, s = sigmoid(gate(x)), divided by their sum if ``renormalize``.

    After each training step b_e rises by ``rate`` where expert e served less than its share, and falls where more.
    With ``groups`` a token reaches the ``limit`` groups whose two best experts sum highest (DeepSeek-V3).
    """

    needs = frozenset({"odds"})
    gives = Router.gives | {"groups"}
    bias: Tensor  # (E,)

    def __init__(
        self,
        gate: Callable[[int], Gate],
        num_experts: int,
        k: PositiveInt = 2,
        rate: NonNegativeFloat = 0.001,
        renormalize: bool = True,
        scale: PositiveFloat = 1.0,
        groups: PositiveInt = 1,
        limit: PositiveInt = 1,
        **filters,
    ):
        super().__init__(**filters)
        check_groups(num_experts, groups, limit, k)
        self.gate, self.k, self.rate, self.choices = gate(num_experts), k, rate, k
        self.renormalize, self.scale, self.groups, self.limit = renormalize, scale, groups, limit
        self.graded = not (renormalize and k == 1)
        self.register_buffer("bias", torch.zeros(num_experts))
        self.own = replace(
            self.own,
            density=renormalize and scale == 1,
            balanced=k == num_experts,
            trains_gate=not (renormalize and k == 1),
        )
        self.reasons = {"density": "the weights of the chosen do not sum to one (router.renormalize, router.scale)"}

    def route(self, tokens: Tokens) -> GroupedRouting:
        logits = self.gate(tokens.x)  # (N, E)
        log_score = F.logsigmoid(logits)
        liking = logits.detach().sigmoid() + self.bias.to(logits.dtype)
        best_of = min(2, liking.shape[-1] // self.groups)
        within = reachable(liking, self.groups, self.limit, best_of)
        expert = liking.masked_fill(~within, float("-inf")).topk(self.k, dim=-1).indices  # (N, K)
        top = log_score.gather(-1, expert)
        total = top.logsumexp(-1, keepdim=True) if self.renormalize else 0.0
        chosen = Sparse.from_choices(expert, top - total + math.log(self.scale), logits.shape[-1])
        probs = log_score.softmax(-1)  # sigmoids divided by their sum
        return GroupedRouting(chosen, probs, logits, num_groups=self.groups, limit=self.limit)

    @torch.no_grad()
    def after_step(self, usage: Usage) -> None:
        asked = usage.asked.to(self.bias.dtype)
        self.bias += self.rate * (asked.mean() - asked).sign()
