"""As many experts as it takes to be sure (Huang et al., 2024)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from torch import Tensor

from moecli.gates.gate import Gate
from moecli.plan import Sparse
from moecli.routing import Router, Routing, Tokens
from moecli.types import Part


class TopP(Router):
    """y = sum_e p_e f_e(x) over the fewest experts whose beliefs p_e = softmax(gate(x))_e sum to at least ``p``.

    ``renormalize`` divides by their sum, so that the weights sum to one.
    """

    steady = False

    def __init__(
        self, gate: Callable[[int], Gate], num_experts: int, p: Part = 0.4, renormalize: bool = False, **filters
    ):
        super().__init__(**filters)
        self.gate, self.p, self.renormalize, self.choices = gate(num_experts), p, renormalize, num_experts
        self.own = replace(self.own, density=renormalize)
        if not self.own.density:
            self.reasons = {"density": "the weights of the chosen do not sum to one (router.renormalize=false)"}

    def route(self, tokens: Tokens) -> Routing:
        logits = self.gate(tokens.x)  # (N, E)
        log_probs = logits.log_softmax(-1)
        probs = log_probs.exp()
        chosen = self.nucleus(probs.detach())
        if self.renormalize:
            log_probs = log_probs - log_probs.masked_fill(~chosen, float("-inf")).logsumexp(-1, keepdim=True)
        return Routing(Sparse.from_mask(chosen, log_probs, probs.detach()), probs, logits)

    def nucleus(self, probs: Tensor) -> Tensor:
        """Whether an expert is needed: what stands before it, best first, is less than ``p``; (N, E) -> bool."""
        ordered, expert = probs.sort(dim=-1, descending=True, stable=True)
        needed = (ordered.cumsum(-1) - ordered < self.p) & (ordered > 0)
        return needed.scatter(-1, expert, needed)
