"""Auxiliary terms: (routing, example_loss) -> scalar, over one layer's routing.

A term about balance is a function of averages over tokens, and its scope says over which:
``sequence`` each example apart, ``batch`` the tokens of one forward pass, ``global`` those of all
micro-batches of a step.
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
        """The loss of one layer: example_loss (N,) is each token's example's; -> scalar."""
        raise NotImplementedError


class Balance(Term):
    """A term about how tokens spread over experts.

    Subclasses write ``evidence``, a table (N, M) of each token's contribution, and ``score``, what its
    averages (G, M) over the tokens of each scope are worth.
    """

    def __init__(self, weight: FiniteFloat, scope: Scope):
        super().__init__(weight)
        self.scope = scope
        if scope == "sequence":
            self.needs = self.needs | {"sequence"}

    def evidence(self, routing: Routing) -> Tensor:  # -> (N, M)
        raise NotImplementedError

    def score(self, mean: Tensor, routing: Routing) -> Tensor:  # (G, M) -> scalar, the mean over G
        raise NotImplementedError

    def value(self, routing: Routing, example_loss: Tensor) -> Tensor:
        return self.score(self._means(routing), routing)

    def within(self, routing: Routing, whole: Tensor) -> Tensor:
        """The term over all micro-batches, whose evidence sums to ``whole`` (M + 1,), tokens counted last.

        Only this micro-batch's part of it carries a gradient, so gradients of the micro-batches add up to
        the gradient of the term over one large batch.
        """
        own = total(self, routing)[:-1]
        mean = (whole[:-1] + own - own.detach()) / whole[-1]
        return self.score(mean[None], routing)

    def _means(self, routing: Routing) -> Tensor:  # -> (G, M)
        evidence = self.evidence(routing)
        if self.scope != "sequence":
            return evidence.mean(0, keepdim=True)
        _, example, size = routing.example.unique(return_inverse=True, return_counts=True)
        return evidence.new_zeros(len(size), evidence.shape[1]).index_add(0, example, evidence) / size[:, None]


def total(term: Balance, routing: Routing) -> Tensor:
    """The term's evidence summed over tokens, and how many there are: (M + 1,)."""
    evidence = term.evidence(routing)
    return torch.cat([evidence.sum(0), evidence.new_tensor([len(evidence)])])


def cv_squared(values: Tensor) -> Tensor:
    """Squared coefficient of variation over experts: (G, E) -> scalar, the mean over G.

    By the variance, not the standard deviation, whose gradient is NaN at perfect balance.
    """
    spread = values.var(-1, unbiased=False) / values.mean(-1).square().clamp_min(torch.finfo(values.dtype).tiny)
    return spread.mean()


def alignment(share: Tensor, belief: Tensor) -> Tensor:
    """M sum_m f_m P_m, with f made to sum to one: (G, M) each -> scalar, the mean over G; one where either is uniform."""
    share = share.detach() / share.detach().sum(-1, keepdim=True)
    return share.shape[-1] * (share * belief).sum(-1).mean()
