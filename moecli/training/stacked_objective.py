"""What L runs minimise at once: their losses and totals (L,), each of its own run's examples and routing alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from moecli.losses.objective import Objective, mean
from moecli.losses.term import Balance, Term
from moecli.models.lanes import apart
from moecli.routing import Routing


class StackedObjective(Objective):
    """The objectives of L runs, whose terms may differ in weight: scalars become (L,)."""

    def __init__(self, objectives: Sequence[Objective], device: torch.device):
        self.lanes, first = len(objectives), objectives[0]
        terms: Any = {
            name: Weighted(
                term, torch.tensor([o.terms[name].weight for o in objectives], dtype=torch.float64, device=device)
            )
            for name, term in first.terms.items()
        }
        super().__init__(first.task, terms, first.idle)

    def _mean(self, example_loss: Tensor, weight: Tensor | None) -> Tensor:  # (L B,) -> (L,)
        loss = example_loss.view(self.lanes, -1)
        return loss.mean(1) if weight is None else torch.vmap(mean)(loss, weight.view(self.lanes, -1))

    def _value(self, name: str, routing: Routing, example_loss: Tensor) -> Tensor:  # -> (L,)
        term = self.terms[name].term  # type: ignore[attr-defined]
        if isinstance(term, Balance) and term.scope != "sequence":
            means = term.evidence(routing).unflatten(0, (self.lanes, -1)).mean(1)  # (L, M)
            return torch.vmap(lambda own: term.score(own[None], routing))(means)
        losses = example_loss.view(self.lanes, -1)
        parts = zip(apart(routing, self.lanes), losses, strict=True)
        return torch.stack([term.value(own, loss) for own, loss in parts])


class Weighted(Term):
    """A term with one weight for each run (L,)."""

    weight: Any

    def __init__(self, term: Term, weight: Tensor):
        super().__init__(weight)  # type: ignore[arg-type]
        self.term = term
