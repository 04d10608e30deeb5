"""Texts as language models: documents of labelled domains -> windows of ids.

Whole documents go to training, validation or test, so that no window crosses a split; a domain of too
few documents is cut into consecutive pieces, the last of which are held out.
"""

from __future__ import annotations

import hashlib
import math
import sysconfig
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from moecli.errors import DataError, EnvironmentFailure, UsageError
from moecli.tasks.documents import Document, Part, Store, digest, first_characters, split_documents
from moecli.tasks.files import decode, read_bytes, user_path
from moecli.tasks.kinds import Language
from moecli.tasks.pieces import ended
from moecli.tasks.records import HUB
from moecli.tasks.shards import Pieces, Width, are_shards, read_shards
from moecli.tasks.sources import read_documents
from moecli.tasks.streams import Ids, cached, encoded, streams
from moecli.tasks.task import SPLITS, Batch, Fact, Task, generator
from moecli.tasks.token_classes import class_label
from moecli.tasks.tokens import BPE_TEXT, MIN_COUNT, OWN, Encoding, Numbers, encoding
from moecli.types import PositiveInt, Seed

SMALL_MODULE = 20_000  # bytes; so that the domain is many documents, not a few long ones


class Texts(Task):
    """Base of all text tasks: ``adopt`` takes the documents and derives everything else."""

    gives = frozenset({"sequence", "ids", "classes"})
    needs = frozenset({"causal"})
    fitted = True
    dim = 0
    kind: Language
    encoding: Encoding

    def adopt(
        self,
        documents: Iterable[Document],
        source: str,
        context: int,
        split_seed: int,
        eval_windows: int,
        tokens: str,
        vocab_size: int | None,
    ) -> None:
        """Split, make the vocabulary, encode.  DataError where a part is shorter than one window."""
        store = Store(documents)
        parts = split_documents(store, split_seed)
        if not store.length.sum():
            raise DataError(f"no text ({source}): nothing there is UTF-8 text. Give files or rows with text in them")
        told = digest(parts)
        self.encoding, ids = _encoded(store, parts, told, source, tokens, vocab_size)
        by_more = self.encoding.unit != "characters"  # a text of characters is told by itself
        self.fingerprint = hashlib.sha256((told + self.encoding.identity).encode()).hexdigest() if by_more else told
        self._adopt_ids(ids, parts, store.domains, source, context, eval_windows)

    def _adopt_ids(
        self,
        ids: dict[str, Ids],
        parts: dict[str, Part] | dict[str, Pieces],
        domains: list[str],
        source: str,
        context: int,
        eval_windows: int,
    ) -> None:
        _refuse_short({split: len(own) for split, own in ids.items()}, self.encoding.unit, source, context)
        self.parts, self.context, self.streams = parts, context, streams(ids, context, eval_windows)
        self.sizes = {split: len(stream.starts) for split, stream in self.streams.items()}
        self.kind = Language(self.encoding.symbols, self.encoding.sizes)
        self.out = self.vocab_size = len(self.encoding.symbols)
        self.family, self.feature_names = self.kind.family, list[str]()
        self.class_label, classes, of_symbol = class_label(self.encoding)
        self.label_names = {"domain": domains, **({self.class_label: classes} if classes else {})}
        self._domain_of = torch.from_numpy(np.concatenate([part.domain for part in parts.values()]))
        self._class_of = torch.tensor(of_symbol)

    def encode(self, text: str) -> Tensor:  # -> (L,) int64
        return torch.from_numpy(self.encoding.encode(text)).long()

    def new_rows(self, file: Path) -> tuple[Tensor, dict[str, list[Any]]]:
        """A text's windows (B, T), the last one short of ``context`` left out, and each token."""
        given = decode(read_bytes(user_path(file)), file)
        ids = self.encode(given)
        unit, whole = self.encoding.unit, len(ids) // self.context * self.context
        if not whole:
            raise DataError(f"{file}: {len(ids)} {unit}, and a window has {self.context}. Give a longer text")
        shown = given if unit == "characters" else [self.kind.symbols[i] for i in ids.tolist()]
        return ids[:whole].view(-1, self.context), {self.class_label: list(shown[:whole])}

    def batch(self, split: str, index: Tensor) -> Batch:
        """The evaluated windows ``index`` (B,) of ``split``; in training those are all that do not overlap."""
        return self._windows(split, self.streams[split].starts[index])

    def train_batch(self, step: int, size: int, seed: int) -> Batch:
        """``size`` windows that begin anywhere in the training text: a pure function of (seed, step)."""
        places = len(self.streams["train"]) - self.context
        return self._windows("train", torch.randint(places, (size,), generator=generator(seed, step)))

    def _windows(self, split: str, start: Tensor) -> Batch:  # (B,) -> B windows of T ids
        stream = self.streams[split]
        ids = stream.windows(start, self.context + 1)  # (B, T + 1)
        document = stream.document(start[:, None] + torch.arange(self.context))  # (B, T)
        labels = {"domain": self._domain_of[document]}
        if self.class_label in self.label_names:
            labels[self.class_label] = self._class_of[ids[:, :-1]]
        row = start + sum(len(self.streams[before]) for before in SPLITS[: SPLITS.index(split)])
        return Batch(ids[:, :-1].clone(), ids[:, 1:].clone(), labels, document[:, 0].clone(), row)

    def chance(self, split: str) -> dict[str, float]:
        """The unigram of the training text, each symbol counted once more so that none is impossible."""
        count = torch.from_numpy(self.streams["train"].ids.count) + 1
        target = self.batch(split, torch.arange(self.sizes[split])).target
        return self.kind.chance(torch.arange(self.out), target.flatten(), (count, None))

    def facts(self) -> list[Fact]:
        chance = self.chance("test")
        per_byte = f", {chance['bits_per_byte']:.3f} bits per byte" if math.isfinite(chance["bits_per_byte"]) else ""
        windows = ", ".join(f"{stream.num_windows} {split}" for split, stream in self.streams.items())
        return [
            *(Fact(f"domain {name}", self._extent(i)) for i, name in enumerate(self.label_names["domain"])),
            Fact(f"windows of {self.context}", f"{windows}; {self.sizes['valid']} and {self.sizes['test']} evaluated"),
            Fact("vocabulary", f"{self.out} symbols{self._read_as()}"),
            Fact("targets", self.kind.describe()),
            Fact("chance on test", f"nll {chance['nll']:.3f} nats{per_byte}, accuracy {chance['accuracy']:.3f}"),
            *([Fact("ids on disk", str(folder))] if (folder := self.streams["train"].ids.folder) else []),
        ]

    def _extent(self, domain: int) -> str:
        lines, unit = [], "tokens" if isinstance(self.parts["train"], Pieces) else "characters"
        for split in SPLITS:
            lengths = self.parts[split].length[self.parts[split].domain == domain]
            lines.append(f"{split} {len(lengths)} documents of {lengths.sum():,} {unit}")
        return ", ".join(lines)

    def _read_as(self) -> str:
        count = np.sum([stream.ids.count for stream in self.streams.values()], axis=0)
        if self.encoding.unit == "characters":
            return f", {count[0] / count.sum():.4%} of the characters unknown"
        if isinstance(self.parts["train"], Pieces):
            return f" ({self.encoding.unit})"
        length = sum(part.length.sum() for part in self.parts.values())
        return f" ({self.encoding.unit}), each of {length / count.sum():.2f} characters"


