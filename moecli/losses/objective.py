"""What training minimises: one task loss per example, plus weighted auxiliary terms over each layer."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from moecli.losses.places import number_scored
from moecli.losses.term import Balance, Term, total
from moecli.mixture import Mixture, Output
from moecli.routing import Routing

Totals = dict[tuple[str, str], Tensor]  # {(term, layer): evidence (M + 1,)}


class Objective:
    """Output, target -> {"loss": task, each term's name: its mean over layers, "total": what to descend}.

    Terms are reported as they are; only ``total`` holds their weights.  Of one of several micro-batches,
    ``total`` is its share, so that totals and their gradients add up to those of the whole batch.
    """

    def __init__(
        self,
        task: Callable[[Tensor | Mixture, Tensor], Tensor],
        terms: Mapping[str, Term],
        idle: Mapping[str, frozenset[str]] | None = None,
    ):
        """``idle`` names the layers that a term has nothing to act on in."""
        self.task, self.terms, self.idle = task, terms, idle or {}
        self.across = {n: t for n, t in terms.items() if isinstance(t, Balance) and t.scope == "global"}

    def __call__(
        self,
        output: Output,
        target: Tensor,
        weight: Tensor | None = None,
        share: float = 1.0,
        whole: Totals | None = None,
    ) -> dict[str, Tensor]:
        """``weight`` (B,): how much each example counts, of their sum; else sequences count by their scored places.

        ``share`` of the batch is here, and ``whole`` is what ``totals`` of all its parts add up to.
        """
        example_loss = self.task(output.prediction, target)  # (B,)
        values = {"loss": self._mean(example_loss, number_scored(target) if weight is None else weight)}
        summed = share * values["loss"]
        for name, term in self.terms.items():
            layers = self._active(name, output)
            if not layers:
                continue
            across = whole is not None and name in self.across
            found = [
                self.across[name].within(routing, whole[name, layer])  # type: ignore[index]
                if across
                else self._value(name, routing, example_loss[routing.example])
                for layer, routing in layers.items()
            ]
            values[name] = value = torch.stack(found).mean(0)
            part = share * value.detach() + value - value.detach() if across else share * value
            summed = summed + term.weight * part
        return values | {"total": summed}

    def _mean(self, example_loss: Tensor, weight: Tensor | None) -> Tensor:
        """What counts of the task's losses (B,), each by its weight (B,)."""
        return mean(example_loss, weight)

    def _value(self, name: str, routing: Routing, example_loss: Tensor) -> Tensor:
        """A term of one layer; example_loss (N,) is each token's example's."""
        return self.terms[name].value(routing, example_loss)

    def totals(self, output: Output) -> Totals:
        """What this micro-batch adds to the evidence of the terms that balance over all of them."""
        return {
            (name, layer): total(term, routing)
            for name, term in self.across.items()
            for layer, routing in self._active(name, output).items()
        }

    def _active(self, name: str, output: Output) -> dict[str, Routing]:
        return {layer: r for layer, r in output.routings.items() if layer not in self.idle.get(name, ())}


def mean(values: Tensor, weight: Tensor | None) -> Tensor:
    """Of values (B,), each by its weight (B,); zero where no weight is left."""
    if weight is None:
        return values.mean()
    weight = weight.to(values.dtype)
    return weight @ values / weight.sum().clamp_min(torch.finfo(values.dtype).tiny)
