"""Users' files as bytes and text, or one line that says what is wrong with them and where."""

from __future__ import annotations

import gzip
import os
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from moecli.errors import DataError, EnvironmentFailure


def user_path(path: str | Path) -> Path:
    return Path(os.path.expanduser(path))


def read_bytes(file: Path) -> bytes:
    """A regular file, whole.  DataError where there is none, EnvironmentFailure where it may not be read."""
    _require_regular(file)
    try:
        return file.read_bytes()
    except PermissionError as error:
        raise _forbidden(file) from error


@contextmanager
def opened(file: Path) -> Iterator[BinaryIO]:
    """A regular file to be read in parts, a ``.gz`` unpacked.  Raises as ``read_bytes``, DataError for a corrupt gzip."""
    _require_regular(file)
    try:
        with open(file, "rb") if file.suffix != ".gz" else gzip.open(file) as stream:
            yield stream  # type: ignore[misc]
    except PermissionError as error:
        raise _forbidden(file) from error
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise DataError(f"corrupt gzip ({file}): {error}. Fetch or pack it anew") from error


def _require_regular(file: Path) -> None:
    if file.is_dir():
        raise DataError(f"not a file ({file}): it is a folder. Name a file in it")
    if not file.is_file():
        why = "it is no regular file" if file.exists() else "no such file"
        raise DataError(f"cannot read data ({file}): {why}. Check the path")


def _forbidden(file: Path) -> EnvironmentFailure:
    return EnvironmentFailure(f"cannot read data ({file}): permission denied. Change the file's mode")


def decode(raw: bytes, file: Path, before: tuple[int, int] = (0, 0)) -> str:
    """UTF-8 text, a byte order mark taken off.  DataError names the byte and line that is none.

    ``before`` counts the bytes and lines of the file that lie before ``raw``.
    """
    first = not before[0]
    if first and raw[:2] in (b"\xff\xfe", b"\xfe\xff"):
        raise DataError(f"not UTF-8 ({file}): it begins with the mark of UTF-16. Save it as UTF-8")
    if b"\0" in raw:
        at = _place(raw, raw.index(b"\0"), before)
        raise DataError(f"not text ({file}, {at}): it holds a NUL byte, so it is binary. Save it as UTF-8 text")
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        at = f"{_place(raw, error.start, before)}, value 0x{raw[error.start]:02x}"
        raise DataError(f"not UTF-8 ({file}, {at}): {error.reason}. Save it as UTF-8") from error
    return text.removeprefix("\ufeff") if first else text  # not utf-8-sig: its error counts bytes from after the mark


def _place(raw: bytes, offset: int, before: tuple[int, int]) -> str:
    line = before[1] + raw.count(b"\n", 0, offset) + 1
    return f"byte {before[0] + offset}, line {line}"


def shown(value: object) -> str:
    """A name from a file as one line for a message: quoted, its newlines escaped, and cut."""
    text = repr(str(value))
    return text if len(text) <= 60 else f"{text[:57]}…'"
