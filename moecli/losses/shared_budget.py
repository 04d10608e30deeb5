"""How often tokens may leave the shared expert for the routed ones (NLLB, 2022)."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from moecli.losses.term import Term
from moecli.routing import Routing
from moecli.types import FiniteFloat, Probability


class SharedBudget(Term):
    """L = |mean_n g_n - budget|, g the weight of the routed experts beside the shared one (``model.shared_mix=mix``)."""

    needs = frozenset({"shared weight"})
    gives: ClassVar[frozenset[str]] = frozenset()

    def __init__(self, weight: FiniteFloat = 0.1, budget: Probability = 0.8):
        super().__init__(weight)
        self.budget = budget

    def value(self, routing: Routing, example_loss: Tensor) -> Tensor:
        return (1 - routing.shared.mean() - self.budget).abs()  # type: ignore[union-attr]  # needs: shared weight
