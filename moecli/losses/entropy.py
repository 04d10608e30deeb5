"""How undecided the gate is about a token, in nats."""

from __future__ import annotations

from torch import Tensor

from moecli import routing as evidence
from moecli.losses.term import Term
from moecli.types import FiniteFloat


class Entropy(Term):
    """L = -1/N sum_n sum_e p_ne log p_ne, the gate's belief: a positive weight sharpens it, a negative one spreads it."""

    def __init__(self, weight: FiniteFloat = 0.01):
        super().__init__(weight)

    def value(self, routing: evidence.Routing, example_loss: Tensor) -> Tensor:
        return evidence.entropy(routing.probs).mean()
