"""A hard choice forward, the soft choice's gradient backward (Y. Bengio, Leonard & Courville, 2013)."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from moecli.gates.gate import Gate
from moecli.plan import Sparse
from moecli.routing import Router, Routing, Tokens


class StraightThrough(Router):
    """y = f_e(x) with e = argmax gate(x), or drawn in training with ``sample``; dy/dp_e = f_e(x) as if p_e weighed it.

    The estimator is biased: it knows what the chosen expert would gain by more weight, not what another would do.
    """

    graded = False

    def __init__(self, gate: Callable[[int], Gate], num_experts: int, sample: bool = False, **filters):
        super().__init__(**filters)
        self.gate, self.sample = gate(num_experts), sample

    def route(self, tokens: Tokens) -> Routing:
        logits = self.gate(tokens.x)  # (N, E)
        probs = logits.softmax(-1)
        best = self._choose(probs.detach())  # (N, 1)
        p = probs.gather(-1, best)
        log_weight = torch.log1p(p - p.detach())  # zero, with the gradient of p
        return Routing(Sparse.from_choices(best, log_weight, logits.shape[-1]), probs, logits)

    def _choose(self, probs: Tensor) -> Tensor:  # (N, E) -> (N, 1)
        return probs.multinomial(1) if self.sample and self.training else probs.argmax(-1, keepdim=True)
