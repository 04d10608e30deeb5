"""Tokens should say which expert, and experts be used alike (Bridle et al., 1991)."""

from __future__ import annotations

import torch
from torch import Tensor

from moecli.losses.term import Balance
from moecli.routing import Routing, entropy
from moecli.types import FiniteFloat, Scope


class MutualInformation(Balance):
    """-I(token; expert) = mean_n H(p_n) - H(mean_n p_n) in nats, to be lowered: between -log E and 0."""

    def __init__(self, weight: FiniteFloat = 0.01, scope: Scope = "batch"):
        super().__init__(weight, scope)

    def evidence(self, routing: Routing) -> Tensor:  # -> (N, E + 1)
        return torch.cat([routing.probs, entropy(routing.probs)[:, None]], dim=-1)

    def score(self, mean: Tensor, routing: Routing) -> Tensor:
        return (mean[:, -1] - entropy(mean[:, :-1])).mean()
