"""The run folder: claimed by an atomic mkdir, every file written whole or appended a line at a time.

What each file holds stands in ``runs/README.md``.  Readers use ``Run``; only the trainer writes.
"""

from __future__ import annotations

import json
import math
import os
import secrets
import shutil
import string
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from moecli.errors import ArtifactError, EnvironmentFailure, UsageError

CHANGED = "The file was changed after it was written"
MOST_JSON = 100_000_000  # bytes of a JSON file; the summary of a thousand experts has less than one of them
NAME_LETTERS = set(string.ascii_letters + string.digits + "._-")


def runs_root(root: Path | None = None) -> Path:
    """Where runs land: ``--runs``, else ``MOE_RUNS``, else ``runs/`` here."""
    return Path(root or os.environ.get("MOE_RUNS") or "runs").expanduser()


def check_name(name: str) -> None:
    """Raise UsageError for a name that would leave the root, or that some file system refuses."""
    if not name or set(name) - NAME_LETTERS or name.strip(".") == "" or len(name) > 100 or name[0] == "-":
        raise UsageError(
            f"--name {name!r}: use 1 to 100 of the letters A-Z a-z 0-9 . _ - and begin with another than -"
        )


def claim(root: Path, name: str) -> Path:
    """Make a new folder ``root/name/<UTC time>-<4 letters>``; mkdir is atomic, so no two runs share one.

    Raises UsageError for a name that would leave the root, EnvironmentFailure where nothing can be written.
    """
    check_name(name)
    parent = root / name
    try:
        parent.mkdir(parents=True, exist_ok=True)
        while True:
            letters = "".join(secrets.choice(string.ascii_lowercase) for _ in range(4))
            folder = parent / f"{datetime.now(UTC):%Y%m%dT%H%M%S}-{letters}"
            try:
                folder.mkdir()
            except FileExistsError:
                continue
            return folder
    except OSError as error:
        raise EnvironmentFailure(f"{parent}: {error.strerror}. Choose another place with --runs or MOE_RUNS") from error


def require_room(folder: Path, size: int, what: str) -> None:
    """Raises EnvironmentFailure where fewer than ``size`` bytes are free."""
    free = shutil.disk_usage(folder).free
    if free < size:
        raise EnvironmentFailure(
            f"{folder}: {what} need {size / 1e6:.1f} MB more, and {free / 1e6:.1f} MB are free. "
            "Make room, or choose another place with --runs"
        )


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Let an OSError of writing say which file it was about, as those of opening do."""
    try:
        yield
    except OSError as error:
        error.filename = error.filename or str(path)
        raise


def write_whole(path: Path, data: bytes) -> None:
    """Write beside, flush to disk, rename: a reader sees the old file or the new one, never a part."""
    beside = path.with_name(f".tmp-{path.name}-{secrets.token_hex(4)}")
    try:
        with naming(path), open(beside, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, path)
    except OSError:
        beside.unlink(missing_ok=True)
        raise


def to_json(value: Any) -> bytes:
    """Valid JSON whatever the numbers: nan and inf become null."""
    return (
        json.dumps(finite(value), indent=1, ensure_ascii=False, allow_nan=False).encode(errors="backslashreplace")
        + b"\n"
    )


def finite(value: Any) -> Any:
    """The same value with every float that is not finite turned into None."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {str(key): finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    return value


def read_regular(path: Path, most: int | None = None) -> bytes:
    """All of a file.  Raises ArtifactError for a pipe, a device or a folder, which might never end, and for a
    file of more than ``most`` bytes, before anything of it is read.
    """
    if not path.is_file() and os.path.lexists(path):
        raise ArtifactError(f"{path}: no regular file, and moe writes no other. Remove it")
    if most is not None and path.stat().st_size > most:
        raise ArtifactError(f"{path}: it has more than {most:,} bytes. {CHANGED}")
    return path.read_bytes()


def open_own(path: Path, flags: int) -> int:
    """Open a file of the run to write in it, a new one where there is none.

    Raises ArtifactError for a link, hard or soft, and for a pipe: a run folder from elsewhere writes nowhere else.
    """
    if os.path.lexists(path) and (path.is_symlink() or not path.is_file() or path.stat().st_nlink > 1):
        raise ArtifactError(
            f"{path}: a link or no regular file, which moe does not write through. Copy it in its place"
        )
    return os.open(path, flags | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o666)


class Fields(dict[str, Any]):
    """What a file holds, by name; what it lacks is an ArtifactError that names the file."""

    def __init__(self, file: Path, values: Mapping[str, Any]):
        super().__init__(values)
        self.file = file

    def __missing__(self, name: str) -> Any:
        raise ArtifactError(f"{self.file}: it lacks {name!r:.60}. {CHANGED}")


