"""Share of the choices times share of the belief (Fedus et al., 2021, eq. 4)."""

from __future__ import annotations

from torch import Tensor

from moecli.losses.term import Balance
from moecli.routing import Routing
from moecli.types import FiniteFloat, Scope


class SwitchBalance(Balance):
    """L = E sum_e f_e P_e with f the share of edges (sums to one) and P the mean belief.

    Uniform use gives exactly 1 for any k, and full collapse E.  One is no minimum: hard counts can
    lie a little below it.  The gradient flows through P alone.
    """

    def __init__(self, weight: FiniteFloat = 0.01, scope: Scope = "batch"):
        super().__init__(weight, scope)

    def value(self, routing: Routing, example_loss: Tensor) -> Tensor:
        asked = self.mean(routing.asked.demand.detach(), routing)  # (G, E)
        share = asked / asked.sum(-1, keepdim=True)
        return routing.probs.shape[1] * (share * self.mean(routing.probs, routing)).sum(-1).mean()
