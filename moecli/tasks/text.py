"""Texts as character-level language models: documents of labelled domains -> windows of ids.

A source is a list of (domain, name, text).  Whole documents go to training, validation or test, so
that no window crosses a split; a domain of too few documents is cut into consecutive pieces, the last
of which are held out.
"""

from __future__ import annotations

import hashlib
import math
import sysconfig
import unicodedata
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from moecli.errors import DataError, EnvironmentFailure
from moecli.tasks.files import decode, read_bytes, user_path
from moecli.tasks.kinds import UNKNOWN, Language
from moecli.tasks.task import SPLITS, Batch, Fact, Task, generator
from moecli.types import PositiveInt, Seed

MIN_COUNT = 5  # rarer characters of the training text are unknown
MAX_SYMBOLS = 200
CHARACTER_CLASSES = ("letter", "capital", "digit", "space", "newline", "punctuation", "other")
HELD_OUT = 0.1  # share of a domain's characters, for validation and for test each
PIECES = 20
SMALL_MODULE = 20_000  # bytes; so that the domain is many documents, not a few long ones


@dataclass(frozen=True)
class Document:
    """One text; ``text`` ends with the newline that divides it from the next."""

    domain: str
    name: str
    text: str


@dataclass(frozen=True)
class Stream:
    """The documents of one split end to end."""

    ids: Tensor  # (L,) int16
    document: Tensor  # (L,) int32
    num_windows: int
    starts: Tensor  # (W,) int64, the windows that are evaluated


