"""Planted languages: documents drawn from Markov chains that share no word, so every token's language is known."""

from __future__ import annotations

import hashlib
import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from moecli.errors import DataError
from moecli.tasks.files import decode, read_bytes, user_path
from moecli.tasks.kinds import Language
from moecli.tasks.task import SPLITS, Batch, Fact, Task, generator, three_way
from moecli.types import PositiveFloat, PositiveInt, Seed, SeveralRows


class Languages(Task):
    """L languages of W words each: ids l W to l W + W - 1, each language a Markov chain over its own.

    A document has ``context`` + 1 words in ``stretches`` parts as equal as can be, each of a language drawn afresh.
    Rows of a chain are the softmax of normal draws times ``sharpness``; the first word of a stretch is uniform.
    """

    gives = frozenset({"sequence", "ids", "classes"})
    needs = frozenset({"causal"})
    dim = 0
    kind: Language

    def __init__(
        self,
        languages: PositiveInt = 4,
        words: PositiveInt = 8,
        documents: SeveralRows = 1000,
        context: PositiveInt = 32,
        stretches: PositiveInt = 1,
        sharpness: PositiveFloat = 2.0,
        split_seed: Seed = 0,
    ):
        draw = generator(split_seed, 4)
        self.context, self.chain = context, chains(languages, words, sharpness, draw)
        self.language = _spoken(documents, context + 1, languages, stretches, draw)  # (M, T + 1)
        self.begins = _begins(context + 1, stretches)
        self.ids = _written(self.language, self.begins, self.chain, draw)  # (M, T + 1)
        self.parts = three_way(documents, split_seed)
        self.sizes = {split: len(index) for split, index in self.parts.items()}
        self.kind = Language(tuple(f"{letters(name)}{word}" for name in range(languages) for word in range(words)))
        self.out = self.vocab_size = self.kind.out
        self.family, self.feature_names = self.kind.family, []
        self.label_names = {"language": [letters(name) for name in range(languages)]}
        self.fingerprint = hashlib.sha256(self.ids.numpy().tobytes()).hexdigest()

    def batch(self, split: str, index: Tensor) -> Batch:
        document = self.parts[split][index]
        row = (index + sum(self.sizes[before] for before in SPLITS[: SPLITS.index(split)])) * self.context
        ids, language = self.ids[document], self.language[document, :-1]
        return Batch(ids[:, :-1], ids[:, 1:], {"language": language}, document, row)

    def chance(self, split: str) -> dict[str, float]:
        """The unigram of the training documents."""
        train, held = (self.ids[self.parts[name], 1:].flatten() for name in ("train", split))
        return self.kind.chance(train, held)

    def floor(self, split: str) -> float:
        """The nll (nats per word) of whoever knows the chains and where a stretch begins, but not its language."""
        ids = self.ids[self.parts[split]]
        log_prob = self.chain[ids[:, :-1], ids[:, 1:] % self.chain.shape[1]].log()  # within a language
        begins = self.begins[1:].expand(log_prob.shape)
        return -log_prob.masked_fill(begins, -math.log(self.out)).mean().item()

    def new_rows(self, file: Path) -> tuple[Tensor, dict[str, list[Any]]]:
        """Documents of ``context`` words (B, T) from a text of words divided by spaces, what is left at the end dropped."""
        given = decode(read_bytes(user_path(file)), file).split()
        number = {word: index for index, word in enumerate(self.kind.symbols)}
        strange = next((word for word in given if word not in number), None)
        if strange is not None or len(given) < self.context:
            short = f"it has {len(given)} words, and a document {self.context}"
            why = short if strange is None else f"{strange!r} is no word of these languages"
            raise DataError(f"{file}: {why}. Give words such as {' '.join(self.kind.symbols[:3])}")
        given = given[: len(given) // self.context * self.context]
        return torch.tensor([number[word] for word in given]).view(-1, self.context), {"word": given}

    def facts(self) -> list[Fact]:
        documents = ", ".join(f"{count} {split}" for split, count in self.sizes.items())
        chance = self.chance("test")
        return [
            Fact(f"documents of {self.context} words", documents),
            Fact("languages", f"{len(self.chain) // self.chain.shape[1]} of {self.chain.shape[1]} words each"),
            Fact("targets", self.kind.describe()),
            Fact("chance on test", f"nll {chance['nll']:.3f} nats, accuracy {chance['accuracy']:.3f}"),
            Fact("least nll on test", f"{self.floor('test'):.3f} nats, for whoever knows the chains"),
        ]


def chains(languages: int, words: int, sharpness: float, draw: torch.Generator) -> Tensor:
    """P(next word of the same language | word): (L W, W)."""
    return (sharpness * torch.randn(languages * words, words, generator=draw)).softmax(-1)


def letters(number: int) -> str:
    """0, 1, ... as a, b, ..., z, aa, ab, ..."""
    before, last = divmod(number, 26)
    return (letters(before - 1) if before else "") + chr(ord("a") + last)


def _begins(length: int, stretches: int) -> Tensor:  # -> (length,) bool
    stretch = torch.arange(length) * stretches // length
    return stretch.diff(prepend=torch.tensor([-1])) > 0


def _spoken(documents: int, length: int, languages: int, stretches: int, draw: torch.Generator) -> Tensor:
    language = torch.randint(languages, (documents, stretches), generator=draw)
    return language[:, torch.arange(length) * stretches // length]  # (M, length)


def _written(language: Tensor, begins: Tensor, chain: Tensor, draw: torch.Generator) -> Tensor:
    """The words' ids (M, length)."""
    words = chain.shape[1]
    written: list[Tensor] = []
    for place in range(language.shape[1]):
        fresh = torch.full((len(language), words), 1 / words)
        probs = fresh if begins[place] else chain[written[-1]]
        word = probs.multinomial(1, generator=draw)[:, 0]
        written.append(language[:, place] * words + word)
    return torch.stack(written, dim=1)
