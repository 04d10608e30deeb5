"""A text piece by piece, so that one of any length is read in bounded memory.

A piece has about BLOCK bytes and ends with a line, or with a character where a line is longer.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from moecli.tasks.files import decode, opened

BLOCK = 2**20


def text_pieces(file: Path) -> Iterator[str]:
    r"""A text file, plain or ``.gz``, its lines ended by ``\n``, the last one too.

    Raises DataError where it is no UTF-8, EnvironmentFailure where it may not be read.
    """
    num_bytes = num_lines = 0
    text = ""
    with opened(file) as stream:
        for raw in blocks(stream):
            text = decode(raw, file, (num_bytes, num_lines)).replace("\r\n", "\n")
            yield text
            num_bytes, num_lines = num_bytes + len(raw), num_lines + raw.count(b"\n")
    if not text.endswith("\n"):
        yield "\n"


def ended(text: str) -> str:
    """A text as ``text_pieces`` gives it."""
    return text.replace("\r\n", "\n").removesuffix("\n") + "\n"


def blocks(stream: BinaryIO, num_bytes: int | None = None) -> Iterator[bytes]:
    """The next ``num_bytes`` of a stream, or all, cut where a piece may end."""
    rest, left = b"", num_bytes
    while more := stream.read(BLOCK if left is None else min(BLOCK, left)):
        left = None if left is None else left - len(more)
        whole = rest + more
        cut = whole.rfind(b"\n") + 1 or _last_character(whole)
        rest = whole[cut:]
        if cut:
            yield whole[:cut]
    if rest:
        yield rest


def _last_character(raw: bytes) -> int:
    """Where the last character begins, which may be cut, or where the second byte of a line's end may follow."""
    place = len(raw) - 1
    while place > max(0, len(raw) - 4) and raw[place] & 0xC0 == 0x80:  # inside a character
        place -= 1
    return place