class Characters(Task):
    """Base of all text tasks: ``adopt`` takes the documents and derives everything else."""

    gives = frozenset({"sequence", "ids", "classes"})
    needs = frozenset({"causal"})
    fitted = True
    dim = 0
    kind: Language

    def adopt(self, documents: list[Document], source: str, context: int, split_seed: int, eval_windows: int) -> None:
        """Split, count the vocabulary, encode.  DataError where a part is shorter than one window."""
        parts = split_documents(documents, split_seed)
        _refuse_short(parts, source, context)
        self.parts, self.context = parts, context
        self.feature_names: list[str] = []
        training = "".join(document.text for document in parts["train"])
        symbols = (UNKNOWN, *vocabulary(training))
        if len(symbols) == 1:
            why = f"no character occurs {MIN_COUNT} times in training"
            raise DataError(f"text too short ({source}): {why}. Give more text")
        self._lookup = np.zeros(0x110000, dtype=np.int16)  # code point -> id
        self._lookup[[ord(symbol) for symbol in symbols[1:]]] = np.arange(1, len(symbols))
        self._adopt_kind(symbols)
        self._adopt_streams(eval_windows)
        self._adopt_labels(symbols)
        self.fingerprint = fingerprint(parts)

    def _adopt_kind(self, symbols: tuple[str, ...]) -> None:
        self.kind = Language(symbols)
        self.out = self.vocab_size = len(symbols)
        self.family = self.kind.family

    def _adopt_streams(self, eval_windows: int) -> None:
        self.streams: dict[str, Stream] = {}
        first = 0  # number of the split's first document
        for split, documents in self.parts.items():
            ids = torch.from_numpy(self._ids("".join(document.text for document in documents)))
            lengths = torch.tensor([len(document.text) for document in documents])
            number = torch.arange(first, first + len(documents), dtype=torch.int32)
            num_windows = (len(ids) - 1) // self.context
            picked = num_windows if split == "train" else min(num_windows, eval_windows)
            # the middle of each of ``picked`` equal stretches, so that every domain is covered
            starts = (2 * torch.arange(picked) + 1) * num_windows // (2 * picked) * self.context
            self.streams[split] = Stream(ids, number.repeat_interleave(lengths), num_windows, starts)
            first += len(documents)
        self.sizes = {split: len(stream.starts) for split, stream in self.streams.items()}

    def _adopt_labels(self, symbols: tuple[str, ...]) -> None:
        documents = [document for part in self.parts.values() for document in part]
        domains = sorted({document.domain for document in documents})
        self.label_names = {"domain": domains, "character": list(CHARACTER_CLASSES)}
        self._domain_of = torch.tensor([domains.index(document.domain) for document in documents])
        self._class_of = torch.tensor([CHARACTER_CLASSES.index(character_class(symbol)) for symbol in symbols])

    def _ids(self, text: str) -> np.ndarray:  # -> (len(text),) int16
        # surrogatepass: new text may come from anywhere, and an odd character is just unknown
        return self._lookup[np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype=np.uint32)]

    def encode(self, text: str) -> Tensor:  # -> (len(text),) int64
        return torch.from_numpy(self._ids(text)).long()

    def new_rows(self, file: Path) -> tuple[Tensor, dict[str, list[Any]]]:
        """A text's windows (B, T), the last one short of ``context`` left out, and each character."""
        given = decode(read_bytes(user_path(file)), file)
        whole = len(given) // self.context * self.context
        if not whole:
            raise DataError(f"{file}: {len(given)} characters, and a window has {self.context}. Give a longer text")
        return self.encode(given[:whole]).view(-1, self.context), {"character": list(given[:whole])}

    def batch(self, split: str, index: Tensor) -> Batch:
        """The evaluated windows ``index`` (B,) of ``split``; in training those are all that do not overlap."""
        return self._windows(split, self.streams[split].starts[index])

    def train_batch(self, step: int, size: int, seed: int) -> Batch:
        """``size`` windows that begin anywhere in the training text: a pure function of (seed, step)."""
        places = len(self.streams["train"].ids) - self.context
        return self._windows("train", torch.randint(places, (size,), generator=generator(seed, step)))

    def _windows(self, split: str, start: Tensor) -> Batch:  # (B,) -> B windows of T ids
        stream = self.streams[split]
        place = start[:, None] + torch.arange(self.context + 1)  # (B, T + 1)
        ids = stream.ids[place].long()
        document = stream.document[place[:, :-1]].long()
        labels = {"domain": self._domain_of[document], "character": self._class_of[ids[:, :-1]]}
        row = start + sum(len(self.streams[before].ids) for before in SPLITS[: SPLITS.index(split)])
        return Batch(ids[:, :-1].clone(), ids[:, 1:].clone(), labels, document[:, 0].clone(), row)

    def chance(self, split: str) -> dict[str, float]:
        """The unigram of the training text, each symbol counted once more so that none is impossible."""
        train = torch.cat([self.streams["train"].ids.long(), torch.arange(self.out)])
        target = self.batch(split, torch.arange(self.sizes[split])).target
        return self.kind.chance(train, target.flatten())

    def facts(self) -> list[Fact]:
        chance = self.chance("test")
        guess = f"nll {chance['nll']:.3f} nats, {chance['bits_per_byte']:.3f} bits per byte"
        symbols = f"{self.out} symbols, {self._unknown_share():.4%} of the characters unknown"
        windows = ", ".join(f"{stream.num_windows} {split}" for split, stream in self.streams.items())
        return [
            *(Fact(f"domain {domain}", self._extent(domain)) for domain in self.label_names["domain"]),
            Fact(f"windows of {self.context}", f"{windows}; {self.sizes['valid']} and {self.sizes['test']} evaluated"),
            Fact("vocabulary", symbols),
            Fact("targets", self.kind.describe()),
            Fact("chance on test", f"{guess}, accuracy {chance['accuracy']:.3f}"),
        ]

    def _extent(self, domain: str) -> str:
        lines = []
        for split in SPLITS:
            lengths = [len(document.text) for document in self.parts[split] if document.domain == domain]
            lines.append(f"{split} {len(lengths)} documents of {sum(lengths):,} characters")
        return ", ".join(lines)

    def _unknown_share(self) -> float:
        ids = torch.cat([stream.ids for stream in self.streams.values()])
        return (ids == 0).double().mean().item()


