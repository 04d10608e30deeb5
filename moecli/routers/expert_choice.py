"""Each expert's best tokens (Zhou et al., 2022)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Literal

import torch

from moecli.gates.gate import Gate
from moecli.plan import Sparse
from moecli.routing import Claims, Router, Routing, Tokens, fair_share
from moecli.types import PositiveFloat


class ExpertChoice(Router):
    """In each group of n tokens every expert takes the C = ceil(capacity_factor n / E) that want it most.

    y_n = sum_e p_ne f_e(x_n) over the experts that took token n, with p = softmax(gate(x)) over the experts.

    A group is a sequence, or the batch where tokens are whole examples (``auto``); ``position`` groups
    the same time step of all sequences, which no future token enters; ``batch`` takes everything.
    """

    own = Claims(density=False, balanced=True, causal=False, independent=False)
    reasons = {  # noqa: RUF012
        "causal": "each expert picks its tokens from the whole text, so a token sees the future",
        "density": "a token may be picked by no expert, or by many, so its weights do not sum to one",
    }

    def __init__(
        self,
        gate: Callable[[int], Gate],
        num_experts: int,
        capacity_factor: PositiveFloat = 2.0,
        group: Literal["auto", "position", "batch"] = "auto",
    ):
        super().__init__()
        self.gate, self.capacity_factor, self.group = gate(num_experts), capacity_factor, group
        if capacity_factor >= num_experts:  # every expert takes every token: nobody competes
            self.own = Claims(balanced=True)
        elif group == "position":
            self.own = replace(self.own, causal=True)

    def route(self, tokens: Tokens) -> Routing:
        logits = self.gate(tokens.x)  # (N, E)
        num_experts = logits.shape[-1]
        batched = tokens.batched(self.group)
        capacity = fair_share(batched.size, self.capacity_factor, num_experts).minimum(batched.size)  # (G,)
        wish = batched.pad(logits.log_softmax(-1), fill=float("-inf"))  # (G, S, E)
        log_weight, place = wish.topk(int(capacity.max()), dim=1)  # (G, C, E)
        group = torch.arange(len(place), device=place.device)[:, None, None]
        rank = torch.arange(place.shape[1], device=place.device)[:, None]
        served = (rank < capacity[:, None, None]).expand_as(place).permute(2, 0, 1)  # (E, G, C)
        expert, _, choice = served.nonzero(as_tuple=True)
        token = batched.index[group, place].permute(2, 0, 1)[served]
        log_weight = log_weight.permute(2, 0, 1)[served]
        chosen = Sparse(token, expert, log_weight, choice, len(logits), num_experts, even=True)
        return Routing(chosen, logits.softmax(-1), logits)