def _encoded(
    store: Store, parts: dict[str, Part], told: str, source: str, tokens: str, vocab_size: int | None
) -> tuple[Encoding, dict[str, Ids]]:
    """What gives the ids, of the training part alone, and the ids: of a large text in the cache folder."""

    def make() -> Encoding:
        stride = math.ceil(parts["train"].length.sum() / BPE_TEXT) if tokens == "bpe" else 1
        found = encoding(tokens, parts["train"].every(stride), vocab_size)
        if len(found.symbols) == 1:
            why = f"no character occurs {MIN_COUNT} times in training"
            raise DataError(f"text too short ({source}): {why}. Give more text")
        return found

    if store.on_disk:
        kind = tokens if tokens in OWN else encoding(tokens, [], vocab_size).identity
        return cached((told, kind, str(vocab_size)), parts, make)
    found = make()
    return found, encoded(parts, found)


class Text(Texts):
    """The user's own: a file, a folder whose first level names the domains, rows, a data set of the hub, token shards."""

    def __init__(
        self,
        path: str,
        context: PositiveInt = 128,
        max_chars: PositiveInt | None = None,
        eval_windows: PositiveInt = 64,
        split_seed: Seed = 0,
        tokens: str = "characters",
        vocab_size: PositiveInt | None = None,
        column: str = "text",
        domain_column: str | None = None,
        dtype: Literal["uint16", "uint32"] = "uint16",
    ):
        self.skipped: Counter[str] = Counter()
        if not path.startswith(HUB) and are_shards(user_path(path)):
            self._adopt_shards(user_path(path), dtype, tokens, vocab_size, context, eval_windows)
            return
        one_domain = domain_column is None and (path.startswith(HUB) or not user_path(path).is_dir())
        documents = read_documents(path, column, domain_column, self.skipped)
        kept = first_characters(documents, max_chars, one_domain)
        self.adopt(kept, path, context, split_seed, eval_windows, tokens, vocab_size)

    def _adopt_shards(
        self, root: Path, dtype: Width, tokens: str, vocab_size: int | None, context: int, eval_windows: int
    ) -> None:
        """Ids that somebody else made: their vocabulary is that of a tokenizer.json, or has so many symbols."""
        if tokens not in OWN:
            self.encoding = encoding(tokens, [], vocab_size)
        elif vocab_size is not None:
            self.encoding = Numbers(vocab_size)
        else:
            fix = "Give the tokenizer that wrote it (task.tokens=PATH), or its size (task.vocab_size)"
            raise UsageError(f"no vocabulary (task.path={root}): token shards hold ids alone. {fix}")
        files = sorted(root.rglob("[!.]*.bin")) if root.is_dir() else [root]
        names = [file.relative_to(root).parts[0].removesuffix(".bin") if root.is_dir() else "bin" for file in files]
        domains = sorted(set(names))
        found = read_shards(files, [domains.index(name) for name in names], dtype, len(self.encoding.symbols))
        self.fingerprint = hashlib.sha256((found.fingerprint + self.encoding.identity).encode()).hexdigest()
        self._adopt_ids(found.ids, found.parts, domains, str(root), context, eval_windows)

    def facts(self) -> list[Fact]:
        skipped = ", ".join(f"{count} {why}" for why, count in sorted(self.skipped.items()))
        return [*super().facts(), Fact("skipped files", skipped or "none")]


