"""Documents of labelled domains: texts of any size -> which of them train, validate and test.

Texts wait end to end in one file (a ``Store``), in memory while they are small and on disk beyond, so
that every later pass over them has its own order and bounded memory.
"""

from __future__ import annotations

import hashlib
import io
import os
import tempfile
from array import array
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import BinaryIO, cast

import numpy as np
import torch

from moecli.errors import EnvironmentFailure
from moecli.tasks import pieces
from moecli.tasks.task import SPLITS, generator

IN_MEMORY = 2**26  # bytes of text; more of it waits on disk, and so do its ids
HELD_OUT = 0.1  # share of a domain's characters, for validation and for test each
PIECES = 20


@dataclass(frozen=True)
class Document:
    """One text, in pieces; it ends with the newline that divides it from the next."""

    domain: str
    name: str
    pieces: Iterable[str]

    @property
    def text(self) -> str:
        return "".join(self.pieces)


class Store:
    """Texts as UTF-8 in one nameless file, which is gone with the process however that ends."""

    def __init__(self, documents: Iterable[Document]):
        self._file: BinaryIO = io.BytesIO()
        self._named, self._starts, self._stops = array("q"), array("q"), array("q")  # bytes: a name, then its text
        self._lengths, self._domains = array("q"), array("q")
        self.on_disk, numbers = False, dict[str, int]()
        for document in documents:
            self._domains.append(numbers.setdefault(document.domain, len(numbers)))
            self._add(document)
        self.domains = sorted(numbers)
        self.start, self.stop, self.length = (np.array(a) for a in (self._starts, self._stops, self._lengths))
        rank = np.array([self.domains.index(name) for name in numbers], dtype=np.int64)
        self.domain = rank[np.array(self._domains, dtype=np.int64)]  # (M,) index into ``domains``

    def _add(self, document: Document) -> None:
        self._named.append(self._file.tell())
        self._write(document.name)
        self._starts.append(self._file.tell())
        self._lengths.append(sum(self._write(piece) for piece in document.pieces))
        self._stops.append(self._file.tell())

    def _write(self, text: str) -> int:
        try:
            self._file.write(text.encode("utf-8", "surrogatepass"))
            if not self.on_disk and self._file.tell() > IN_MEMORY:
                waiting, self.on_disk = cast(io.BytesIO, self._file), True
                self._file = cast(BinaryIO, tempfile.TemporaryFile(dir=cache_folder()))  # noqa: SIM115
                self._file.write(waiting.getbuffer())
        except OSError as error:
            raise unwritable(error) from error
        return len(text)

    def name(self, number: int) -> str:
        return "".join(self.between(self._named[number], self._starts[number]))

    def between(self, start: int, stop: int) -> Iterator[str]:
        """The text of some of the file's bytes, piece by piece.  One such reading at a time."""
        self._file.seek(start)
        for raw in pieces.blocks(self._file, stop - start):
            yield raw.decode("utf-8", "surrogatepass")

    def places(self, number: int, cuts: list[int]) -> list[int]:
        """The bytes where a document's characters ``cuts``, in rising order, begin or its text ends."""
        place, seen, found = int(self.start[number]), 0, list[int]()
        for piece in self.between(place, int(self.stop[number])):
            while len(found) < len(cuts) and cuts[len(found)] < seen + len(piece):
                found.append(place + _num_bytes(piece[: cuts[len(found)] - seen]))
            place, seen = place + _num_bytes(piece), seen + len(piece)
        return found + [place] * (len(cuts) - len(found))


@dataclass(frozen=True)
class Part:
    """Whole documents, or pieces of documents, of one split: what may be asked of each without reading it."""

    store: Store
    rows: np.ndarray  # (n, 5) int64: document, piece (0: whole, else from 1), first byte, end, characters

    def __len__(self) -> int:
        return len(self.rows)

    def __iter__(self) -> Iterator[Document]:
        for row in range(len(self)):
            yield Document(self.store.domains[self.domain[row]], self.name(row), (self.text(row),))

    @cached_property
    def domain(self) -> np.ndarray:  # (n,) index into the store's domains
        return self.store.domain[self.rows[:, 0]]

    @property
    def length(self) -> np.ndarray:  # (n,) characters
        return self.rows[:, 4]

    def name(self, row: int) -> str:
        document, piece = self.rows[row, :2].tolist()
        return self.store.name(document) + (f" {piece}/{PIECES}" if piece else "")

    def pieces(self, row: int) -> Iterator[str]:
        return self.store.between(*self.rows[row, 2:4].tolist())

    def text(self, row: int) -> str:
        return "".join(self.pieces(row))

    def every(self, stride: int = 1) -> Iterator[str]:
        """All text piece by piece, but for ``stride`` - 1 pieces after each."""
        number = 0
        for row in range(len(self)):
            for piece in self.pieces(row):
                if number % stride == 0:
                    yield piece
                number += 1


