"""Texts with spans cut out: what is left, with a sentinel for each span, is the source, and the spans are the target.

``Thank you for inviting me`` becomes ``Thank <0> for <1> me`` and ``<0> you <1> inviting <2>``: the last sentinel says
that nothing follows.  Every window has as many spans and as many cut tokens, so no place is padding.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from moecli.errors import UsageError
from moecli.tasks.kinds import Language
from moecli.tasks.task import Batch, Fact, Task, generator
from moecli.types import Part, PositiveFloat

COUNTED = 1024  # windows of training whose targets make the unigram that chance is measured by


class SpanCorruption(Task):
    """Source: L tokens with spans cut out and a sentinel for each; target: each sentinel and its span (Raffel et al., 2020).

    Of a window of L = ``text.context`` tokens round(``density`` L) are cut out, in round(density L / ``mean_length``)
    spans whose lengths, and the lengths between them, are drawn uniformly among all that add up; a window begins with a
    token that is kept.  ``text`` is any task of text.  Raises UsageError for one that is none.
    """

    gives = frozenset({"sequence", "ids", "classes", "source"})
    needs = frozenset({"causal"})
    fitted = True
    dim = 0
    kind: Language

    def __init__(self, text: Callable[[], Any], density: Part = 0.15, mean_length: PositiveFloat = 3.0):
        self.text = text()
        if "ids" not in self.text.gives or self.text.source:
            raise UsageError("task.text: it is no task of plain text. Use task.text=stdlib_text or task.text=text")
        self.length = self.text.context
        if self.length < 2:
            raise UsageError(
                f"task.text.context={self.length}: there is nothing to cut out of. Raise task.text.context"
            )
        self.cut = min(max(round(self.length * density), 1), self.length - 1)
        self.spans = min(max(round(self.cut / mean_length), 1), self.cut, self.length - self.cut)
        self.source = self.length - self.cut + self.spans
        self.sizes, self.feature_names = self.text.sizes, []
        self._adopt_kind(self.text.kind)
        self.label_names = {**self.text.label_names, "mark": ["text", "sentinel"], "side": ["source", "target"]}
        self.fingerprint = hashlib.sha256(f"{self.text.fingerprint} {self.cut} {self.spans}".encode()).hexdigest()

    def _adopt_kind(self, text: Language) -> None:
        """Behind the symbols of the text, the sentinels and what a target begins with; no byte of text is in them."""
        marks = (*(f"<{number}>" for number in range(self.spans + 1)), "<begin>")
        self.sentinel, self.begin = text.out, text.out + self.spans + 1  # the first sentinel, and the beginning
        self.end = self.begin - 1  # the last sentinel
        self.kind = Language((*text.symbols, *marks), (*text.widths, *(0 for _ in marks)))
        self.out = self.vocab_size = self.kind.out
        self.family = self.kind.family

    def batch(self, split: str, index: Tensor) -> Batch:
        """The windows ``index`` (B,) of ``split``, each always cut in the same places."""
        found = self.text.batch(split, index)
        draws = [torch.rand(self._drawn, generator=generator(row)) for row in found.row.tolist()]
        return self._corrupted(found, torch.stack(draws))

    def train_batch(self, step: int, size: int, seed: int) -> Batch:
        """Windows of the text, cut afresh: a pure function of (seed, step)."""
        found = self.text.train_batch(step, size, seed)
        draw = generator(seed, step, 1)  # another one than the text's own
        return self._corrupted(found, torch.rand(len(found.x), self._drawn, generator=draw))

    @property
    def _drawn(self) -> int:
        """Numbers from 0 to 1 that say where a window is cut."""
        return self.length - 2

    def _corrupted(self, batch: Batch, draw: Tensor) -> Batch:
        cut = Cut.drawn(draw, self.length, self.cut, self.spans)
        text = torch.cat([batch.x, torch.full_like(batch.x[:, :1], self.sentinel)], dim=1)  # the end, at place L
        marked = text.scatter(1, cut.starts, self.sentinel + torch.arange(self.spans + 1).expand(len(text), -1))
        target = torch.where(cut.is_sentinel, marked.gather(1, cut.said), text.gather(1, cut.said))
        before = torch.cat([torch.full_like(target[:, :1], self.begin), target[:, :-1]], dim=1)
        x = torch.cat([marked.gather(1, cut.left), before], dim=1)
        return Batch(x, target, self._labels(batch, cut, x), batch.document, 2 * batch.row)

    def _labels(self, batch: Batch, cut: Cut, x: Tensor) -> dict[str, Tensor]:
        """A token's labels are those of the text at its place, a sentinel's those of the text that it stands for."""
        spoken = torch.cat([torch.zeros_like(cut.said[:, :1]), cut.said[:, :-1]], dim=1)
        place = torch.cat([cut.left, spoken], dim=1)  # (B, source + T)
        of_text = {n: label.gather(1, place) if label.ndim > 1 else label for n, label in batch.labels.items()}
        side = (torch.arange(x.shape[1]) >= self.source).long().expand_as(x)
        return {**of_text, "mark": (x >= self.sentinel).long(), "side": side}

    def chance(self, split: str) -> dict[str, float]:
        """The unigram of training targets, each symbol counted once more so that none is impossible."""
        number = min(COUNTED, self.sizes["train"])
        train = self.batch("train", torch.arange(number) * self.sizes["train"] // number).target.flatten()
        target = self.batch(split, torch.arange(self.sizes[split])).target.flatten()
        return self.kind.smooth_chance(train, target)

    def new_rows(self, file: Path) -> tuple[Tensor, dict[str, list[Any]]]:
        raise UsageError(
            f"{file} (task=span_corruption): where a new text is cut would be chance. Look at the run's own test: moe eval"
        )

    def facts(self) -> list[Fact]:
        chance = self.chance("test")
        own = ("targets", "chance on test")
        return [
            *(fact for fact in self.text.facts() if fact.name not in own),
            Fact("cut out", f"{self.cut} of {self.length} tokens, in {self.spans} spans"),
            Fact("sequences", f"{self.source} given, {self.cut + self.spans + 1} to say"),
            Fact("targets", self.kind.describe()),
            Fact("chance on test", f"nll {chance['nll']:.3f} nats, accuracy {chance['accuracy']:.3f}"),
        ]


@dataclass(frozen=True)
class Cut:
    """Where windows of L tokens are cut; L itself is the place where the last sentinel stands."""

    starts: Tensor  # (B, spans + 1) first place of each span, then L
    left: Tensor  # (B, S) places of the source: what is kept, and the first place of each span
    said: Tensor  # (B, T) places of the target: the first place of each span for its sentinel, its places, then L
    is_sentinel: Tensor  # (B, T) bool

    @classmethod
    def drawn(cls, draw: Tensor, length: int, cut: int, spans: int) -> Cut:
        """``draw`` (B, length - 2) in 0..1: what is kept and what is cut, each divided into ``spans`` parts."""
        kept, gone = draw.split([length - cut - 1, cut - 1], dim=1)
        turns = torch.stack([divided(kept, spans), divided(gone, spans)], dim=-1)  # (B, spans, 2): kept, then cut
        ends = turns.flatten(1).cumsum(1)  # (B, 2 spans)
        place = torch.arange(length).expand(len(draw), -1).contiguous()
        is_cut = torch.searchsorted(ends, place, right=True) % 2 == 1  # (B, L)
        is_first = torch.zeros_like(is_cut).scatter(1, ends[:, ::2], True)
        last = torch.full_like(place[:, :1], length)
        twice = torch.stack([is_first, is_cut], dim=-1).flatten(1)  # (B, 2 L) a sentinel, then the token
        said = _chosen(place.repeat_interleave(2, dim=1), twice)
        first = _chosen(torch.tensor([True, False]).repeat(length).expand_as(twice), twice)
        starts = torch.cat([ends[:, ::2], last], dim=1)
        is_sentinel = torch.cat([first, torch.ones_like(first[:, :1])], dim=1)
        return cls(starts, _chosen(place, ~is_cut | is_first), torch.cat([said, last], dim=1), is_sentinel)


def divided(draw: Tensor, parts: int) -> Tensor:
    """N things in ``parts`` parts of one or more, by the order of N - 1 draws (B, N - 1): their lengths (B, parts)."""
    bounds = draw.argsort(1)[:, : parts - 1].sort(1).values + 1
    edge = torch.zeros(len(draw), 1, dtype=torch.int64)
    return torch.cat([edge, bounds, edge + draw.shape[1] + 1], dim=1).diff(dim=1)


def _chosen(values: Tensor, mask: Tensor) -> Tensor:
    """Values (B, L) where the mask is, which is in as many places of each row: (B, M)."""
    return values[mask].view(len(values), -1)