class LineFile:
    """A file of JSON lines, appended by one write a call, so that a kill tears at most the last line."""

    def __init__(self, path: Path):
        self.path, self.descriptor = path, open_own(path, os.O_WRONLY | os.O_APPEND)

    def append(self, records: Iterable[dict[str, Any]]) -> None:
        lines = [json.dumps(finite(r), ensure_ascii=False, allow_nan=False) for r in records]
        data = "".join(f"{line}\n" for line in lines).encode(errors="backslashreplace")
        with naming(self.path):
            while data:
                data = data[os.write(self.descriptor, data) :]

    def flush(self) -> int:
        """Bytes written so far, all of them on the disk now: a checkpoint that knows them outlives a power cut."""
        with naming(self.path):
            os.fsync(self.descriptor)
        return os.fstat(self.descriptor).st_size

    def cut(self, length: int) -> None:
        """Forget what was appended after a checkpoint.  Raises ArtifactError where even less is there."""
        if os.fstat(self.descriptor).st_size < length:
            raise ArtifactError(f"{self.path}: shorter than its checkpoint knows it. Restore the file, or train anew")
        os.ftruncate(self.descriptor, length)

    def close(self) -> None:
        os.close(self.descriptor)


def read_lines(path: Path) -> list[dict[str, Any]]:
    """All whole lines of a JSON-lines file; a torn last line is left out."""
    if not os.path.lexists(path):
        return []
    data = read_regular(path)
    whole = data[: data.rfind(b"\n") + 1]
    try:
        return json.loads(b"[" + b",".join(whole.splitlines()) + b"]")
    except (ValueError, RecursionError) as error:
        raise ArtifactError(f"{path}: not JSON lines ({error}). The file was changed after it was written") from error


KINDS: dict[str, type] = {
    **dict.fromkeys(("id", "name", "status", "command", "headline", "unit", "fingerprint", "kind", "device"), str),
    **dict.fromkeys(("config", "versions", "parameters", "units", "label_names", "layers"), dict),
    **dict.fromkeys(("feature_names", "symbols", "warnings", "attempts"), list),
    **dict.fromkeys(("seed", "threads", "best_step"), int),
    **dict.fromkeys(("higher_is_better", "twin", "leak"), bool),
}  # of what run.json holds


@dataclass(frozen=True)
class Run:
    """A run folder, read.  Raises ArtifactError where it is none, or not readable."""

    path: Path

    def __post_init__(self) -> None:
        if not (self.path / "run.json").is_file():
            raise ArtifactError(f"{self.path}: no run folder (it has no run.json). List runs with: moe ls runs")

    def _json(self, name: str) -> dict[str, Any]:
        path = self.path / name
        try:
            value = json.loads(read_regular(path, MOST_JSON), object_hook=partial(Fields, path))
        except OSError as error:
            raise ArtifactError(f"{path}: {error.strerror}. Did the run finish? See {self.path}/log.txt") from error
        except (ValueError, RecursionError) as error:
            raise ArtifactError(
                f"{path}: not valid JSON ({error}). The file was changed after it was written"
            ) from error
        if not isinstance(value, dict):
            raise ArtifactError(f"{path}: holds no JSON object. The file was changed after it was written")
        return value

    @cached_property
    def info(self) -> dict[str, Any]:
        """run.json: id, status, config (flat), seed, versions, layers, label names, ..."""
        info = self._json("run.json")
        for name, kind in KINDS.items():
            if not isinstance(info.get(name, kind()), kind):
                raise ArtifactError(f"{self.path / 'run.json'}: {name} is no {kind.__name__}. {CHANGED}")
        return info

    @cached_property
    def summary(self) -> dict[str, Any]:
        """summary.json: metrics, chance, experts."""
        return self._json("summary.json")

    @property
    def metrics(self) -> list[dict[str, Any]]:
        return read_lines(self.path / "metrics.jsonl")

    @property
    def layers(self) -> dict[str, dict[str, Any]]:
        """{layer name: {"experts": E, ...}} in forward order."""
        return self.info.get("layers", {})

    def label_name(self, label: str, value: int) -> str:
        """What a label's number means, as the task named it; else the number."""
        names = self.info.get("label_names", {}).get(label, [])
        return str(names[value]) if value < len(names) else str(value)

    @property
    def title(self) -> str:
        """Task and router, as every picture's title begins."""
        config = self.info.get("config", {})
        return f"{config.get('task', '?')} · {config.get('router', '?')}"


def find_runs(paths: Iterable[Path]) -> list[Path]:
    """Run folders at or below the paths, each once, in the order of their start; nothing within a run is looked into."""
    found: dict[str, Path] = {}
    for path in paths:
        top, real = str(path), os.path.realpath(path)
        for folder, inside, files in os.walk(top):
            if "run.json" in files or "run.json" in inside:
                found[real + folder[len(top) :]] = Path(folder)
                inside.clear()
    return sorted(found.values(), key=lambda path: path.name)
