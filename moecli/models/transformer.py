"""A decoder-only transformer whose every n-th block has a mixture for its feed-forward part."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from moecli.errors import UsageError
from moecli.mixture import MixtureOfExperts, Output
from moecli.models.model import Known, Layer, Model
from moecli.parts import Parts
from moecli.routing import Routing, Tokens
from moecli.types import NonNegativeInt, PositiveInt, Probability


class Transformer(Model):
    """ids (B, T) -> logits (B, T, V): pre-norm blocks, rotary positions, a head tied to the embedding.

    A mixture stands in blocks ``every`` - 1, 2 ``every`` - 1, ...; the others have a dense GELU layer of 4 ``dim``.
    """

    needs = frozenset({"sequence", "ids"})
    gives = frozenset({"vectors"})

    def __init__(
        self,
        parts: Parts,
        vocab_size: int,
        dim: PositiveInt = 128,
        depth: PositiveInt = 4,
        heads: PositiveInt = 4,
        every: PositiveInt = 2,
        dropout: Probability = 0.0,
        shared: NonNegativeInt = 0,
        shared_mix: Literal["add", "gate", "mix"] = "add",
        **options: Any,
    ):
        super().__init__(**options)
        if dim % (2 * heads):
            raise UsageError(
                f"model.dim={dim}: rotary positions need an even share of it for each of the {heads} heads"
            )
        names = [f"block{index}" for index in range(every - 1, depth, every)]
        if not names:
            raise UsageError(f"model.every={every}: no block of model.depth={depth} has a mixture. Lower model.every")
        parts = parts.named(names, self.overrides)
        self.embedding = nn.Embedding(vocab_size, dim)
        nn.init.normal_(self.embedding.weight, std=dim**-0.5)
        built = {
            name: parts.mixture(
                name,
                index,
                len(names),
                dim=dim,
                out=dim,
                vocab_size=vocab_size,
                shared=shared,
                shared_mix=shared_mix,
            )
            for index, name in enumerate(names)
        }
        self.blocks = nn.ModuleDict(
            {name: Block(dim, heads, dropout, built.get(name)) for name in (f"block{index}" for index in range(depth))}
        )
        self.norm, self.dropout = nn.RMSNorm(dim), nn.Dropout(dropout)

    def forward(self, x: Tensor, known: Known = None) -> Output:
        state = self.dropout(self.embedding(x))  # (B, T, D)
        routings: dict[str, Routing] = {}
        for name, block in self.blocks.items():
            state, routing = block(state, x, known, next(reversed(routings.values()), None))
            if routing is not None:
                routings[name] = routing
        return Output(F.linear(self.norm(state), self.embedding.weight), routings)

    @property
    def mixtures(self) -> dict[str, Layer]:
        feeds = {name: block.feed for name, block in self.blocks.items()}
        return {name: feed for name, feed in feeds.items() if isinstance(feed, MixtureOfExperts)}

    def replace(self, name: str, layer: Layer) -> None:
        self.blocks[name].feed = layer


class Block(nn.Module):
    """x + attention(norm x), then x + feed(norm x), where ``feed`` is a mixture or a dense layer."""

    def __init__(self, dim: int, heads: int, dropout: float, mixture: nn.Module | None):
        super().__init__()
        self.norm1, self.norm2 = nn.RMSNorm(dim), nn.RMSNorm(dim)
        self.attention, self.dropout = Attention(dim, heads), nn.Dropout(dropout)
        dense = nn.Sequential(nn.Linear(dim, 4 * dim), nn.GELU(), nn.Linear(4 * dim, dim))
        self.feed = dense if mixture is None else mixture

    def forward(self, x: Tensor, ids: Tensor, known: Known, previous: Routing | None) -> tuple[Tensor, Routing | None]:
        x = x + self.dropout(self.attention(self.norm1(x)))  # (B, T, D)
        if isinstance(self.feed, nn.Sequential):
            return x + self.dropout(self.feed(self.norm2(x))), None
        tokens = replace(Tokens.sequences(self.norm2(x), ids, known), previous=previous)
        y, routing = self.feed(tokens)
        return x + self.dropout(y.view_as(x)), routing


class Attention(nn.Module):
    """Causal self-attention with rotary positions (Su et al., 2021)."""

    def __init__(self, dim: int, heads: int):
        super().__init__()
        self.heads = heads
        self.qkv, self.out = nn.Linear(dim, 3 * dim, bias=False), nn.Linear(dim, dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:  # (B, T, D) -> (B, T, D)
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)  # (B, H, T, D / H)
        y = F.scaled_dot_product_attention(rotate(q), rotate(k), v, is_causal=True)
        return self.out(y.transpose(1, 2).flatten(-2))


def rotate(x: Tensor, base: float = 10_000.0) -> Tensor:
    """Turn each pair of features by an angle that grows with the position: (B, H, T, F) -> the same."""
    t, half = x.shape[-2], x.shape[-1] // 2
    frequency = base ** (-torch.arange(half, device=x.device) / half)
    angle = torch.arange(t, device=x.device)[:, None] * frequency  # (T, F / 2)
    cos, sin = angle.cos().to(x.dtype), angle.sin().to(x.dtype)
    a, b = x.chunk(2, dim=-1)
    return torch.cat([a * cos - b * sin, a * sin + b * cos], dim=-1)
