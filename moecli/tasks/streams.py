"""Ids of one split end to end: texts -> where each token, document and window lies.

The ids of a large text are files in ``cache_folder()``, from which each batch reads its windows.  A folder
there is named by what its ids come from; whoever finds it need not encode again.  Folders may be deleted at
any time, and the oldest are when there are more than KEPT.
"""

from __future__ import annotations

import hashlib
import io
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from torch import Tensor

from moecli.errors import DataError
from moecli.tasks.documents import Part, cache_folder, unwritable
from moecli.tasks.task import SPLITS, spread
from moecli.tasks.tokens import Encoding, restored

AT_ONCE = 2**20  # tokens
KEPT = 8  # encoded texts
ABANDONED = 24 * 3600  # seconds after which a folder that was never finished is deleted
FORM = 1  # of a folder's files; another one's are not read


class OnDisk:
    """Ids in a file, of which a slice reads just itself: they cost no memory, and outlive the file's deletion."""

    def __init__(self, file: Path, dtype: np.dtype, start: int = 0, stop: int | None = None):
        """Raises OSError."""
        self.file, self.dtype, self.start = file, dtype, start
        self.stop = file.stat().st_size // dtype.itemsize if stop is None else stop
        self._open = open(file, "rb", buffering=0)  # noqa: SIM115 - as long as the task lives

    def __len__(self) -> int:
        return self.stop - self.start

    def __getitem__(self, span: slice) -> np.ndarray:
        start, stop, _ = span.indices(len(self))
        size, count = self.dtype.itemsize, max(0, stop - start)
        raw = os.pread(self._open.fileno(), count * size, (self.start + start) * size)
        if len(raw) < count * size:
            raise DataError(f"tokens are gone ({self.file}): it was cut short while it was read. Restore it")
        return np.frombuffer(raw, dtype=self.dtype)


@dataclass(frozen=True)
class Ids:
    """The tokens of one split: arrays one after another, documents one after another, and how often each id occurs."""

    arrays: Sequence[np.ndarray | OnDisk]  # each (l,) of any integer type
    ends: np.ndarray  # (D,) int64, tokens up to each document's end
    count: np.ndarray  # (V,) int64
    folder: Path | None = None  # that large ones lie in

    def __len__(self) -> int:
        return int(self.ends[-1]) if len(self.ends) else 0

    def __getitem__(self, span: slice) -> np.ndarray:
        """Also across the arrays' ends."""
        start, stop, _ = span.indices(len(self))
        found = []
        for array in self.arrays:
            found.append(array[max(start, 0) : max(stop, 0)])
            start, stop = start - len(array), stop - len(array)
        return found[0] if len(found) == 1 else np.concatenate(found)


@dataclass(frozen=True)
class Stream:
    """A split's ids, and the windows that are cut from them."""

    ids: Ids
    first: int  # number of its first document
    num_windows: int
    starts: Tensor  # (W,) int64, the windows that are evaluated

    def __len__(self) -> int:
        return len(self.ids)

    def windows(self, start: Tensor, length: int) -> Tensor:  # (B,) -> (B, length) int64
        found = np.stack([self.ids[place : place + length] for place in start.tolist()])
        return torch.from_numpy(found.astype(np.int64))

    def document(self, place: Tensor) -> Tensor:
        """The number of the document at some places, int64."""
        return self.first + torch.searchsorted(torch.from_numpy(self.ids.ends), place, right=True)


def streams(ids: dict[str, Ids], context: int, eval_windows: int) -> dict[str, Stream]:
    """Windows of ``context``: all of training, and so many of the other splits."""
    found, first = dict[str, Stream](), 0
    for split, own in ids.items():
        num_windows = (len(own) - 1) // context
        picked = num_windows if split == "train" else eval_windows
        starts = spread(num_windows, picked) * context  # so that every domain is covered
        found[split] = Stream(own, first, num_windows, starts)
        first += len(own.ends)
    return found


def encoded(parts: dict[str, Part], encoding: Encoding) -> dict[str, Ids]:
    """All texts as ids in memory."""
    return {split: _in_memory(part, encoding) for split, part in parts.items()}


