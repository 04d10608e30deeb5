"""One mixture layer, or a stack of them, over whole examples."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from moecli.mixture import Output, together
from moecli.models.model import Known, Layer, Model
from moecli.parts import Parts
from moecli.routing import Tokens
from moecli.types import NonNegativeInt, PositiveInt


class LayerModel(Model):
    """x (B, D) -> ``depth`` layers, each h + mixture(h) -> a linear head; without a head the last layer answers."""

    needs: frozenset[str] = frozenset({"items"})

    def __init__(
        self,
        parts: Parts,
        dim: int,
        out: int,
        depth: PositiveInt = 1,
        head: bool = True,
        residual: bool = True,
        shared: NonNegativeInt = 0,
        shared_mix: Literal["add", "gate", "mix"] = "add",
        **options: Any,
    ):
        super().__init__(**options)
        names = [f"layer{index}" for index in range(depth)]
        parts = parts.named(names, self.overrides)
        widths = [dim] * depth if head else [dim] * (depth - 1) + [out]
        built = {
            name: parts.mixture(name, index, depth, dim=dim, out=width, shared=shared, shared_mix=shared_mix)
            for index, (name, width) in enumerate(zip(names, widths, strict=True))
        }
        self.layers: Any = nn.ModuleDict(built)
        if head or depth > 1:  # they add to a layer's input, or read a vector of its size
            self.needs = self.needs | {"vectors"}
        hidden = names if head else names[:-1]  # a layer that answers adds nothing of its input
        self.residual = frozenset(hidden if residual else [])
        self.head = nn.Linear(dim, out) if head else None

    def forward(self, x: Tensor, known: Known = None) -> Output:  # (B, D) -> (B, Y)
        tokens, routings = Tokens.items(x, known), {}
        for name, layer in self.layers.items():
            y, routing = layer(tokens)
            routings[name] = routing
            tokens = replace(tokens, x=tokens.x + y if name in self.residual else y, previous=routing)
        return Output(tokens.x if self.head is None else self.head(tokens.x), routings)

    @property
    def mixtures(self) -> dict[str, Layer]:
        return dict(self.layers.items())

    def replace(self, name: str, layer: Layer) -> None:
        self.layers[name] = layer

    def experts_alone(self, x: Tensor) -> Tensor | None:
        layer = self.layers["layer0"]
        if self.head is not None or len(self.layers) > 1:
            return None
        return expert_table(layer.experts.rows(together(layer.experts, x), x), len(x))


def expert_table(rows: Tensor, num_tokens: int) -> Tensor:  # (E N, Y) -> (N, E, Y)
    return torch.stack(rows.split(num_tokens), dim=1)
