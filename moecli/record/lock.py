"""One process at a time works on a run folder; the lock dies with its process."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from moecli.errors import ConflictError
from moecli.record.folder import open_own


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold ``folder/.lock``.  Raises ConflictError naming the process that holds it."""
    descriptor = open_own(folder / ".lock", os.O_RDWR)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ConflictError(f"{folder}: {_named(descriptor)} is training it. Wait for it, or stop it") from None
        os.ftruncate(descriptor, 0)
        os.write(descriptor, f"process {os.getpid()} on {os.uname().nodename}".encode())
        yield
    finally:
        os.close(descriptor)


def holder(folder: Path) -> str | None:
    """Who holds ``folder/.lock`` now, or None; the file is only read."""
    try:
        descriptor = os.open(folder / ".lock", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return _named(descriptor)
    finally:
        os.close(descriptor)
    return None


def _named(descriptor: int) -> str:
    return os.read(descriptor, 100).decode(errors="replace").strip() or "another process"
