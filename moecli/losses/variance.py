"""Whether an expert is on should depend on the token (E. Bengio et al., 2015)."""

from __future__ import annotations

import torch
from torch import Tensor

from moecli.losses.term import Balance
from moecli.routing import Routing
from moecli.types import FiniteFloat, Scope


class Variance(Balance):
    """L_v = -mean_e var_n s_ne, s the chance of being drawn: between -1/4 and 0.

    The paper sums over experts and we take the mean, so that a weight serves any number of experts.
    """

    needs = Balance.needs | {"switches"}

    def __init__(self, weight: FiniteFloat = 1.0, scope: Scope = "batch"):
        super().__init__(weight, scope)

    def evidence(self, routing: Routing) -> Tensor:  # -> (N, 2 E)
        chance: Tensor = routing.chance  # type: ignore[attr-defined]  # needs: switches
        return torch.cat([chance, chance.square()], dim=-1)

    def score(self, mean: Tensor, routing: Routing) -> Tensor:
        first, second = mean.chunk(2, dim=-1)
        return -(second - first.square()).mean()
