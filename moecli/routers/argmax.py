"""Hard routing: each token's best expert, with weight one (Collobert, Bengio & Bengio, 2002)."""

from __future__ import annotations

from collections.abc import Callable

from moecli.gates.gate import Gate
from moecli.plan import Sparse
from moecli.routing import Claims, Router, Routing, Tokens


class Argmax(Router):
    """y = f_e(x) with e = argmax_e gate(x)_e: no task gradient reaches the gate, so a term or a trainer must teach it."""

    own = Claims(trains_gate=False)
    graded = False

    def __init__(self, gate: Callable[[int], Gate], num_experts: int, **filters):
        super().__init__(**filters)
        self.gate = gate(num_experts)

    def route(self, tokens: Tokens) -> Routing:
        logits = self.gate(tokens.x)  # (N, E)
        best = logits.argmax(-1, keepdim=True)  # (N, 1)
        chosen = Sparse.from_choices(best, logits.new_zeros(best.shape), logits.shape[-1])
        return Routing(chosen, logits.softmax(-1), logits)
