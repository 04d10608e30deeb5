"""What every model is: inputs -> Output, with its mixture layers known by name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

from torch import Tensor, nn

from moecli.errors import UsageError
from moecli.heads.head import Head
from moecli.mixture import MixtureDensity, MixtureOfExperts, Output

Layer = MixtureOfExperts | MixtureDensity
Known = Mapping[str, Tensor] | None  # labels (B,) or (B, T), and the row (B,) of each example, for routers that ask


@dataclass(frozen=True)
class Past:
    """What a model keeps of what it has read: how many places, and what each of its layers needs of them."""

    length: int = 0
    kept: Mapping[str, tuple[Tensor, ...]] = field(default_factory=dict)
    here: Tensor | None = None  # (B, length) bool, which places held a token; None: all


class Model(nn.Module):
    """A network with mixtures in it.  ``needs`` and ``gives`` are matched against the other parts."""

    needs: frozenset[str] = frozenset()
    gives: ClassVar[frozenset[str]] = frozenset()
    positions: tuple[str, ...] = ()  # of an example's tokens, where a position means the same in every example
    source: int = 0  # places at the start of a sequence that are given: nothing is predicted there

    def __init__(self, twin: bool = False, allow_leak: bool = False, layers: dict[str, Any] | None = None):
        super().__init__()
        self.is_twin, self.allow_leak, self.overrides = twin, allow_leak, layers or {}

    def forward(self, x: Tensor, known: Known = None) -> Output:
        raise NotImplementedError

    def step(self, x: Tensor, known: Known = None, past: Past | None = None) -> tuple[Output, Past]:
        """The same for ids (B, T) that follow those of ``past``, and the past of whatever comes next.

        Raises UsageError for a model that reads no text from left to right.
        """
        raise UsageError(
            f"{type(self).__name__} (--generate): it does not read from left to right. Use model=transformer"
        )

    @property
    def mixtures(self) -> dict[str, Layer]:
        """The mixture layers in forward order."""
        raise NotImplementedError

    def reads(self, name: str) -> slice:
        """Places of a sequence that a mixture layer reads, in a forward pass of all of it."""
        return slice(None)

    def reads_source(self, name: str) -> bool:
        """Whether a mixture layer reads only what is given, all of it at once: it has no future to see."""
        stop = self.reads(name).stop
        return stop is not None and stop <= self.source

    def replace(self, name: str, layer: Layer) -> None:
        """Put another layer in a mixture's place."""
        raise NotImplementedError

    def experts_alone(self, x: Tensor) -> Tensor | None:
        """What each expert would predict for x (N, D) by itself: (N, E, Y), where that has a meaning."""
        return None


class Blocks(Model):
    """A model of blocks by name, each with a feed-forward part ``feed`` that may be a mixture."""

    blocks: Any

    @property
    def mixtures(self) -> dict[str, Layer]:
        feeds = {name: block.feed for name, block in self.blocks.items()}
        return {name: feed for name, feed in feeds.items() if isinstance(feed, MixtureOfExperts)}

    def replace(self, name: str, layer: Layer) -> None:
        self.blocks[name].feed = layer


class Words(Model):
    """A model of words: an embedding first, and last a head whose output matrix may be the embedding's.

    Weights are drawn where they are asked for, so a model says when.
    """

    def embed_words(self, vocab_size: int, dim: int) -> None:
        self.embedding = nn.Embedding(vocab_size, dim)
        nn.init.normal_(self.embedding.weight, std=dim**-0.5)

    def answer_words(self, head: Head, dim: int, vocab_size: int, tied: bool) -> None:
        self.head = head
        self.output = None if tied or head.separate else nn.Linear(dim, vocab_size, bias=False)

    def say(self, state: Tensor) -> Tensor:
        """Logits or log-probabilities of the next word: (..., D) -> (..., V)."""
        return self.head(state, (self.output or self.embedding).weight)
