"""A decoder-only transformer some of whose blocks have a mixture for their feed-forward part."""

from __future__ import annotations

from functools import partial
from typing import Any, Literal

from torch import Tensor, nn

from moecli.mixture import Output
from moecli.models.attention import Attention, KeysValues, dense, norm_of
from moecli.models.latent import LatentAttention, refuse_idle
from moecli.models.model import Blocks, Known, Past, Words
from moecli.models.places import places
from moecli.models.sequences import Sequences, followed
from moecli.parts import Parts
from moecli.routing import Routing
from moecli.types import NonNegativeInt, PositiveFloat, PositiveInt, Probability


class Transformer(Words, Blocks):
    """ids (B, T) -> logits or log-probabilities (B, T, V): pre-norm blocks, rotary positions, a norm, a head.

    A mixture stands in blocks ``every`` - 1, 2 ``every`` - 1, ..., or in those that ``every`` lists; the others have a
    dense layer.  Of the first ``source`` ids, which are given, it says nothing: (B, source + T) -> (B, T, V).
    """

    needs = frozenset({"sequence", "ids"})
    gives = frozenset({"vectors"})

    def __init__(
        self,
        parts: Parts,
        vocab_size: int,
        source: int = 0,
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
        self.source = source
        names = [f"block{index}" for index in places(every, depth)]
        self.embed_words(vocab_size, dim)
        sizes: dict[str, Any] = {"dim": dim, "out": dim, "vocab_size": vocab_size}
        built = parts.mixtures(names, self.overrides, **sizes, shared=shared, shared_mix=shared_mix)
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
        self.answer_words(parts.head(dim, vocab_size), dim, vocab_size, tied)

    def forward(self, x: Tensor, known: Known = None) -> Output:
        state, routings, _ = self._read(x, known)
        return Output(self.say(self.norm(state[:, self.source :])), routings)

    def step(self, x: Tensor, known: Known = None, past: Past | None = None) -> tuple[Output, Past]:
        state, routings, kept = self._read(x, known, past or Past())
        return Output(self.say(self.norm(state)), routings), kept

    def _read(self, x: Tensor, known: Known, past: Past | None = None) -> tuple[Tensor, dict[str, Routing], Past]:
        before = past or Past()
        read = Sequences.of(x, known, before.length)
        here = followed(before.here, read.here, x, before.length)
        state = self.dropout(self.embedding(read.filled))  # (B, T, D)
        routings: dict[str, Routing] = {}
        kept: dict[str, KeysValues] = {}
        for name, block in self.blocks.items():
            state, seen = block.attend(state, before.kept.get(name), here)
            if past is not None:  # else nothing follows: the keys and values of a large batch may go, layer by layer
                kept[name] = seen
            state = serve(name, block, state, read, routings)
        return state, routings, Past(before.length + x.shape[1], kept, here)


class Block(nn.Module):
    """x + attention(norm x), then x + feed(norm x), where ``feed`` is a mixture or a dense layer."""

    def __init__(self, attention: Attention, norm1: nn.Module, norm2: nn.Module, feed: nn.Module, dropout: float):
        super().__init__()
        self.norm1, self.norm2 = norm1, norm2
        self.attention, self.dropout, self.feed = attention, nn.Dropout(dropout), feed

    def attend(
        self, x: Tensor, past: KeysValues | None, here: Tensor | None, bias: Tensor | None = None
    ) -> tuple[Tensor, KeysValues]:  # (B, T, D) -> the same
        y, kept = self.attention.step(self.norm1(x), past, here, bias)
        return x + self.dropout(y), kept

    def feed_forward(
        self, x: Tensor, read: Sequences, previous: Routing | None
    ) -> tuple[Tensor, Routing | None]:  # (B, T, D) -> the same
        y, routing = read.serve(self.feed, self.norm2(x), previous)
        return x + self.dropout(y), routing


def serve(name: str, block: Block, state: Tensor, read: Sequences, routings: dict[str, Routing]) -> Tensor:
    """The block's feed-forward part; what its mixture decided joins ``routings``."""
    state, routing = block.feed_forward(state, read, next(reversed(routings.values()), None))
    if routing is not None:
        routings[name] = routing
    return state
