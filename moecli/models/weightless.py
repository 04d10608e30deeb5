"""Models without their weights, to be counted whatever their size: shapes on torch's meta device, and real decisions.

All that is counted of a model hangs on shapes, but for the rows of work that its routers make.  So a router stands
on the CPU and decides for real, over a gate that answers random logits; all other tensors have a shape and no memory.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, is_dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from moecli.config import Config
from moecli.experts.experts import Experts
from moecli.models.model import Known, Model
from moecli.parts import Parts
from moecli.plan import Groups, Plan
from moecli.routing import Router, Tokens

META = torch.device("meta")


class Weightless(Parts):
    """Parts of a model that is built on the meta device: ``with META: build(node, parts=Weightless(...))``."""

    def _router(self, nodes: Config, context: dict[str, Any]) -> Router:
        with torch.device("cpu"):  # what routers hold themselves, such as tables of hashes, is small
            return super()._router(nodes, context)

    def _gate(self, nodes: Config, context: dict[str, Any], width: int) -> nn.Module:
        with META:
            gate: nn.Module = super()._gate(nodes, context, width)
        gate.register_forward_pre_hook(lambda _, args: (args[0].to(META),))
        gate.register_forward_hook(lambda _, args, logits: torch.randn(logits.shape, device="cpu"))
        return gate

    def _experts(self, nodes: Config, context: dict[str, Any]) -> Experts:
        return Counted(super()._experts(nodes, context), context["out"])


class Counted(Experts):
    """Experts whose work is counted and not done: a product of the same cost stands for each row's."""

    def __init__(self, experts: Experts, out: int):
        super().__init__()
        self.experts, self.out, self.num_experts = experts, out, experts.num_experts
        self.needs, self.gives = experts.needs, experts.gives  # type: ignore[misc]  # an instance's own
        self.read = 0  # numbers of a row, known once the experts have met one

    def rows(self, plan: Plan, x: Tensor) -> Tensor:  # (N, *item) -> (R, Y)
        inputs = on_meta(plan).dispatch(x)
        self._meet(inputs)
        inner = self.flops() // 2
        inputs.new_empty(len(inputs), inner) @ inputs.new_empty(inner, 1)
        return inputs.new_empty(len(inputs), self.out)

    def _meet(self, inputs: Tensor) -> None:
        """Let the experts see one item each, once: what a row costs may hang on an item's length."""
        if not self.read:
            one = Groups(torch.ones(self.num_experts, dtype=torch.int64, device="cpu"), even=True)
            self.experts(inputs.new_empty(self.num_experts, *inputs.shape[1:]), one)
            self.read = inputs[0].numel()

    def blend(self, plan: Plan, x: Tensor) -> Tensor:
        return on_meta(plan).combine(self.rows(plan, x))

    def flops(self) -> int:
        return self.experts.flops()

    def twin(self, flops: float) -> Experts:
        with META:
            return Counted(self.experts.twin(flops), self.out)


def on_meta(plan: Any) -> Any:
    """A plan that was made on the CPU, with the shapes of its tensors alone."""
    values = {field.name: getattr(plan, field.name) for field in fields(plan)}
    moved = {name: value.to(META) for name, value in values.items() if isinstance(value, Tensor)}
    inner = {name: on_meta(value) for name, value in values.items() if is_dataclass(value)}
    return replace(plan, **moved, **inner)


def tell(model: Model, x: Tensor, known: Known) -> None:
    """Let every router see the batch (x, known) on the CPU, when the model reads its shapes on the meta device.

    Only what tokens hold stays unseen: their features are zeros, which gates have no eyes for.
    """
    for name, layer in model.mixtures.items():
        read = model.reads(name)
        layer.router.register_forward_pre_hook(lambda _, args, read=read: (_seen(args[0], x, known or {}, read),))


def _seen(tokens: Tokens, x: Tensor, known: Mapping[str, Tensor], read: slice) -> Tokens:
    features = torch.zeros(1, device="cpu").expand(tokens.x.shape)  # no memory either
    if x.is_floating_point() and len(features) == len(x):
        return Tokens.items(features, known)
    sequences = features.unflatten(0, (len(x), -1))  # (B, T, D)
    ids = None if x.is_floating_point() else x[:, read]
    facts = {name: fact[:, read] if fact.ndim > 1 else fact for name, fact in known.items()}
    return replace(Tokens.sequences(sequences, ids, facts, start=read.start or 0), previous=tokens.previous)
