"""Experts should carry equal weight (Shazeer et al., 2017, eqs. 6-7)."""

from __future__ import annotations

from torch import Tensor

from moecli.losses.term import Balance, cv_squared
from moecli.routing import Routing
from moecli.types import FiniteFloat, Scope


class Importance(Balance):
    """CV^2 = variance / mean^2 over e of sum_n G(x_n)_e, the combine weights before capacity: zero when all are equal."""

    def __init__(self, weight: FiniteFloat = 0.1, scope: Scope = "batch"):
        super().__init__(weight, scope)

    def evidence(self, routing: Routing) -> Tensor:  # -> (N, E)
        return routing.asked.weights

    def score(self, mean: Tensor, routing: Routing) -> Tensor:
        return cv_squared(mean)
