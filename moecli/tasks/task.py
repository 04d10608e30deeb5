"""What every task is: data and its truth, a fixed split of its own seed, labels, metrics and chance.

Batches are a pure function of (seed, step), so a run can stop and go on anywhere.  A label is
whatever specialisation may be measured against; a document is the unit that chance is computed over.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import astuple, dataclass, field
from functools import cached_property, lru_cache, partial
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from moecli.models.image import Pixels
from moecli.tasks.kinds import Kind

SPLITS = ("train", "valid", "test")


@dataclass(frozen=True)
class Batch:
    """Examples of one split: B rows of features or B windows of T ids."""

    x: Tensor  # (B, D) float features, (B, T, D) frames, or (B, source + T) int64 ids, -1 where there is no token
    target: Tensor  # (B,) int64 class, (B, Y) float, or (B, T) int64 next ids, -1 where none is scored
    labels: dict[str, Tensor]  # each (B,) or (B, source + T) int64, an index into Task.label_names
    document: Tensor  # (B,) int64
    row: Tensor  # (B,) int64 the number of its first token in the whole data: train, then valid, then test
    weight: Tensor | None = None  # (B,) how much each example counts; None: all the same

    def to(self, device: torch.device) -> Batch:
        return self._each(lambda value: value.to(device))

    def parts(self, number: int) -> list[Batch]:
        """Consecutive micro-batches of nearly equal size."""
        return [self._each(partial(_piece, number, index)) for index in range(number)]

    def _each(self, change: Callable[[Tensor], Tensor]) -> Batch:
        labels = {name: change(label) for name, label in self.labels.items()}
        weight = None if self.weight is None else change(self.weight)
        return Batch(change(self.x), change(self.target), labels, change(self.document), change(self.row), weight)

    @property
    def known(self) -> dict[str, Tensor]:
        """What a router may be told of each example beside its features."""
        return {**self.labels, "row": self.row}


def joined(batches: list[Batch]) -> Batch:
    """Batches end to end."""
    first = batches[0]
    labels = {name: torch.cat([batch.labels[name] for batch in batches]) for name in first.labels}
    x, target, document, row = (
        torch.cat([getattr(batch, name) for batch in batches]) for name in ("x", "target", "document", "row")
    )
    weights = [batch.weight for batch in batches if batch.weight is not None]
    return Batch(x, target, labels, document, row, torch.cat(weights) if weights else None)


def _piece(number: int, index: int, value: Tensor) -> Tensor:
    return value.tensor_split(number)[index]


@dataclass(frozen=True)
class Answer:
    """What a model was given in words, what it said, and what somebody else says to it, in which language."""

    given: str
    answer: str
    reference: str
    language: str


@dataclass(frozen=True)
class Answers:
    """What a model says in words, and how good that is."""

    metrics: dict[str, float] = field(default_factory=dict)
    said: list[Answer] = field(default_factory=list)
    why_none: str = ""

    def some(self, number: int) -> list[Answer]:
        """At most so many, spread evenly."""
        return [self.said[place] for place in spread(len(self.said), number).tolist()]

    def table(self) -> str:
        """One answer a line, tabs between its parts, which hold none themselves."""
        rows = [tuple(Answer.__annotations__), *map(astuple, self.said)]
        return "".join("\t".join(" ".join(cell.split()) for cell in row) + "\n" for row in rows)


# A model writing: sources (B, S), the ids of begin and end, the most ids to write (L) -> (B, L) ids, whatever follows an end
Write = Callable[[Tensor, int, int, int], Tensor]


@dataclass(frozen=True)
class Fact:
    """One line of what a task says of itself before any training."""

    name: str
    value: str


class Task:
    """Data, its truth, and how a prediction is scored.  All sizes a model needs stand here."""

    # of: items, vectors, item rank 2, image, noisy image, sequence, ids, source, words, classes, real, and what those allow:
    # binary, counts, positive
    gives: frozenset[str] = frozenset()
    needs: ClassVar[frozenset[str]] = frozenset()  # causal, where a future must not be seen
    fitted: ClassVar[bool] = False  # features get their meaning from the data that was read (scales, vocabulary)
    kind: Kind  # classification, regression or language: loss, metrics, chance
    dim: int  # features of an example, or of each of its frames (0 where ids are embedded)
    out: int  # classes, targets, or the size of the vocabulary
    vocab_size: int = 0
    source: int = 0  # the first places of each sequence, which are given: nothing is predicted there
    image: Pixels | None = None  # how features are pixels, where they are
    sizes: dict[str, int]  # examples in each split
    label_names: dict[str, list[str]]  # what each label's numbers mean; of a classification the classes come first
    feature_names: list[str]
    fingerprint: str  # SHA-256 of the data that was read
    family: str  # the family that fits the targets

    def batch(self, split: str, index: Tensor) -> Batch:
        """The examples of ``index`` (B,) int64 in ``split``."""
        raise NotImplementedError

    def train_batch(self, step: int, size: int, seed: int) -> Batch:
        """The batch of one step: a pure function of (seed, step)."""
        return self.batch("train", order(self.sizes["train"], step, size, seed))

    def train_batches(self, step: int, size: int, seeds: tuple[int, ...]) -> Batch:
        """The batches of one step for several seeds, end to end."""
        return joined([self.train_batch(step, size, seed) for seed in seeds])

    def batches(self, split: str, size: int) -> Iterator[Batch]:
        """A split once, in its own order."""
        for index in torch.arange(self.sizes[split]).split(size):
            yield self.batch(split, index)

    def facts(self) -> list[Fact]:
        """What ``moe show task=...`` says: rows, columns, classes, chance, what is done with each column."""
        raise NotImplementedError

    def chance(self, split: str) -> dict[str, float]:
        """Each metric's value for whoever knows the targets' distribution in training and nothing else."""
        raise NotImplementedError

    @property
    def reads(self) -> dict[str, list[str]]:
        """Features by name that the task gives to ``gate`` and ``expert`` alone; empty where all read all."""
        return {}

    def feature_units(self) -> tuple[list[float], list[float]]:
        """(center, factor) of each feature, where a feature is (the user's column - center) * factor."""
        return [0.0] * self.dim, [1.0] * self.dim

    def new_rows(self, file: Path) -> tuple[Tensor, dict[str, list[Any]]]:
        """New inputs of a user's file, as a batch's x, and what to repeat beside their predictions.

        Raises DataError where the file does not fit the task.
        """
        raise NotImplementedError

    def new_targets(self, file: Path) -> Tensor | None:
        """Targets of the rows of ``new_rows`` as a batch has them, where the file has them too.

        Real ones that a row lacks are NaN, classes that it lacks or that training has not seen are -1.
        """
        return None

    def samples(self, predict: Callable[[Tensor], Tensor], seed: int) -> dict[str, Tensor]:
        """What a trained model makes up where it can: ``image`` (M, C, H, W) in 0..1 and its ``class`` (M,); else nothing.

        ``predict`` gives the model's prediction for a batch's x; the rest is drawn from ``seed``.
        """
        return {}

    def answers(self, write: Write, split: str) -> Answers:
        """What a trained model says to a split in words; nothing for a task whose answers are none."""
        return Answers()

    def say(self, write: Write, source: Tensor) -> list[str]:
        """What a trained model says in words to each of ``new_rows`` (B, source), where these are given and no more."""
        raise NotImplementedError

    def grid(self) -> Tensor | None:
        """Points (M, D) to draw a fit or decision regions over, where D is 1 or 2."""
        return None


def order(size: int, step: int, batch: int, seed: int) -> Tensor:
    """Which examples step ``step`` takes: (B,), epoch after epoch, each in its own permutation.

    A batch of all examples or more is the whole split in its own order.
    """
    return orders(size, step, batch, (seed,))


def orders(size: int, step: int, batch: int, seeds: tuple[int, ...]) -> Tensor:
    """``order`` of each seed, end to end."""
    if batch >= size:
        return torch.arange(size).repeat(len(seeds))
    first, last = step * batch, (step + 1) * batch - 1
    parts = [_permutations(size, epoch, seeds) for epoch in range(first // size, last // size + 1)]
    whole = parts[0] if len(parts) == 1 else torch.cat(parts, 1)  # (seeds, n)
    return whole[:, first % size : first % size + batch].flatten()


@lru_cache(maxsize=4)
def _permutations(size: int, epoch: int, seeds: tuple[int, ...]) -> Tensor:
    return torch.stack([torch.randperm(size, generator=generator(seed, epoch)) for seed in seeds])


def spread(number: int, most: int) -> Tensor:
    """At most so many of a number of things: the middle of each of as many equal stretches, int64."""
    picked = min(number, most)
    return (2 * torch.arange(picked) + 1) * number // max(2 * picked, 1)


def generator(*key: int) -> torch.Generator:
    """A private generator that is a pure function of its key."""
    digest = hashlib.sha256(repr(key).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little", signed=False) % 2**63)


@dataclass(frozen=True)
class Split:
    """One part of an in-memory data set."""

    x: Tensor  # (N, D), or (N, T, D) where an example is a row of frames
    target: Tensor  # (N,) int64 or (N, Y) float
    labels: dict[str, Tensor]  # each (N,) int64
    document: Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.int64))  # (N,), else each its own
    weight: Tensor | None = None  # (N,) float32 where rows count differently


class InMemory(Task):
    """A task whose splits are tensors; a batch is an index."""

    gives = frozenset({"items"})
    splits: dict[str, Split]

    def adopt(
        self, splits: dict[str, Split], kind: Kind, label_names: dict[str, list[str]], image: Pixels | None = None
    ) -> None:
        """Take the splits and derive every size from them; with ``image`` features are its pixels."""
        train = splits["train"]
        self.splits, self.kind, self.label_names = splits, kind, label_names
        self.sizes = {name: len(split.x) for name, split in splits.items()}
        self.dim, self.out, self.family = train.x.shape[-1], kind.out, kind.family
        self.gives = InMemory.gives | kind.gives | {"vectors" if train.x.ndim == 2 else "item rank 2"}
        self.gives |= kind.support(torch.cat([split.target for split in splits.values()]))
        if image is not None:
            self.image, self.feature_names = image, image.names
            self.gives |= {"image"}
        tensors = [t for s in splits.values() for t in (s.x, s.target, *s.labels.values(), s.weight) if t is not None]
        self.fingerprint = hashlib.sha256(b"".join(t.contiguous().numpy().tobytes() for t in tensors)).hexdigest()

    def train_batch(self, step: int, size: int, seed: int) -> Batch:
        return self.all_rows if size >= self.sizes["train"] else super().train_batch(step, size, seed)

    def train_batches(self, step: int, size: int, seeds: tuple[int, ...]) -> Batch:
        if size >= self.sizes["train"] or type(self).train_batch is not InMemory.train_batch:
            return super().train_batches(step, size, seeds)
        return self.batch("train", orders(self.sizes["train"], step, size, seeds))

    @cached_property
    def all_rows(self) -> Batch:
        return self.batch("train", torch.arange(self.sizes["train"]))

    def batch(self, split: str, index: Tensor) -> Batch:
        part = self.splits[split]
        document = part.document[index] if len(part.document) else index
        labels = {name: label[index] for name, label in part.labels.items()}
        weight = None if part.weight is None else part.weight[index]
        row = torch.as_tensor(index) + sum(self.sizes[before] for before in SPLITS[: SPLITS.index(split)])
        return Batch(part.x[index], part.target[index], labels, document, row, weight)

    def chance(self, split: str) -> dict[str, float]:
        train, part = self.splits["train"], self.splits[split]
        if part.weight is None:
            return self.kind.chance(train.target, part.target)
        return self.kind.chance(train.target, part.target, (train.weight, part.weight))

    def new_rows(self, file: Path) -> tuple[Tensor, dict[str, list[Any]]]:
        """A table with the columns of ``feature_names``."""
        from moecli.tasks.frames import finite_numbers, read_table, require_columns

        frame = read_table(file)
        require_columns(frame, self.feature_names)
        columns = [torch.from_numpy(finite_numbers(frame[name])) for name in self.feature_names]
        return torch.stack(columns, dim=-1).float(), {}

    def facts(self) -> list[Fact]:
        rows = ", ".join(f"{count} {name}" for name, count in self.sizes.items())
        chance = ", ".join(f"{name} {value:.3f}" for name, value in self.chance("test").items())
        return [
            Fact("rows", rows),
            Fact("features", f"{self.dim}: {', '.join(self.feature_names[:8])}{' …' if self.dim > 8 else ''}"),
            Fact("targets", self.kind.describe()),
            *(Fact(f"label {name}", ", ".join(values[:12])) for name, values in self.label_names.items()),
            Fact("chance on test", chance),
        ]


def three_way(size: int, seed: int, valid: float = 0.15, test: float = 0.2) -> dict[str, Tensor]:
    """A fixed random split of ``size`` rows by the task's own seed: each row in one part, in row order."""
    shuffled = torch.randperm(size, generator=generator(seed))
    num_test, num_valid = round(size * test), round(size * valid)
    parts = shuffled.split([size - num_test - num_valid, num_valid, num_test])
    return {name: part.sort().values for name, part in zip(SPLITS, parts, strict=True)}
