"""All experts, weighted by the gate (Hampshire & Waibel, 1989; Jacobs et al., 1991)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from moecli.gates.gate import Gate
from moecli.kernels.algebra import log_softmax
from moecli.plan import Dense as DensePlan
from moecli.routing import Claims, Router, Routing, Tokens


class Dense(Router):
    """Every expert works on every token: y = sum_e softmax(gate(x))_e f_e(x)."""

    own = Claims(balanced=True)
    choices = 0
    gives = Router.gives | {"every edge", "every expert"}

    def __init__(self, gate: Callable[[int], Gate], num_experts: int, **filters):
        super().__init__(**filters)
        self.gate = gate(num_experts)
        self.graded = not self.gate.blind
        self.own = replace(self.own, trains_gate=any(p.requires_grad for p in self.gate.parameters()))

    def route(self, tokens: Tokens) -> Routing:
        logits = self.gate(tokens.x)  # (N, E)
        log_probs = log_softmax(logits)
        return Routing(DensePlan(log_probs), log_probs.exp(), logits)