class StdlibText(Texts):
    """Python's own library: the sources of its smaller modules, and its language reference in English."""

    def __init__(
        self,
        context: PositiveInt = 128,
        max_chars: PositiveInt = 400_000,
        eval_windows: PositiveInt = 64,
        split_seed: Seed = 0,
        tokens: str = "characters",
        vocab_size: PositiveInt | None = None,
    ):
        reference = list(_first(reference_topics(), max_chars))
        size = sum(len(document.text) for document in reference)
        sources = _first(library_sources(), size)  # as long as the reference: domains in balance
        documents = [*sources, *reference]
        self.adopt(documents, "the Python library", context, split_seed, eval_windows, tokens, vocab_size)


def _first(documents: list[Document], max_chars: int) -> list[Document]:
    return [Document(d.domain, d.name, tuple(d.pieces)) for d in first_characters(documents, max_chars)]


def library_sources() -> list[Document]:
    """The top-level modules of the running Python, by name.  EnvironmentFailure where only bytecode lies there."""
    folder = Path(sysconfig.get_paths()["stdlib"])
    files = [file for file in sorted(folder.glob("[a-zA-Z]*.py")) if file.stat().st_size <= SMALL_MODULE]
    if not files:
        raise EnvironmentFailure(
            f"no library sources ({folder}): this Python ships none. Use task=text task.path=FOLDER"
        )
    return [Document("python", file.name, (ended(file.read_text("utf-8")),)) for file in files]


def reference_topics() -> list[Document]:
    """The chapters of the language reference that ``help()`` shows, by name.

    A chapter that a longer one contains ("for" is part of "compound") is left out, else the test would
    be read in training.
    """
    from pydoc_data.topics import topics

    seen: set[str] = set()
    kept = []
    for name in sorted(topics, key=lambda name: (-len(topics[name]), name)):
        paragraphs = [part for part in topics[name].split("\n\n") if len(part) > 60]
        if 2 * sum(part in seen for part in paragraphs) <= len(paragraphs):
            kept.append(Document("reference", name, (ended(topics[name]),)))
        seen.update(paragraphs)
    return sorted(kept, key=lambda document: document.name)


def _refuse_short(lengths: dict[str, int], unit: str, source: str, context: int) -> None:
    split, total = min(lengths, key=lambda split: lengths[split]), sum(lengths.values())
    if lengths[split] <= context:
        needed = math.ceil(total * (context + 1) / max(lengths[split], 1))
        why = f"its {split} part has {lengths[split]} {unit} and a window takes {context + 1}"
        fix = f"give at least about {needed} {unit} instead of {total}, or lower task.context"
        raise DataError(f"text too short ({source}): {why}. {fix}")
