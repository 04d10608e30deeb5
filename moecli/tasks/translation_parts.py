"""Pairs of texts -> the parts that train, validate and test, and each part as padded ids."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from moecli.errors import DataError
from moecli.tasks.task import SPLITS, generator
from moecli.tasks.tokens import Encoding
from moecli.tasks.translation_files import Pair, Parts

HELD_OUT = 0.1  # share of the sources, for validation and for test each, where the data has no such part
FEWEST = 10  # sources, so that each part has some
PURPOSE = {"train": "train on", "valid": "validate with", "test": "test with"}

Sides = tuple[list[int], list[int]]  # ids of a pair: source and target


@dataclass(frozen=True)
class Sentences:
    """One part of the data, -1 where there is no token."""

    pairs: list[Pair]
    source: Tensor  # (N, S) int32, padded at the left
    target: Tensor  # (N, T) int32, padded at the right

    @classmethod
    def of(cls, pairs: list[Pair], sides: Sequence[Sides], source: int, target: int) -> Sentences:
        """Of sides, each cut to so many tokens."""
        given, said = [side for side, _ in sides], [side for _, side in sides]
        return cls(pairs, padded(given, source, left=True), padded(said, target))

    @cached_property
    def length(self) -> Tensor:  # (N,) targets
        return (self.target >= 0).sum(1)


def padded(rows: Sequence[list[int]], width: int, left: bool = False) -> Tensor:  # -> (N, width) int32
    table = np.full((len(rows), width), -1, dtype=np.int32)
    for number, ids in enumerate(rows):
        row = ids[:width]
        start = width - len(row) if left else 0
        table[number, start : start + len(row)] = row
    return torch.from_numpy(table)


def three_parts(given: Parts, seed: int, origin: str) -> Parts:
    """Train, valid and test; what the data has not is taken from its training part, whole sources by an order of ``seed``.

    So no source is in two parts, into however many languages it is translated.  Raises DataError where there are too few.
    """
    missing = [split for split in SPLITS[1:] if split not in given]
    sources = list(dict.fromkeys(pair.source for pair in given["train"]))
    if len(sources) < FEWEST:
        raise DataError(f"too few texts ({origin}): {len(sources)} to train on, and it takes {FEWEST}. Give more")
    turn = torch.randperm(len(sources), generator=generator(seed)).tolist()
    size = max(1, round(HELD_OUT * len(sources)))
    part = {sources[index]: missing[place // size] for place, index in enumerate(turn[: size * len(missing)])}
    taken: Parts = {split: [] for split in SPLITS}
    for pair in given["train"]:
        taken[part.get(pair.source, "train")].append(pair)
    parts = taken | {split: given[split] for split in SPLITS[1:] if split not in missing}
    empty = next((split for split, pairs in parts.items() if not pairs), None)
    if empty:
        raise DataError(f"no pairs to {PURPOSE[empty]} ({origin}): one side of each is empty. Give the texts of both")
    return parts


def full(pairs: list[Pair]) -> list[Pair]:
    """Those with something on both sides."""
    return [pair for pair in pairs if pair.source and pair.target]


def first_pairs(pairs: list[Pair], most: int | None) -> list[Pair]:
    """At most so many of each language."""
    seen: dict[str, int] = {}
    kept = []
    for pair in pairs:
        seen[pair.language] = seen.get(pair.language, 0) + 1
        if most is None or seen[pair.language] <= most:
            kept.append(pair)
    return kept


def fingerprint(parts: Parts, encoding: Encoding) -> str:
    """SHA-256 over the texts, their languages and their split, and what each id stands for."""
    digest = hashlib.sha256(encoding.identity.encode())
    for split, pairs in parts.items():
        for pair in pairs:
            digest.update(repr((split, *pair)).encode())
    return digest.hexdigest()
