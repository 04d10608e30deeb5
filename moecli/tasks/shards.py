"""Token shards: raw little-endian integers, no header, as nanoGPT and OLMo write them -> the ids of each split.

A shard stays where it is, and each batch reads its windows there.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from moecli.errors import DataError
from moecli.tasks.documents import PIECES, piece_splits
from moecli.tasks.files import opened
from moecli.tasks.streams import AT_ONCE, Ids, OnDisk, counted
from moecli.tasks.task import SPLITS

Width = Literal["uint16", "uint32"]
DTYPES: dict[str, np.dtype] = {"uint16": np.dtype("<u2"), "uint32": np.dtype("<u4")}


@dataclass(frozen=True)
class Pieces:
    """The pieces of shards in one split, each a document: its domain, an index, and how many tokens it has."""

    domain: np.ndarray  # (n,) int64
    length: np.ndarray  # (n,) int64

    def __len__(self) -> int:
        return len(self.length)


@dataclass(frozen=True)
class Shards:
    ids: dict[str, Ids]
    parts: dict[str, Pieces]
    fingerprint: str


def are_shards(path: Path) -> bool:
    """A ``.bin`` file, or a folder of nothing else."""
    if not path.is_dir():
        return path.suffix == ".bin"
    visible = [file for file in path.rglob("*") if file.is_file() and not file.name.startswith(".")]
    return bool(visible) and all(file.suffix == ".bin" for file in visible)


def read_shards(files: Sequence[Path], domains: Sequence[int], width: Width, vocab_size: int) -> Shards:
    """Each shard in twenty consecutive pieces: sixteen train, two validate, two test.

    Raises DataError where a file is no such shard or an id lies beyond the vocabulary.
    """
    shards = [_opened(file, DTYPES[width]) for file in files]
    told = hashlib.sha256(width.encode())
    for shard, domain in zip(shards, domains, strict=True):
        told.update(f" {domain} {len(shard)} ".encode())
        for start in range(0, len(shard), AT_ONCE):
            tokens = shard[start : start + AT_ONCE]
            _refuse_beyond(int(tokens.max()), vocab_size, shard.file)
            told.update(tokens.tobytes())
    parts = {split: _part(shards, domains, split) for split in SPLITS}
    ids = {split: _ids(shards, parts[split], split, vocab_size) for split in SPLITS}
    return Shards(ids, parts, told.hexdigest())


def _opened(file: Path, dtype: np.dtype) -> OnDisk:
    with opened(file) as stream:  # refused in one line where it may not be read
        stream.read(1)
    size = file.stat().st_size
    if not size or size % dtype.itemsize:
        why = f"it has {size} bytes, and a token {dtype.itemsize}"
        raise DataError(f"no token shard ({file}): {why}. Give raw {dtype} without a header, or the right task.dtype")
    return OnDisk(file, dtype)


def _refuse_beyond(most: int, vocab_size: int, file: Path) -> None:
    if most >= vocab_size:
        why = f"it holds {most}, and the vocabulary has {vocab_size} symbols"
        fix = "Give the tokenizer that wrote it (task.tokens), a larger task.vocab_size, or the right task.dtype"
        raise DataError(f"token beyond the vocabulary ({file}): {why}. {fix}")


def _bounds(shard: OnDisk, split: str) -> list[int]:
    """Where the consecutive pieces of one split begin, and where the last ends."""
    own = [piece for piece, whose in enumerate(piece_splits()) if whose == split]
    return [piece * len(shard) // PIECES for piece in (*own, own[-1] + 1)]


def _part(shards: Sequence[OnDisk], domains: Sequence[int], split: str) -> Pieces:
    lengths = [np.diff(_bounds(shard, split)) for shard in shards]
    return Pieces(np.repeat(domains, [len(own) for own in lengths]), np.concatenate(lengths))


def _ids(shards: Sequence[OnDisk], part: Pieces, split: str, vocab_size: int) -> Ids:
    bounds = [_bounds(shard, split) for shard in shards]
    own = [OnDisk(shard.file, shard.dtype, ends[0], ends[-1]) for shard, ends in zip(shards, bounds, strict=True)]
    return Ids(own, np.cumsum(part.length), np.sum([counted(one, vocab_size) for one in own], axis=0))
