"""All experts but those that have done more than their share so far: a hard balance, for a first phase."""

from __future__ import annotations

from collections.abc import Callable

import torch

from moecli.gates.gate import Gate
from moecli.plan import Dense as DensePlan
from moecli.routing import Claims, Router, Routing, Tokens, Usage
from moecli.types import NonNegativeFloat, PositiveInt


class CatchUp(Router):
    """Dense gating in which an expert ahead of the mean waits (Eigen et al., 2013, section 3.1).

    With G_e the weight that expert e had so far, summed over all training tokens: g_e = 0 where
    G_e - mean(G) > ``margin``, and the others' weights are renormalised.  After ``steps`` training steps, and
    in evaluation, every expert serves.  The paper sums example by example; here it is after every step.
    """

    own = Claims(balanced=True)
    choices = 0

    total: torch.Tensor  # (E,) work so far, in tokens
    seen: torch.Tensor  # () training steps so far

    def __init__(
        self,
        gate: Callable[[int], Gate],
        num_experts: int,
        margin: NonNegativeFloat = 32.0,
        steps: PositiveInt | None = None,
        **filters,
    ):
        super().__init__(**filters)
        self.gate, self.margin, self.steps = gate(num_experts), margin, steps
        self.register_buffer("total", torch.zeros(num_experts))
        self.register_buffer("seen", torch.zeros((), dtype=torch.int64))

    def route(self, tokens: Tokens) -> Routing:
        logits = self.gate(tokens.x)  # (N, E)
        allowed = logits.masked_fill(self.waiting(), -torch.inf) if self.training else logits
        return Routing(DensePlan(allowed.log_softmax(-1)), logits.softmax(-1), logits)

    def waiting(self) -> torch.Tensor:
        """Whose turn it is not: (E,) bool; never everyone's, because not all are ahead of their mean."""
        over = self.steps is not None and int(self.seen) >= self.steps
        return torch.zeros_like(self.total, dtype=torch.bool) if over else self.total - self.total.mean() > self.margin

    @torch.no_grad()
    def after_step(self, usage: Usage) -> None:
        self.total += usage.mass.to(self.total)
        self.seen += 1