class Text(Characters):
    """The user's own file, or a folder whose first level names the domains."""

    def __init__(
        self,
        path: str,
        context: PositiveInt = 128,
        max_chars: PositiveInt | None = None,
        eval_windows: PositiveInt = 64,
        split_seed: Seed = 0,
    ):
        root = user_path(path)
        self.skipped: Counter[str] = Counter()
        documents = read_folder(root, self.skipped) if root.is_dir() else [read_file(root)]
        self.adopt(first_characters(documents, max_chars), str(root), context, split_seed, eval_windows)

    def facts(self) -> list[Fact]:
        skipped = ", ".join(f"{count} {why}" for why, count in sorted(self.skipped.items()))
        return [*super().facts(), Fact("skipped files", skipped or "none")]


class StdlibText(Characters):
    """Python's own library: the sources of its smaller modules, and its language reference in English."""

    def __init__(
        self,
        context: PositiveInt = 128,
        max_chars: PositiveInt = 400_000,
        eval_windows: PositiveInt = 64,
        split_seed: Seed = 0,
    ):
        reference = first_characters(reference_topics(), max_chars)
        size = sum(len(document.text) for document in reference)
        sources = first_characters(library_sources(), size)  # as long as the reference: domains in balance
        self.adopt(sources + reference, "the Python library", context, split_seed, eval_windows)


def library_sources() -> list[Document]:
    """The top-level modules of the running Python, by name.  EnvironmentFailure where only bytecode lies there."""
    folder = Path(sysconfig.get_paths()["stdlib"])
    files = [file for file in sorted(folder.glob("[a-zA-Z]*.py")) if file.stat().st_size <= SMALL_MODULE]
    if not files:
        raise EnvironmentFailure(
            f"no library sources ({folder}): this Python ships none. Use task=text task.path=FOLDER"
        )
    return [Document("python", file.name, _ended(file.read_text("utf-8"))) for file in files]


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
            kept.append(Document("reference", name, _ended(topics[name])))
        seen.update(paragraphs)
    return sorted(kept, key=lambda document: document.name)


def read_file(file: Path) -> Document:
    """A file as the one document of a domain.  DataError where it is missing or no text."""
    text = _ended(decode(read_bytes(file), file))
    if not text.strip():
        raise DataError(f"no text ({file}): the file is empty. Give a file with text in it")
    return Document(file.suffix.removeprefix(".") or "text", file.name, text)


def read_folder(root: Path, skipped: Counter[str]) -> Iterator[Document]:
    """Each text file below ``root``; why others were passed over is counted in ``skipped``."""
    files = [(file.relative_to(root), file) for file in sorted(root.rglob("*")) if file.is_file()]
    visible = [(name, file) for name, file in files if not any(part.startswith(".") for part in name.parts)]
    if len(visible) < len(files):
        skipped["hidden"] = len(files) - len(visible)
    flat = all(len(name.parts) == 1 for name, _ in visible)
    for name, file in visible:
        text = _text_or_none(file, skipped)
        if text is not None:
            yield Document(_domain(name, root, flat), name.as_posix(), text)


def _domain(name: Path, root: Path, flat: bool) -> str:
    if flat:
        return name.suffix.removeprefix(".") or "no suffix"
    return name.parts[0] if len(name.parts) > 1 else root.resolve().name


def _text_or_none(file: Path, skipped: Counter[str]) -> str | None:
    try:
        with file.open("rb") as stream:
            head = stream.read(8192)  # enough to know a large binary without reading it whole
            text = _ended(decode(head if b"\0" in head else head + stream.read(), file))
    except (OSError, DataError) as error:
        skipped["not UTF-8 text" if isinstance(error, DataError) else "unreadable"] += 1
        return None
    if not text.strip():
        skipped["empty"] += 1
        return None
    return text


def _ended(text: str) -> str:
    return text.replace("\r\n", "\n").removesuffix("\n") + "\n"


def first_characters(documents: list[Document] | Iterator[Document], max_chars: int | None) -> list[Document]:
    """Each domain's documents up to ``max_chars`` characters, the last one cut."""
    room: dict[str, float] = {}
    kept = []
    for document in documents:
        left = room.setdefault(document.domain, max_chars or math.inf)
        if left > 0:
            text = document.text if len(document.text) <= left else document.text[: int(left)]
            kept.append(Document(document.domain, document.name, text))
            room[document.domain] -= len(text)
    return kept


