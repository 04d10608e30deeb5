"""Stacked LSTM layers with a mixture between them, as a language model."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Literal

from torch import Tensor, nn

from moecli.errors import UsageError
from moecli.mixture import Output
from moecli.models.model import Known, Layer, Model, Past
from moecli.models.places import places
from moecli.parts import Parts
from moecli.routing import Routing, Tokens
from moecli.types import NonNegativeInt, PositiveInt, Probability


class Lstm(Model):
    """ids (B, T) -> logits or log-probabilities (B, T, V): embedding, LSTM layers, mixtures, a head (Shazeer et al., 2017).

    Behind the first LSTM layer stands the mixture ``layer0``, and so on but for the last, as ``every`` says.  It serves
    every time step, and its answer passes a sigmoid (appendix C).  Dropout comes before what is added to the input:
    h + dropout(LSTM(h)), h + dropout(sigmoid(mixture(h))).
    """

    needs = frozenset({"sequence", "ids"})
    gives = frozenset({"vectors"})

    def __init__(
        self,
        parts: Parts,
        vocab_size: int,
        dim: PositiveInt = 128,
        depth: PositiveInt = 2,
        every: list[int] | PositiveInt = 1,
        tied: bool = True,
        dropout: Probability = 0.0,
        shared: NonNegativeInt = 0,
        shared_mix: Literal["add", "gate", "mix"] = "add",
        **options: Any,
    ):
        super().__init__(**options)
        if depth < 2:
            raise UsageError(
                f"model.depth={depth}: a mixture stands between two LSTM layers. Set model.depth=2 or more"
            )
        names = [f"layer{index}" for index in places(every, depth - 1)]
        parts = parts.named(names, self.overrides)
        self.embedding = nn.Embedding(vocab_size, dim)
        nn.init.normal_(self.embedding.weight, std=dim**-0.5)
        sizes = {"dim": dim, "out": dim, "vocab_size": vocab_size, "shared": shared}
        built = {n: parts.mixture(n, i, len(names), **sizes, shared_mix=shared_mix) for i, n in enumerate(names)}
        self.feeds: Any = nn.ModuleDict(built)
        self.recurrent: Any = nn.ModuleDict(
            {f"layer{index}": nn.LSTM(dim, dim, batch_first=True) for index in range(depth)}
        )
        self.dropout, self.head = nn.Dropout(dropout), parts.head(dim, vocab_size)
        self.output = None if tied or self.head.separate else nn.Linear(dim, vocab_size, bias=False)

    def forward(self, x: Tensor, known: Known = None) -> Output:
        return self.step(x, known)[0]

    def step(self, x: Tensor, known: Known = None, past: Past | None = None) -> tuple[Output, Past]:
        before = past or Past()
        state = self.dropout(self.embedding(x))  # (B, T, D)
        routings: dict[str, Routing] = {}
        kept: dict[str, tuple[Tensor, ...]] = {}
        for name, recurrent in self.recurrent.items():
            y, kept[name] = recurrent(state, before.kept.get(name))
            state = state + self.dropout(y)
            if name in self.feeds:
                tokens = Tokens.sequences(state, x, known, start=before.length)
                y, routings[name] = self.feeds[name](replace(tokens, previous=next(reversed(routings.values()), None)))
                state = state + self.dropout(y.view_as(state).sigmoid())
        matrix = (self.output or self.embedding).weight
        return Output(self.head(state, matrix), routings), Past(before.length + x.shape[1], kept)

    @property
    def mixtures(self) -> dict[str, Layer]:
        return dict(self.feeds.items())

    def replace(self, name: str, layer: Layer) -> None:
        self.feeds[name] = layer
