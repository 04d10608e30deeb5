"""A decoder-only transformer some of whose blocks have a mixture for their feed-forward part."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any, Literal

from torch import Tensor, nn

from moecli.mixture import MixtureOfExperts, Output
from moecli.models.attention import Attention, KeysValues, dense, norm_of
from moecli.models.latent import LatentAttention, refuse_idle
from moecli.models.model import Known, Layer, Model, Past
from moecli.models.places import places
from moecli.parts import Parts
from moecli.routing import Routing, Tokens
from moecli.types import NonNegativeInt, PositiveFloat, PositiveInt, Probability


class Transformer(Model):
    """ids (B, T) -> logits or log-probabilities (B, T, V): pre-norm blocks, rotary positions, a norm, a head.

    A mixture stands in blocks ``every`` - 1, 2 ``every`` - 1, ..., or in those that ``every`` lists; the others have a
    dense layer.
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
        kv_heads: PositiveInt | None = None,
        head_dim: PositiveInt | None = None,
        attention: Literal["full", "latent"] = "full",
        kv_rank: PositiveInt | None = None,
        q_rank: PositiveInt | None = None,
        every: list[int] | PositiveInt = 2,
        norm: Literal["rms", "layer"] = "rms",
        norm_eps: PositiveFloat | None = None,
        qk_norm: bool = False,
        qkv_bias: bool = False,
        rotary_base: PositiveFloat = 10_000.0,
        feed: Literal["gelu", "swiglu"] = "gelu",
        hidden: PositiveInt | None = None,
        tied: bool = True,
        dropout: Probability = 0.0,
        shared: NonNegativeInt = 0,
        shared_mix: Literal["add", "gate", "mix"] = "add",
        **options: Any,
    ):
        super().__init__(**options)
        names = [f"block{index}" for index in places(every, depth)]
        parts = parts.named(names, self.overrides)
        self.embedding = nn.Embedding(vocab_size, dim)
        nn.init.normal_(self.embedding.weight, std=dim**-0.5)
        sizes = {"dim": dim, "out": dim, "vocab_size": vocab_size, "shared": shared}
        built = {n: parts.mixture(n, i, len(names), **sizes, shared_mix=shared_mix) for i, n in enumerate(names)}
        normed = partial(norm_of, norm, eps=norm_eps)
        refuse_idle(
            attention,
            full={"kv_heads": kv_heads, "qk_norm": qk_norm, "qkv_bias": qkv_bias},
            latent={"kv_rank": kv_rank, "q_rank": q_rank},
        )
        dense_feed = partial(dense, feed, dim, hidden or 4 * dim)

        def attentive() -> Attention:
            if attention == "latent":
                return LatentAttention(dim, heads, normed, rotary_base, head_dim, kv_rank, q_rank)
            qk_normed = normed if qk_norm else None
            return Attention(dim, heads, kv_heads, True, rotary_base, qk_normed, qkv_bias, head_dim)

        def block(name: str) -> Block:
            # a dense layer is drawn also where a mixture takes its place: what a seed gives to the blocks behind stays
            return Block(attentive(), normed(dim), normed(dim), built.get(name, dense_feed()), dropout)

        self.blocks: Any = nn.ModuleDict({name: block(name) for name in (f"block{index}" for index in range(depth))})
        self.norm, self.dropout = normed(dim), nn.Dropout(dropout)
        self.head = parts.head(dim, vocab_size)
        self.output = None if tied or self.head.separate else nn.Linear(dim, vocab_size, bias=False)

    def forward(self, x: Tensor, known: Known = None) -> Output:
        return self._read(x, known)[0]

    def step(self, x: Tensor, known: Known = None, past: Past | None = None) -> tuple[Output, Past]:
        return self._read(x, known, past or Past())

    def _read(self, x: Tensor, known: Known, past: Past | None = None) -> tuple[Output, Past]:
        before = past or Past()
        state = self.dropout(self.embedding(x))  # (B, T, D)
        routings: dict[str, Routing] = {}
        kept: dict[str, KeysValues] = {}
        for name, block in self.blocks.items():
            state, seen = block.attend(state, before.kept.get(name))
            if past is not None:  # else nothing follows: the keys and values of a large batch may go, layer by layer
                kept[name] = seen
            state, routing = block.feed_forward(state, x, known, next(reversed(routings.values()), None), before.length)
            if routing is not None:
                routings[name] = routing
        matrix = (self.output or self.embedding).weight
        return Output(self.head(self.norm(state), matrix), routings), Past(before.length + x.shape[1], kept)

    @property
    def mixtures(self) -> dict[str, Layer]:
        feeds = {name: block.feed for name, block in self.blocks.items()}
        return {name: feed for name, feed in feeds.items() if isinstance(feed, MixtureOfExperts)}

    def replace(self, name: str, layer: Layer) -> None:
        self.blocks[name].feed = layer


class Block(nn.Module):
    """x + attention(norm x), then x + feed(norm x), where ``feed`` is a mixture or a dense layer."""

    def __init__(self, attention: Attention, norm1: nn.Module, norm2: nn.Module, feed: nn.Module, dropout: float):
        super().__init__()
        self.norm1, self.norm2 = norm1, norm2
        self.attention, self.dropout, self.feed = attention, nn.Dropout(dropout), feed

    def attend(self, x: Tensor, past: KeysValues | None) -> tuple[Tensor, KeysValues]:  # (B, T, D) -> the same
        y, kept = self.attention.step(self.norm1(x), past)
        return x + self.dropout(y), kept

    def feed_forward(
        self, x: Tensor, ids: Tensor, known: Known, previous: Routing | None, start: int
    ) -> tuple[Tensor, Routing | None]:  # (B, T, D) -> the same
        if not isinstance(self.feed, MixtureOfExperts):
            return x + self.dropout(self.feed(self.norm2(x))), None
        tokens = Tokens.sequences(self.norm2(x), ids, known, start=start)
        y, routing = self.feed(replace(tokens, previous=previous))
        return x + self.dropout(y.view_as(x)), routing