def _in_memory(part: Part, encoding: Encoding) -> Ids:
    sink = io.BytesIO()
    ends = _write_ids(part, encoding, sink)
    ids = np.frombuffer(sink.getbuffer(), dtype=_dtype(encoding))
    return Ids([ids], ends, counted(ids, len(encoding.symbols)))


def _write_ids(part: Part, encoding: Encoding, sink: BinaryIO) -> np.ndarray:
    """Document by document; where each ends."""
    lengths = np.zeros(len(part), dtype=np.int64)
    for row in range(len(part)):
        for piece in part.pieces(row):
            ids = encoding.encode(piece)
            lengths[row] += len(ids)
            sink.write(ids.astype(_dtype(encoding)).data)
    return np.cumsum(lengths)


def counted(array: np.ndarray | OnDisk, vocab_size: int) -> np.ndarray:
    """How often each id occurs: (V,)."""
    count = np.zeros(vocab_size, dtype=np.int64)
    for start in range(0, len(array), AT_ONCE):
        count += np.bincount(array[start : start + AT_ONCE], minlength=vocab_size)
    return count


def _dtype(encoding: Encoding) -> np.dtype:
    return np.dtype(np.int16 if len(encoding.symbols) <= 2**15 else np.int32)


# On disk


def cached(key: Iterable[str], parts: dict[str, Part], make: Callable[[], Encoding]) -> tuple[Encoding, dict[str, Ids]]:
    """All texts as ids on disk and what gives them; found there, or made and left there.

    Raises EnvironmentFailure where the disk is full or may not be written.
    """
    name = hashlib.sha256(repr((FORM, *key)).encode()).hexdigest()[:32]
    folder = cache_folder() / name
    with suppress(OSError, ValueError, TypeError, IndexError):  # not there, or damaged
        return _read(folder)
    encoding = make()
    try:
        _leave(folder, parts, encoding)
        return encoding, _read(folder)[1]
    except OSError as error:
        raise unwritable(error) from error


def _leave(folder: Path, parts: dict[str, Part], encoding: Encoding) -> None:
    """Whole or not at all, whoever else does the same."""
    draft = Path(tempfile.mkdtemp(prefix="draft-", dir=folder.parent))
    try:
        for split, part in parts.items():
            with open(draft / f"{split}.ids", "wb") as sink:
                np.save(draft / f"{split}.ends.npy", _write_ids(part, encoding, sink))
            ids = OnDisk(draft / f"{split}.ids", _dtype(encoding))
            np.save(draft / f"{split}.count.npy", counted(ids, len(encoding.symbols)))
        (draft / "encoding.json").write_text(encoding.identity, "utf-8")
        shutil.rmtree(folder, ignore_errors=True)  # a damaged one
        with suppress(FileExistsError, NotADirectoryError):
            os.replace(draft, folder)
        _tidy(folder.parent)
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def _read(folder: Path) -> tuple[Encoding, dict[str, Ids]]:
    """Raises OSError, ValueError, TypeError or IndexError where a file is missing or damaged."""
    encoding = restored((folder / "encoding.json").read_text("utf-8"))
    found = {}
    for split in SPLITS:
        ends, count = (np.load(folder / f"{split}.{name}.npy", allow_pickle=False) for name in ("ends", "count"))
        ids = OnDisk(folder / f"{split}.ids", _dtype(encoding))
        if len(ids) != ends[-1] or len(count) != len(encoding.symbols):
            raise ValueError("cut short")
        found[split] = Ids([ids], ends, count, folder)
    os.utime(folder)  # lately used
    return encoding, found


def _tidy(root: Path) -> None:
    """On POSIX a file that is deleted while another process reads it stays until that is done."""
    with suppress(OSError):
        folders = sorted(root.iterdir(), key=lambda folder: -folder.stat().st_mtime)
        whole = [folder for folder in folders if not folder.name.startswith("draft-")]
        old = [folder for folder in folders if time.time() - folder.stat().st_mtime > ABANDONED]
        for folder in [*whole[KEPT:], *(folder for folder in old if folder not in whole)]:
            shutil.rmtree(folder, ignore_errors=True)
