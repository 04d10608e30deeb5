"""Who works on what: a lease is a file that only one process can make, and that its death ends.

``NAME.000002`` says that NAME was taken for the third time, by the process whose identity it holds.
A marker beside it ends it: ``.free`` where the holder gave it back, ``.dead`` where somebody found the
holder gone.  No name is ever made free again, so whoever judged by an old look takes nothing from
anybody: the number it wants is there already.
"""

from __future__ import annotations

import json
import os
import socket
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

BEAT = 10.0  # seconds between two signs of life
STALE = 100.0  # seconds without one after which a holder on another machine counts as gone
GONE = "it vanished"
Standing = dict[str, dict[int, set[str]]]  # name: {number: which of "", "free", "dead" are there}


def identity() -> dict[str, Any]:
    """What tells this process from every other one, also on another machine or after a restart."""
    return {"host": socket.gethostname(), **_place(), "pid": os.getpid(), "start": _start(os.getpid())}


@cache
def _place() -> dict[str, Any]:
    """The start of this machine's system and the space its process numbers count in; empty without /proc."""
    with suppress(OSError):
        return {
            "boot": Path("/proc/sys/kernel/random/boot_id").read_text().strip(),
            "space": os.stat("/proc/self/ns/pid").st_ino,
        }
    return {}


def _stat(pid: int) -> list[str] | None:
    """/proc/PID/stat from the state letter on; None where there is no such process."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None


def _start(pid: int) -> str | None:
    found = _stat(pid)
    return found[19] if found else None


def is_gone(who: dict[str, Any]) -> bool | None:
    """Whether a process has ended, as the kernel says; None where only its signs of life can tell.

    A zombie is gone: where nobody reaps it, it keeps its number and its start.
    """
    if not _place() or any(who.get(key) != value for key, value in {"host": socket.gethostname(), **_place()}.items()):
        return None
    found = _stat(who["pid"])
    return found is None or found[0] in "ZX" or found[19] != who["start"]


@dataclass
class Lease:
    """A name held by this process until ``free`` or its end."""

    path: Path

    def __post_init__(self) -> None:
        self._over = threading.Event()

    def beat(self, robbed: Callable[[], None]) -> None:
        """Give signs of life from a thread; ``robbed`` is called where somebody has declared us dead."""
        threading.Thread(target=self._beat, args=(robbed,), daemon=True).start()

    def _beat(self, robbed: Callable[[], None]) -> None:
        while not self._over.wait(BEAT):
            with suppress(OSError):  # of a file server that is away for a moment
                os.utime(self.path)
                if Path(f"{self.path}.dead").exists():
                    robbed()

    def stop(self) -> None:
        self._over.set()

    def free(self) -> None:
        """Give it back: another may take the name."""
        self.stop()
        with suppress(OSError):  # of a full disk; our end will free it then
            _mark(self.path, "free")


class Leases:
    """All leases of a folder."""

    def __init__(self, folder: Path):
        self.folder = folder

    def standing(self) -> Standing:
        """What is there now, by one look at the folder."""
        found: Standing = {}
        for entry in os.listdir(self.folder):
            name, number, *marker = entry.split(".")
            if name:
                found.setdefault(name, {}).setdefault(int(number), set()).add(marker[0] if marker else "")
        return found

    def take(self, name: str, standing: Standing | None = None) -> Lease | None:
        """The lease of ``name``, or None where a living process holds it.  Raises OSError on a full disk."""
        numbers = (self.standing() if standing is None else standing).get(name, {})
        latest = max(numbers, default=-1)
        if latest >= 0 and numbers[latest] == {""}:
            if not self._is_dead(self._path(name, latest)):
                return None
            _mark(self._path(name, latest), "dead", GONE)
        return self._make(self._path(name, latest + 1))

    def _path(self, name: str, number: int) -> Path:
        return self.folder / f"{name}.{number:06d}"

    def _make(self, path: Path) -> Lease | None:
        try:
            descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o666)
        except FileExistsError:
            return None
        try:
            os.write(descriptor, json.dumps(identity()).encode())
        except OSError:
            path.unlink()
            raise
        finally:
            os.close(descriptor)
        return Lease(path)

    def _is_dead(self, path: Path) -> bool:
        try:
            who = json.loads(path.read_bytes() or b"{}")
            gone = is_gone(who) if who else None
            silent = BEAT if not who else STALE  # whoever made the file had no time to sign it
            return self._now() - path.stat().st_mtime > silent if gone is None else gone
        except (OSError, ValueError):
            return False

    def _now(self) -> float:
        """The time by the clock that stamps the files, which may be a file server's."""
        probe = self.folder / f".clock-{os.getpid()}-{threading.get_ident()}"
        probe.touch()
        now = probe.stat().st_mtime
        probe.unlink(missing_ok=True)
        return now

    def held(self, standing: Standing | None = None) -> dict[str, dict[str, Any]]:
        """{name: who holds it} of the leases that nobody has ended; a holder may be gone all the same."""
        latest = {name: max(n.items()) for name, n in (self.standing() if standing is None else standing).items()}
        found = {name: self._holder(name, number) for name, (number, markers) in latest.items() if markers == {""}}
        return {name: who for name, who in found.items() if who}

    def _holder(self, name: str, number: int) -> dict[str, Any]:
        with suppress(OSError, ValueError):
            return json.loads(self._path(name, number).read_bytes())
        return {}

    def bury(self, pid: int, how: str) -> str | None:
        """Say of the process ``pid`` of this machine, which has ended, how it did; returns one of what it held then.

        That may be another's by now, who saw that the holder was gone.
        """
        buried = None
        for name, numbers in self.standing().items():
            for number in (number for number, markers in numbers.items() if "free" not in markers):
                who = self._holder(name, number)
                if who.get("pid") == pid and is_gone(who):
                    _mark(self._path(name, number), "dead", how)
                    buried = name
        return buried

    def deaths(self, name: str, standing: Standing) -> int:
        return sum("dead" in markers for markers in standing.get(name, {}).values())

    def cause(self, name: str, standing: Standing) -> str:
        """How the last holder that died did."""
        last = max(number for number, markers in standing[name].items() if "dead" in markers)
        with suppress(OSError):
            return Path(f"{self._path(name, last)}.dead").read_text() or GONE
        return GONE

    def forget(self, name: str, standing: Standing) -> None:
        """Remove all traces of a name that nobody will ask for again."""
        for number, markers in standing.get(name, {}).items():
            for marker in markers:
                path = self._path(name, number)
                Path(f"{path}.{marker}" if marker else path).unlink(missing_ok=True)

    def pardon(self) -> None:
        """Forget the deaths so far, and every lease whose holder is gone."""
        standing = self.standing()
        for name, numbers in standing.items():
            latest = max(numbers)
            if numbers[latest] != {""} or self._is_dead(self._path(name, latest)):
                self.forget(name, standing)
            else:
                self.forget(name, {name: {n: m for n, m in numbers.items() if n != latest}})


def _mark(path: Path, marker: str, said: str = "") -> None:
    """The first mark counts."""
    with suppress(FileExistsError):
        descriptor = os.open(f"{path}.{marker}", os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o666)
        with os.fdopen(descriptor, "w") as file:
            file.write(said)
