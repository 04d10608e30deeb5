"""Tokens drawn uniformly, so that there is nothing to learn: a vocabulary and a context without any data."""

from __future__ import annotations

import hashlib
import math

import torch
from torch import Tensor

from moecli.tasks.kinds import Language
from moecli.tasks.task import SPLITS, Batch, Fact, Task, generator
from moecli.types import NonNegativeInt, PositiveInt, Seed, SeveralRows


class RandomTokens(Task):
    """Sequences of ``context`` ids, each uniform over the vocabulary: the least nll is log ``vocab_size``.

    With ``source`` so many more stand before them, and are given: x (B, source + context), target (B, context).
    A sequence is drawn when it is asked for, so that no size costs memory.
    """

    needs = frozenset({"causal"})
    dim = 0
    kind: Language

    def __init__(
        self,
        vocab_size: PositiveInt = 1000,
        context: PositiveInt = 128,
        source: NonNegativeInt = 0,
        sequences: SeveralRows = 10_000,
        split_seed: Seed = 0,
    ):
        held = max(1, sequences // 100)
        self.context, self.source, self.seed = context, source, split_seed
        self.gives = frozenset({"sequence", "ids", "classes"}) | ({"source"} if source else frozenset())
        self.sizes = {"train": sequences - 2 * held, "valid": held, "test": held}
        self.kind = Language(tuple(map(str, range(vocab_size))))
        self.out = self.vocab_size = vocab_size
        self.family, self.feature_names, self.label_names = self.kind.family, [], {}
        drawn = f"{vocab_size} {context} {sequences} {split_seed}" + (f" {source}" if source else "")
        self.fingerprint = hashlib.sha256(drawn.encode()).hexdigest()

    def train_batch(self, step: int, size: int, seed: int) -> Batch:
        """``size`` of the training sequences, drawn anew at every step: a pure function of (seed, step)."""
        return self.batch("train", torch.randint(self.sizes["train"], (size,), generator=generator(seed, step)))

    def batch(self, split: str, index: Tensor) -> Batch:
        number = index + sum(self.sizes[before] for before in SPLITS[: SPLITS.index(split)])  # among all sequences
        ids = torch.stack([self._sequence(n) for n in number.tolist()])  # (B, source + T + 1)
        return Batch(ids[:, :-1], ids[:, self.source + 1 :], {}, number, number * (self.source + self.context))

    def _sequence(self, number: int) -> Tensor:  # -> (source + T + 1,)
        length = self.source + self.context + 1
        return torch.randint(self.vocab_size, (length,), generator=generator(self.seed, number))

    def chance(self, split: str) -> dict[str, float]:
        """Of whoever knows that all tokens are alike."""
        target = self.batch(split, torch.arange(self.sizes[split])).target
        return self.kind.chance(torch.arange(self.vocab_size), target.flatten())

    def facts(self) -> list[Fact]:
        sequences = ", ".join(f"{count} {split}" for split, count in self.sizes.items())
        return [
            Fact(f"sequences of {self.context} tokens", sequences),
            *([Fact("source", f"{self.source} tokens before each")] if self.source else []),
            Fact("targets", self.kind.describe()),
            Fact("least nll", f"{math.log(self.vocab_size):.3f} nats, which is chance"),
        ]
