"""What training minimises: one task loss per example, plus weighted auxiliary terms over each layer."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from moecli.losses.term import Term
from moecli.mixture import Mixture, Output


class Objective:
    """Output, target -> {"loss": task, each term's name: its mean over layers, "total": what to descend}.

    Terms are reported as they are; only ``total`` holds their weights.
    """

    def __init__(
        self,
        task: Callable[[Tensor | Mixture, Tensor], Tensor],
        terms: Mapping[str, Term],
        idle: Mapping[str, frozenset[str]] | None = None,
    ):
        """``idle`` names the layers that a term has nothing to act on in."""
        self.task, self.terms, self.idle = task, terms, idle or {}

    def __call__(self, output: Output, target: Tensor) -> dict[str, Tensor]:
        example_loss = self.task(output.prediction, target)  # (B,)
        values = {"loss": example_loss.mean()}
        total = values["loss"]
        for name, term in self.terms.items():
            active = [r for layer, r in output.routings.items() if layer not in self.idle.get(name, ())]
            if active:
                layers = [term.value(routing, example_loss[routing.example]) for routing in active]
                values[name] = torch.stack(layers).mean()
                total = total + term.weight * values[name]
        return values | {"total": total}
