"""Keeps router logits small (Zoph et al., 2022, eq. 5)."""

from __future__ import annotations

from torch import Tensor

from moecli.losses.term import Term
from moecli.routing import Routing
from moecli.types import FiniteFloat


class ZLoss(Term):
    """L = 1/N sum_n (log sum_e exp logits_ne)^2."""

    needs = Term.needs | {"logits"}

    def __init__(self, weight: FiniteFloat = 0.001):
        super().__init__(weight)

    def value(self, routing: Routing, example_loss: Tensor) -> Tensor:
        return routing.logits.logsumexp(-1).square().mean()  # type: ignore[union-attr]  # needs: logits
