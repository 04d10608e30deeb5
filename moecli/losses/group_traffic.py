"""Groups of experts (devices) should receive equally many tokens (DeepSeek-V2, 2024, eqs. 29-31)."""

from __future__ import annotations

import torch
from torch import Tensor

from moecli.losses.group_balance import by_group
from moecli.losses.term import Balance
from moecli.routing import Routing
from moecli.types import FiniteFloat, Scope


class GroupTraffic(Balance):
    """L = (G / M) sum_g f_g P_g with f_g the share of tokens that are sent to group g, of M they may reach.

    A token counts once however many experts of a group it chooses, which is what crosses the network.
    Where every token reaches all M groups that it may and use is uniform this is exactly 1.
    """

    needs = Balance.needs | {"groups"}

    def __init__(self, weight: FiniteFloat = 0.02, scope: Scope = "batch"):
        super().__init__(weight, scope)

    def evidence(self, routing: Routing) -> Tensor:  # -> (N, 2 G)
        sent = by_group(routing.asked.demand.detach(), routing) > 0
        return torch.cat([sent.to(routing.probs.dtype), by_group(routing.probs, routing)], dim=-1)

    def score(self, mean: Tensor, routing: Routing) -> Tensor:
        sent, belief = mean.chunk(2, dim=-1)
        num_groups, limit = routing.num_groups, routing.limit  # type: ignore[attr-defined]  # needs: groups
        return num_groups / limit * (sent.detach() * belief).sum(-1).mean()
