"""Teaches a router that draws its decision by how well the drawn ones fared (Williams, 1992)."""

from __future__ import annotations

import torch
from torch import Tensor

from moecli.losses.term import Term
from moecli.routing import Routing


class Reinforce(Term):
    """L = (1 / B) sum_n (loss_n - baseline_n) log p(decision_n), n over tokens of B examples: its gradient is that of
    the expected mean loss.

    The baseline is the mean loss of the batch's other examples, which no decision of the token's own
    example entered, so it lowers the variance and leaves the gradient unbiased.
    """

    needs = Term.needs | {"draws"}

    def __init__(self, weight: float = 1.0):
        super().__init__(weight)

    def value(self, routing: Routing, example_loss: Tensor) -> Tensor:
        loss = example_loss.detach()
        advantage = loss - others(loss, routing.example)
        log_prob: Tensor = routing.log_prob  # type: ignore[attr-defined]  # needs: draws
        return (advantage * log_prob).sum() / len(routing.example.unique())


def others(loss: Tensor, example: Tensor) -> Tensor:
    """The mean loss of all examples but a token's own: (N,), (N,) -> (N,); zero where there is no other."""
    _, index, size = example.unique(return_inverse=True, return_counts=True)
    each = torch.zeros_like(size, dtype=loss.dtype).index_add(0, index, loss) / size  # (B,)
    return ((each.sum() - each) / max(len(each) - 1, 1))[index] * (len(each) > 1)
