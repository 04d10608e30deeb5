"""Users' files as bytes and text, or one line that says what is wrong with them and where."""

from __future__ import annotations

import os
from pathlib import Path

from moecli.errors import DataError, EnvironmentFailure


def user_path(path: str | Path) -> Path:
    return Path(os.path.expanduser(path))


def read_bytes(file: Path) -> bytes:
    """A regular file, whole.  DataError where there is none, EnvironmentFailure where it may not be read."""
    if file.is_dir():
        raise DataError(f"not a file ({file}): it is a folder. Name a file in it")
    if not file.is_file():
        why = "it is no regular file" if file.exists() else "no such file"
        raise DataError(f"cannot read data ({file}): {why}. Check the path")
    try:
        return file.read_bytes()
    except PermissionError as error:
        raise EnvironmentFailure(f"cannot read data ({file}): permission denied. Change the file's mode") from error


def decode(raw: bytes, file: Path) -> str:
    """UTF-8 text, a byte order mark taken off.  DataError names the byte and line that is none."""
    if raw[:2] in (b"\xff\xfe", b"\xfe\xff"):
        raise DataError(f"not UTF-8 ({file}): it begins with the mark of UTF-16. Save it as UTF-8")
    if b"\0" in raw:
        at = _place(raw, raw.index(b"\0"))
        raise DataError(f"not text ({file}, {at}): it holds a NUL byte, so it is binary. Save it as UTF-8 text")
    try:
        return raw.decode("utf-8").removeprefix("\ufeff")  # not utf-8-sig: its error counts bytes from after the mark
    except UnicodeDecodeError as error:
        at = f"{_place(raw, error.start)}, value 0x{raw[error.start]:02x}"
        raise DataError(f"not UTF-8 ({file}, {at}): {error.reason}. Save it as UTF-8") from error


def _place(raw: bytes, offset: int) -> str:
    line = raw.count(b"\n", 0, offset) + 1
    return f"byte {offset}, line {line}"


def shown(value: object) -> str:
    """A name from a file as one line for a message: quoted, its newlines escaped, and cut."""
    text = repr(str(value))
    return text if len(text) <= 60 else f"{text[:57]}…'"
