"""Soft MoE: slots average tokens, tokens average slots (Puigcerver et al., 2023)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Literal

from moecli.gates.gate import Gate
from moecli.plan import Slots
from moecli.routing import Claims, Router, Routing, Tokens
from moecli.types import PositiveInt


class SoftSlots(Router):
    """A gate over E x P slots; softmax over a group's tokens fills a slot, softmax over slots reads it back.

    With logits l_ns of token n for slot s of expert e(s): y_n = sum_s C_ns f_e(s)(sum_m D_ms x_m), where D is the
    softmax of l over the tokens of the group and C the softmax over all slots.
    Groups as in ``expert_choice``.  There is no logit per expert, only per slot.
    """

    own = Claims(density=False, balanced=True, causal=False, independent=False)
    gives = frozenset({"gate"})
    reasons = {  # noqa: RUF012
        "causal": "each slot averages the whole text, so a token sees the future",
        "density": "a slot is an average of tokens, not one token, so it has no likelihood",
    }

    def __init__(
        self,
        gate: Callable[[int], Gate],
        num_experts: int,
        slots: PositiveInt = 16,
        group: Literal["auto", "position", "batch"] = "auto",
    ):
        super().__init__()
        self.gate, self.shape, self.group = gate(num_experts * slots), (num_experts, slots), group
        if group == "position":
            self.own = replace(self.own, causal=True)

    def route(self, tokens: Tokens) -> Routing:
        logits = self.gate(tokens.x)  # (N, E P)
        batched = tokens.batched(self.group)
        into = batched.unpad(batched.pad(logits, fill=float("-inf")).softmax(1))
        slots = Slots(into.unflatten(-1, self.shape), logits.softmax(-1).unflatten(-1, self.shape), batched)
        return Routing(slots, slots.weights)