def split_documents(documents: list[Document], seed: int) -> dict[str, list[Document]]:
    """Each domain for itself: about 80, 10 and 10 % of its characters, in the documents' order."""
    parts: dict[str, list[Document]] = {split: [] for split in SPLITS}
    domains = sorted({document.domain for document in documents})
    for number, domain in enumerate(domains):
        own = [document for document in documents if document.domain == domain]
        for split, held in (_by_document(own, seed, number) or _by_piece(own)).items():
            parts[split] += held
    return parts


def _by_document(documents: list[Document], seed: int, domain: int) -> dict[str, list[Document]] | None:
    """Whole documents in an order of ``seed``; None where the held-out parts would come out far too small."""
    total = sum(len(document.text) for document in documents)
    rest = torch.randperm(len(documents), generator=generator(seed, domain)).tolist()
    held: dict[str, list[int]] = {}
    for split in ("test", "valid"):
        held[split], size = [], 0
        for index in rest:
            longer = size + len(documents[index].text)
            if size < HELD_OUT * total and longer <= 1.5 * HELD_OUT * total:
                held[split], size = [*held[split], index], longer
        if 2 * size < HELD_OUT * total:
            return None
        rest = [index for index in rest if index not in held[split]]
    numbers = {"train": rest, "valid": held["valid"], "test": held["test"]}
    return {split: [documents[index] for index in sorted(part)] for split, part in numbers.items()}


def _by_piece(documents: list[Document]) -> dict[str, list[Document]]:
    """Each document in consecutive pieces: the first sixteen train, two validate, the last two test."""
    parts: dict[str, list[Document]] = {split: [] for split in SPLITS}
    num_held = round(HELD_OUT * PIECES)
    splits = ["train"] * (PIECES - 2 * num_held) + ["valid"] * num_held + ["test"] * num_held
    for document in documents:
        length = len(document.text)
        for piece, split in enumerate(splits):
            text = document.text[piece * length // PIECES : (piece + 1) * length // PIECES]
            parts[split].append(Document(document.domain, f"{document.name} {piece + 1}/{PIECES}", text))
    return parts


def vocabulary(text: str) -> list[str]:
    """The characters that occur at least MIN_COUNT times, the most frequent if they are many, sorted."""
    count = np.bincount(np.frombuffer(text.encode("utf-32-le"), dtype=np.uint32))
    count[ord(UNKNOWN) : ord(UNKNOWN) + 1] = 0
    by_count = np.argsort(-count, kind="stable")[: MAX_SYMBOLS - 1]
    return [chr(code) for code in np.sort(by_count[count[by_count] >= MIN_COUNT])]


def character_class(character: str) -> str:
    if character == UNKNOWN:
        return "other"
    if character == "\n":
        return "newline"
    if character.isspace():
        return "space"
    if character.isdigit():
        return "digit"
    if character.isalpha():
        return "capital" if character.isupper() or character.istitle() else "letter"
    return "punctuation" if unicodedata.category(character)[0] in "PS" else "other"


def fingerprint(parts: dict[str, list[Document]]) -> str:
    """SHA-256 over the texts, their domains and their split."""
    digest = hashlib.sha256()
    for split, documents in parts.items():
        for document in documents:
            digest.update(repr((split, document.domain, document.name, document.text)).encode())
    return digest.hexdigest()


def _refuse_short(parts: dict[str, list[Document]], source: str, context: int) -> None:
    lengths = {split: sum(len(document.text) for document in part) for split, part in parts.items()}
    total = sum(lengths.values())
    if not total:
        raise DataError(f"no text ({source}): no file below it is UTF-8 text. Give a folder with text files")
    split = min(lengths, key=lambda split: lengths[split])
    if lengths[split] <= context:
        needed = math.ceil(total * (context + 1) / max(lengths[split], 1))
        why = f"its {split} part has {lengths[split]} characters and a window takes {context + 1}"
        fix = f"give at least about {needed} characters instead of {total}, or lower task.context"
        raise DataError(f"text too short ({source}): {why}. {fix}")
