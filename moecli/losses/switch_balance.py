"""Share of the choices times share of the belief (Fedus et al., 2021, eq. 4)."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from moecli.losses.term import Balance, alignment
from moecli.routing import Routing
from moecli.types import FiniteFloat, Scope


class SwitchBalance(Balance):
    """L = E sum_e f_e P_e with f the share of the choices (sums to one) and P the mean belief.

    Uniform use gives exactly 1 for any k, and full collapse E.  One is no minimum: hard counts can
    lie a little below it.  The gradient flows through P alone.  ``choices=first`` counts first choices
    only: E^2 times GShard's l_aux (Lepikhin et al., 2020).
    """

    def __init__(self, weight: FiniteFloat = 0.01, scope: Scope = "batch", choices: Literal["all", "first"] = "all"):
        super().__init__(weight, scope)
        self.choices = choices

    def evidence(self, routing: Routing) -> Tensor:  # -> (N, 2 E): what was asked, and what was believed
        asked = routing.asked.demand.detach()
        if self.choices == "first":
            asked = F.one_hot(routing.probs.argmax(-1), asked.shape[1])
        return torch.cat([asked.to(routing.probs.dtype), routing.probs], dim=-1)

    def score(self, mean: Tensor, routing: Routing) -> Tensor:
        return alignment(*mean.chunk(2, dim=-1))
