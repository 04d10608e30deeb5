"""A set share of the experts should be on, for each expert and for each token (E. Bengio et al., 2015)."""

from __future__ import annotations

import torch
from torch import Tensor

from moecli.losses.term import Balance
from moecli.routing import Routing
from moecli.types import FiniteFloat, Probability, Scope


class Sparsity(Balance):
    """L_b + L_e = mean_e (mean_n s_ne - tau)^2 + mean_n (mean_e s_ne - tau)^2, s the chance of being drawn.

    The paper sums over experts and we take means, so that a weight serves any number of experts.
    """

    needs = Balance.needs | {"switches"}

    def __init__(self, weight: FiniteFloat = 10.0, scope: Scope = "batch", target: Probability = 0.25):
        super().__init__(weight, scope)
        self.target = target

    def evidence(self, routing: Routing) -> Tensor:  # -> (N, E + 1)
        chance: Tensor = routing.chance  # type: ignore[attr-defined]  # needs: switches
        of_token = (chance.mean(-1, keepdim=True) - self.target).square()
        return torch.cat([chance, of_token], dim=-1)

    def score(self, mean: Tensor, routing: Routing) -> Tensor:
        return ((mean[:, :-1] - self.target).square().mean(-1) + mean[:, -1]).mean()