def first_characters(documents: Iterable[Document], max_chars: int | None, alone: bool = False) -> Iterator[Document]:
    """Each domain's documents up to ``max_chars`` characters, the last one cut; where there is but one, then stop.

    What lies beyond is not read.
    """
    room: dict[str, int] = {}
    for document in documents:
        if max_chars is None:
            yield document
        elif room.setdefault(document.domain, max_chars) > 0:
            yield Document(document.domain, document.name, _until(document, room))
        elif alone:
            return


def _until(document: Document, room: dict[str, int]) -> Iterator[str]:
    for piece in document.pieces:
        kept = piece[: room[document.domain]]
        room[document.domain] -= len(kept)
        yield kept
        if not room[document.domain]:
            return


def split_documents(store: Store, seed: int) -> dict[str, Part]:
    """Each domain for itself: about 80, 10 and 10 % of its characters, in the documents' order."""
    rows: dict[str, list[np.ndarray]] = {split: [np.zeros((0, 5), dtype=np.int64)] for split in SPLITS}
    for domain in range(len(store.domains)):
        own = np.flatnonzero(store.domain == domain)
        for split, held in (_by_document(store, own, seed, domain) or _by_piece(store, own)).items():
            rows[split].append(held)
    return {split: Part(store, np.concatenate(found)) for split, found in rows.items()}


def _by_document(store: Store, own: np.ndarray, seed: int, domain: int) -> dict[str, np.ndarray] | None:
    """Whole documents in an order of ``seed``; None where the held-out parts would come out far too small."""
    lengths = store.length[own].tolist()
    held_size = HELD_OUT * sum(lengths)
    rest = torch.randperm(len(own), generator=generator(seed, domain)).tolist()
    held: dict[str, list[int]] = {}
    for split in ("test", "valid"):
        held[split], size = [], 0
        for index in rest:
            if size < held_size and size + lengths[index] <= 1.5 * held_size:
                held[split].append(index)
                size += lengths[index]
        if 2 * size < held_size:
            return None
        taken = set(held[split])
        rest = [index for index in rest if index not in taken]
    return {split: _whole(store, own[sorted(part)]) for split, part in {"train": rest, **held}.items()}


def _whole(store: Store, documents: np.ndarray) -> np.ndarray:
    columns = [documents, 0 * documents, store.start[documents], store.stop[documents], store.length[documents]]
    return np.stack(columns, axis=1)


def piece_splits() -> list[str]:
    """Whose each of a text's consecutive pieces is: the first sixteen train, two validate, the last two test."""
    num_held = round(HELD_OUT * PIECES)
    return ["train"] * (PIECES - 2 * num_held) + ["valid"] * num_held + ["test"] * num_held


def _by_piece(store: Store, own: np.ndarray) -> dict[str, np.ndarray]:
    """Each document in consecutive pieces."""
    parts: dict[str, list[list[int]]] = {split: [] for split in SPLITS}
    for document in own.tolist():
        cuts = [piece * int(store.length[document]) // PIECES for piece in range(PIECES + 1)]
        places = store.places(document, cuts)
        for piece, split in enumerate(piece_splits()):
            row = [document, piece + 1, places[piece], places[piece + 1], cuts[piece + 1] - cuts[piece]]
            parts[split].append(row)
    return {split: np.array(rows) for split, rows in parts.items()}


def digest(parts: dict[str, Part]) -> str:
    """SHA-256 over the texts, their domains and their split."""
    found = hashlib.sha256()
    for split, part in parts.items():
        for row in range(len(part)):
            head = repr((split, part.store.domains[part.domain[row]], part.name(row)))
            found.update(f"{head[:-1]}, ".encode())
            for written in _written(part, row):
                found.update(written.encode())
            found.update(b")")
    return found.hexdigest()


def _written(part: Part, row: int) -> Iterator[str]:
    """``repr`` of a document's text, piece by piece: a mark before each decides which quotes Python takes."""
    single = double = False
    for piece in part.pieces(row):
        single, double = single or "'" in piece, double or '"' in piece
    quote, mark = ('"', "'") if single and not double else ("'", '"')
    yield quote
    for piece in part.pieces(row):
        yield repr(mark + piece)[2:-1]
    yield quote


def cache_folder() -> Path:
    """Where large texts lie as ids: ``MOE_CACHE``, else moecli in the user's cache folder.

    Raises EnvironmentFailure where it cannot be made.
    """
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    folder = Path(os.environ.get("MOE_CACHE") or Path(base) / "moecli").expanduser() / "texts"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise unwritable(error) from error
    return folder


def unwritable(error: OSError) -> EnvironmentFailure:
    why = f"{error.strerror or error}. Set MOE_CACHE to a folder with room for three times the text"
    return EnvironmentFailure(f"cannot keep a large text ({error.filename or 'the cache folder'}): {why}")


def _num_bytes(text: str) -> int:
    return len(text) if text.isascii() else len(text.encode("utf-8", "surrogatepass"))
