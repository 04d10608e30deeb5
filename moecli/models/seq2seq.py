"""An encoder reads a source, and a decoder answers it word by word; mixtures stand in blocks of both."""

from __future__ import annotations

from functools import partial
from typing import Any, Literal

from torch import Tensor, nn

from moecli.mixture import Output
from moecli.models.attention import Attention, CrossAttention, KeysValues, dense, norm_of
from moecli.models.model import Blocks, Known, Past, Words
from moecli.models.places import places
from moecli.models.relative import RelativePositions
from moecli.models.sequences import Sequences, followed, present
from moecli.models.transformer import Block, serve
from moecli.parts import Parts
from moecli.routing import Routing
from moecli.types import NonNegativeInt, PositiveFloat, PositiveInt, Probability

Memory = dict[str, KeysValues]  # what each decoder block remembers of the source
Routings = dict[str, Routing]


class Seq2Seq(Words, Blocks):
    """ids (B, source + T) -> logits or log-probabilities (B, T, V) (T5; Raffel et al., 2020).

    The encoder reads the first ``source`` ids, each place seeing all of them; the decoder reads the others from left to
    right and, by cross-attention, what the encoder made of the source.  Pre-norm blocks, relative positions, one
    embedding for both.  A mixture stands in blocks ``every`` - 1, 2 ``every`` - 1, ... of each side, or in those that
    ``every`` lists: ``encoder1``, ``decoder1``; the others have a dense layer.
    """

    needs = frozenset({"sequence", "ids", "source"})
    gives = frozenset({"vectors"})

    def __init__(
        self,
        parts: Parts,
        vocab_size: int,
        source: int,
        dim: PositiveInt = 128,
        depth: PositiveInt = 2,
        heads: PositiveInt = 4,
        head_dim: PositiveInt | None = None,
        every: list[int] | PositiveInt = 2,
        norm: Literal["rms", "layer"] = "rms",
        norm_eps: PositiveFloat | None = None,
        buckets: PositiveInt = 32,
        distance: PositiveInt = 128,
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
        names = [f"{side}{index}" for side in ("encoder", "decoder") for index in places(every, depth)]
        self.embed_words(vocab_size, dim)
        sizes: dict[str, Any] = {"dim": dim, "out": dim, "vocab_size": vocab_size}
        built = parts.mixtures(names, self.overrides, **sizes, shared=shared, shared_mix=shared_mix)
        normed = partial(norm_of, norm, dim, norm_eps)
        dense_feed = partial(dense, feed, dim, hidden or 4 * dim)

        def block(side: str, index: int) -> Block:
            name, answers = f"{side}{index}", side == "decoder"
            attention = Attention(dim, heads, causal=answers, rotary_base=None, head_dim=head_dim)
            plain = attention, normed(), normed(), built[name] if name in built else dense_feed(), dropout
            return Answering(CrossAttention(dim, heads, head_dim), normed(), *plain) if answers else Block(*plain)

        self.encoder: Any = nn.ModuleDict({f"encoder{i}": block("encoder", i) for i in range(depth)})
        self.decoder: Any = nn.ModuleDict({f"decoder{i}": block("decoder", i) for i in range(depth)})
        self.around = RelativePositions(dim, heads, False, buckets, distance)
        self.before = RelativePositions(dim, heads, True, buckets, distance)
        self.source_norm, self.norm, self.dropout = normed(), normed(), nn.Dropout(dropout)
        self.answer_words(parts.head(dim, vocab_size), dim, vocab_size, tied)

    def forward(self, x: Tensor, known: Known = None) -> Output:
        return self._answer(x, known, None)[0]

    def step(self, x: Tensor, known: Known = None, past: Past | None = None) -> tuple[Output, Past]:
        """The first ids hold the whole source; of it, the keys and values that the decoder asks for are kept."""
        return self._answer(x, known, past)

    def _answer(self, x: Tensor, known: Known, past: Past | None) -> tuple[Output, Past]:
        routings: Routings = {}
        if past is None:
            memory, routings = self._encode(x[:, : self.source], part_of(known, slice(0, self.source)))
            past = Past(self.source, memory, present(x[:, : self.source]))
            x, known = x[:, self.source :], part_of(known, slice(self.source, None))
        state, decided, past = self._decode(x, known, past)
        return Output(self.say(self.norm(state)), routings | decided), past

    def _encode(self, source: Tensor, known: Known) -> tuple[Memory, Routings]:
        read = Sequences.of(source, known)
        state, bias = self.dropout(self.embedding(read.filled)), self.around(self.source, self.source)  # (B, S, D)
        routings: Routings = {}
        for name, block in self.encoder.items():
            state, _ = block.attend(state, None, read.here, bias)
            state = serve(name, block, state, read, routings)
        state = self.dropout(self.source_norm(state))
        return {f"{name} source": block.cross.remember(state) for name, block in self.decoder.items()}, routings

    def _decode(self, x: Tensor, known: Known, past: Past) -> tuple[Tensor, Routings, Past]:
        read = Sequences.of(x, known, past.length)
        here = followed(past.here, read.here, x, past.length)  # (B, source + L)
        of_source, of_own = (None, None) if here is None else here.split([self.source, here.shape[1] - self.source], 1)
        state = self.dropout(self.embedding(read.filled))  # (B, T, D)
        bias = self.before(x.shape[1], past.length - self.source + x.shape[1])
        kept, routings = dict(past.kept), Routings()
        for name, block in self.decoder.items():
            state, kept[name] = block.attend(state, past.kept.get(name), of_own, bias)
            state = block.ask(state, past.kept[f"{name} source"], of_source)
            state = serve(name, block, state, read, routings)
        return state, routings, Past(past.length + x.shape[1], kept, here)

    @property
    def blocks(self) -> dict[str, Block]:
        return {**dict(self.encoder.items()), **dict(self.decoder.items())}

    def reads(self, name: str) -> slice:
        return slice(0, self.source) if name in self.encoder else slice(self.source, None)


class Answering(Block):
    """A block that asks the source between its attention and its feed-forward part: x + cross(norm x, source)."""

    def __init__(self, cross: CrossAttention, norm3: nn.Module, *block: Any):
        super().__init__(*block)
        self.cross, self.norm3 = cross, norm3

    def ask(self, x: Tensor, source: KeysValues, here: Tensor | None) -> Tensor:  # (B, T, D) -> the same
        return x + self.dropout(self.cross(self.norm3(x), source, here))


def part_of(known: Known, places: slice) -> Known:
    """What is known of some places of each example, and of whole examples."""
    return None if known is None else {n: fact[:, places] if fact.ndim > 1 else fact for n, fact in known.items()}
