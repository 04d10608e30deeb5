"""Auxiliary terms: (routing, example_loss) -> scalar, over one layer's routing.

A term says over which tokens it balances: ``scope=batch`` all of them, ``scope=sequence`` each
example apart, averaged.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from moecli.routing import Routing
from moecli.types import FiniteFloat, Scope


class Term:
    """One auxiliary loss.  Subclasses write ``value``; ``weight`` is what the objective multiplies it by."""

    needs: frozenset[str] = frozenset({"gate"})
    gives: ClassVar[frozenset[str]] = frozenset({"gate loss"})

    def __init__(self, weight: FiniteFloat):
        self.weight = weight

    def value(self, routing: Routing, example_loss: Tensor) -> Tensor:
        raise NotImplementedError


class Balance(Term):
    """A term about how tokens spread over experts, which has a scope."""

    def __init__(self, weight: FiniteFloat, scope: Scope):
        super().__init__(weight)
        self.scope = scope
        if scope == "sequence":
            self.needs = self.needs | {"sequence"}

    def mean(self, values: Tensor, routing: Routing) -> Tensor:
        """Average over the tokens of each scope: (N, E) -> (G, E)."""
        if self.scope == "batch":
            return values.mean(0, keepdim=True)
        _, example, size = routing.example.unique(return_inverse=True, return_counts=True)
        return values.new_zeros(len(size), values.shape[1]).index_add(0, example, values) / size[:, None]


def cv_squared(values: Tensor) -> Tensor:
    """Squared coefficient of variation over experts: (G, E) -> scalar, the mean over G.

    By the variance, not the standard deviation, whose gradient is NaN at perfect balance.
    """
    spread = values.var(-1, unbiased=False) / values.mean(-1).square().clamp_min(torch.finfo(values.dtype).tiny)
    return spread.mean()
