"""The best expert, and a second one by chance (GShard, 2020; ST-MoE, 2022; NLLB, 2022)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from moecli.gates.gate import Gate
from moecli.plan import Sparse
from moecli.routers.top_k import check_k
from moecli.routing import Router, Routing, Tokens
from moecli.types import Share


class RandomSecond(Router):
    """y = g_1 f_1(x) + g_2 f_2(x) with the two best, g_1 + g_2 = 1.

    In training the second is kept with probability min(1, g_2 / threshold): ``threshold`` 0.5 is GShard's 2 g_2, 0.2 is
    ST-MoE's.  ``policy=threshold`` keeps it where g_2 > threshold, in evaluation too; ``policy=sampled`` draws the second
    from the belief by Gumbel noise (NLLB) and keeps it.  What is dropped takes its weight along, as in the papers' code.
    """

    def __init__(
        self,
        gate: Callable[[int], Gate],
        num_experts: int,
        threshold: Share = 0.5,
        policy: Literal["random", "threshold", "sampled"] = "random",
        **filters,
    ):
        super().__init__(**filters)
        check_k(2, num_experts)
        self.gate, self.threshold, self.policy, self.choices = gate(num_experts), threshold, policy, 2
        whole = replace(self.own, balanced=num_experts == 2)
        lossy = replace(self.own, density=False)
        self.own = lossy if policy == "threshold" else whole
        self.own_in_training = whole if policy == "sampled" else lossy
        self.reasons = {"density": "a token that loses its second expert loses that weight (router.policy)"}

    def route(self, tokens: Tokens) -> Routing:
        logits = self.gate(tokens.x)  # (N, E)
        best = logits.argmax(-1, keepdim=True)  # (N, 1)
        second = self._second(logits.detach(), best)
        expert = torch.cat([best, second], dim=-1)  # (N, 2)
        log_weight = logits.gather(-1, expert).log_softmax(-1)
        pair = Sparse.from_choices(expert, log_weight, logits.shape[-1])
        kept = self._kept(log_weight[:, 1].detach().exp())  # (N,)
        return Routing(pair.keep((pair.choice == 0) | kept[pair.token]), logits.softmax(-1), logits)

    def _second(self, logits: Tensor, best: Tensor) -> Tensor:  # (N, E), (N, 1) -> (N, 1)
        if self.policy == "sampled" and self.training:
            logits = logits - torch.empty_like(logits).exponential_().log()  # Gumbel noise
        taken = F.one_hot(best[:, 0], logits.shape[-1]).bool()
        return logits.masked_fill(taken, float("-inf")).argmax(-1, keepdim=True)

    def _kept(self, weight: Tensor) -> Tensor:  # (N,) of the second expert -> (N,) bool
        if self.policy == "threshold":
            return weight > self.threshold
        if self.policy == "random" and self.training:
            return torch.rand_like(weight) < weight / self.threshold
        return torch.ones_like(weight, dtype=torch.bool)
