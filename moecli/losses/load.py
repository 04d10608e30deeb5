"""Experts should be chosen equally often, made smooth by the router's noise (Shazeer et al., 2017, eqs. 8-11)."""

from __future__ import annotations

from torch import Tensor

from moecli.losses.term import Balance, cv_squared
from moecli.routing import Routing
from moecli.types import FiniteFloat, Scope


class Load(Balance):
    """CV^2 = variance / mean^2 over e of sum_n P(x_n, e), the tokens expected to choose e under fresh noise."""

    needs = Balance.needs | {"noise"}

    def __init__(self, weight: FiniteFloat = 0.1, scope: Scope = "batch"):
        super().__init__(weight, scope)

    def evidence(self, routing: Routing) -> Tensor:  # -> (N, E)
        return routing.chance  # type: ignore[attr-defined]  # needs: noise

    def score(self, mean: Tensor, routing: Routing) -> Tensor:
        return cv_squared(mean)
