"""Groups of experts (devices) should do equal work (DeepSeek-V2, 2024, eqs. 26-28)."""

from __future__ import annotations

import torch
from torch import Tensor

from moecli.losses.term import Balance, alignment
from moecli.routing import Routing
from moecli.types import FiniteFloat, Scope


class GroupBalance(Balance):
    """L = G sum_g f_g P_g with f_g the share of the choices that fall on group g and P_g its summed mean belief.

    Uniform use gives exactly 1.  The paper's L_DevBal is this with G groups as devices: its f' is a mean
    over a group's experts of counts scaled by E / K, so the two agree.
    """

    needs = Balance.needs | {"groups"}

    def __init__(self, weight: FiniteFloat = 0.05, scope: Scope = "batch"):
        super().__init__(weight, scope)

    def evidence(self, routing: Routing) -> Tensor:  # -> (N, 2 G)
        asked = routing.asked.demand.detach().to(routing.probs.dtype)
        return torch.cat([by_group(asked, routing), by_group(routing.probs, routing)], dim=-1)

    def score(self, mean: Tensor, routing: Routing) -> Tensor:
        return alignment(*mean.chunk(2, dim=-1))


def by_group(per_expert: Tensor, routing: Routing) -> Tensor:
    """Sums over the experts of each group: (N, E) -> (N, G)."""
    return per_expert.unflatten(-1, (routing.num_groups, -1)).sum(-1)  # type: ignore[attr-defined]  # needs: groups
