"""A block's dense layer as the one expert that computes the same, and one expert as such a layer."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

import torch
from torch import nn

from moecli.experts.feed_forward import FeedForward
from moecli.mixture import Alone, MixtureOfExperts
from moecli.models.attention import SwiGlu, dense
from moecli.models.model import Model

KINDS = {("gelu", True): "gelu", ("swiglu", False): "swiglu"}  # activation and biases of what ``dense`` makes


def dense_layers(model: Model) -> dict[str, nn.Module]:
    """Of blocks without a mixture, by the name that a mixture would have there."""
    feeds = {path.split(".")[-2]: module for path, module in model.named_modules() if path.endswith(".feed")}
    return {name: feed for name, feed in feeds.items() if isinstance(feed, SwiGlu | nn.Sequential)}


def kind_of(layer: nn.Module) -> tuple[str, int] | None:
    """``model.feed`` and ``model.hidden`` of what could stand in a block without a mixture, None for all else."""
    if isinstance(layer, SwiGlu | nn.Sequential):
        return ("swiglu" if isinstance(layer, SwiGlu) else "gelu"), _maps(layer)["up"].out_features
    experts = getattr(layer, "experts", None)
    if not isinstance(experts, FeedForward) or experts.down is None or getattr(layer, "shared", None) is not None:
        return None
    kind = KINDS.get((experts.activation, experts.bias))
    return None if kind is None else (kind, experts.up.weight.shape[-1])


@torch.no_grad()
def as_expert(layer: nn.Module) -> MixtureOfExperts:
    """One expert that serves every token, with a dense layer's weights."""
    maps = _maps(layer)
    activation: Literal["swiglu", "gelu"] = "swiglu" if isinstance(layer, SwiGlu) else "gelu"
    dim, hidden, out = maps["up"].in_features, maps["up"].out_features, maps["down"].out_features
    expert = FeedForward(dim, out, 1, hidden, activation, bias=maps["up"].bias is not None)
    for one, linear in _pairs(expert, maps):
        one.weight.copy_(linear.weight.T)
        if one.bias is not None:
            one.bias.copy_(linear.bias)
    return MixtureOfExperts(Alone(), expert.to(maps["up"].weight.device))


@torch.no_grad()
def as_layer(expert: FeedForward, kind: str) -> nn.Module:
    """A dense layer with the weights of the one expert."""
    _, dim, hidden = expert.up.weight.shape
    layer = dense(kind, dim, hidden)
    for one, linear in _pairs(expert, _maps(layer)):
        linear.weight.copy_(one.weight[0].T)
        if one.bias is not None:
            linear.bias.copy_(one.bias[0])
    return layer.to(expert.up.weight.device)


def _maps(layer: Any) -> dict[str, nn.Linear]:
    """By the names that the same maps have in an expert."""
    if isinstance(layer, SwiGlu):
        return {"up": layer.up, "gate": layer.gate, "down": layer.down}
    return {"up": layer[0], "down": layer[2]}


def _pairs(expert: FeedForward, maps: dict[str, nn.Linear]) -> Iterator[tuple[Any, nn.Linear]]:
    return ((getattr(expert, name), linear) for name, linear in maps.items())
