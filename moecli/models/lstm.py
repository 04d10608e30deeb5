"""Stacked LSTM layers with a mixture between them, as a language model."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from moecli.errors import UsageError
from moecli.mixture import Output
from moecli.models.model import Known, Layer, Past, Words
from moecli.models.places import places
from moecli.models.sequences import Sequences
from moecli.parts import Parts
from moecli.routing import Routing
from moecli.types import NonNegativeInt, PositiveInt, Probability


class Lstm(Words):
    """ids (B, T) -> logits or log-probabilities (B, T, V): embedding, LSTM layers, mixtures, a head (Shazeer et al., 2017).

    Behind the first LSTM layer stands the mixture ``layer0``, and so on but for the last, as ``every`` says.  It serves
    every time step, and its answer passes a sigmoid (appendix C).  Dropout comes before what is added to the input:
    h + dropout(LSTM(h)), h + dropout(sigmoid(mixture(h))).
    Of the first ``source`` ids, which are given, it says nothing: (B, source + T) -> (B, T, V).
    """

    needs = frozenset({"sequence", "ids"})
    gives = frozenset({"vectors"})

    def __init__(
        self,
        parts: Parts,
        vocab_size: int,
        source: int = 0,
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
        self.source = source
        if depth < 2:
            raise UsageError(
                f"model.depth={depth}: a mixture stands between two LSTM layers. Set model.depth=2 or more"
            )
        names = [f"layer{index}" for index in places(every, depth - 1)]
        self.embed_words(vocab_size, dim)
        sizes: dict[str, Any] = {"dim": dim, "out": dim, "vocab_size": vocab_size}
        built = parts.mixtures(names, self.overrides, **sizes, shared=shared, shared_mix=shared_mix)
        self.feeds: Any = nn.ModuleDict(built)
        self.recurrent: Any = nn.ModuleDict(
            {f"layer{index}": nn.LSTM(dim, dim, batch_first=True) for index in range(depth)}
        )
        self.dropout = nn.Dropout(dropout)
        self.answer_words(parts.head(dim, vocab_size), dim, vocab_size, tied)

    def forward(self, x: Tensor, known: Known = None) -> Output:
        state, routings, _ = self._read(x, known, Past())
        return Output(self.say(state[:, self.source :]), routings)

    def step(self, x: Tensor, known: Known = None, past: Past | None = None) -> tuple[Output, Past]:
        state, routings, kept = self._read(x, known, past or Past())
        return Output(self.say(state), routings), kept

    def _read(self, x: Tensor, known: Known, before: Past) -> tuple[Tensor, dict[str, Routing], Past]:
        read = Sequences.of(x, known, before.length)
        state = self.dropout(self.embedding(read.filled))  # (B, T, D)
        routings: dict[str, Routing] = {}
        kept: dict[str, tuple[Tensor, ...]] = {}
        for name, recurrent in self.recurrent.items():
            y, kept[name] = recur(recurrent, state, before.kept.get(name), read.here)
            state = state + self.dropout(y)
            if name in self.feeds:
                y, routing = read.serve(self.feeds[name], state, next(reversed(routings.values()), None))
                routings |= {name: routing} if routing is not None else {}
                state = state + self.dropout(y.sigmoid())
        return state, routings, Past(before.length + x.shape[1], kept)

    @property
    def mixtures(self) -> dict[str, Layer]:
        return dict(self.feeds.items())

    def replace(self, name: str, layer: Layer) -> None:
        self.feeds[name] = layer


def recur(
    lstm: nn.LSTM, x: Tensor, before: tuple[Tensor, ...] | None, here: Tensor | None
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """x (B, T, D) -> y (B, T, D) and the last state; where ``here`` (B, T) is false nothing is read, and y is zero.

    A row without any token reads one all the same: nothing may follow it.
    """
    if here is None:
        return lstm(x, before)
    order = here.long().argsort(dim=1, descending=True, stable=True)  # (B, T) what is read, then what is not
    length = here.sum(1).clamp_min(1)
    rows = x.gather(1, order[..., None].expand_as(x))
    packed = pack_padded_sequence(rows, length.cpu(), batch_first=True, enforce_sorted=False)
    y, kept = lstm(packed, before)
    y, _ = pad_packed_sequence(y, batch_first=True, total_length=x.shape[1])
    return torch.zeros_like(y).scatter(1, order[..., None].expand_as(y), y), kept
