"""Whether a run folder is whole: each file readable, each checkpoint equal to its manifest, and its status true."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from moecli import config
from moecli.analysis.finding import Finding, from_error
from moecli.errors import ArtifactError, MoeError
from moecli.record import checkpoint
from moecli.record.folder import Run, read_lines
from moecli.record.lock import holder
from moecli.record.trace import read_arrays

STATUSES = ("running", "finished", "failed", "interrupted")
LINES = {"metrics.jsonl": {"step", "split", "name", "value"}, "timing.jsonl": {"step", "name", "value"}}


def check_intact(run: Run) -> list[Finding]:
    """In this order: run.json and its status, configuration, metrics, summary, routing trace, checkpoints, leftovers."""
    folder = _Folder(run, holder(run.path))  # before run.json is read: a training may end meanwhile
    return [finding for check in CHECKS for finding in check(folder)]


@dataclass(frozen=True)
class _Folder:
    """A run folder, who works on it, and what its run.json says (nothing, where that is damaged)."""

    run: Run
    holder: str | None

    @property
    def path(self) -> Path:
        return self.run.path

    @cached_property
    def info(self) -> dict[str, Any]:
        try:
            return self.run.info
        except ArtifactError:
            return {}

    @property
    def layers(self) -> dict[str, Any]:
        layers = self.info.get("layers")
        return layers if isinstance(layers, dict) else {}

    @property
    def finished(self) -> bool:
        return self.info.get("status") == "finished"

    @property
    def again(self) -> str:
        return f"Train it anew: moe train --config {shlex.quote(str(self.path / 'config.yaml'))}"

    @property
    def resume(self) -> str:
        return f"Go on with: moe train --resume {shlex.quote(str(self.path))}"


def _ok(what: str, **measured: Any) -> Finding:
    return Finding("ok", "intact", what, measured=measured)


def _status(folder: _Folder) -> Iterator[Finding]:
    try:
        info = folder.run.info
    except ArtifactError as error:
        yield from_error("problem", "intact", error)
        return
    status = info.get("status")
    if status not in STATUSES or not folder.layers:
        why = "the file was changed after it was written"
        yield Finding(
            "problem", "intact", "run.json: its status or its layers are none that moe writes", why, folder.again
        )
    elif status == "finished":
        yield _ok("run.json: finished", seconds=info.get("seconds"))
    elif folder.holder:
        yield _ok(f"run.json: {folder.holder} is training it")
    else:
        yield _stopped(folder, status, info.get("error"))


def _stopped(folder: _Folder, status: str, error: str | None) -> Finding:
    why = {"running": "it says running, but its process is gone", "failed": error or ""}.get(status, "")
    crash = sorted(folder.path.glob("crash-*.log"))
    see = f"See {crash[-1]}, mend the cause. " if status == "failed" and crash else ""
    what = "failed" if status == "failed" else "interrupted"
    return Finding("warning", "intact", f"run.json: {what}", why, see + folder.resume)


def _config(folder: _Folder) -> Iterator[Finding]:
    try:
        config.read(folder.path / "config.yaml")
    except MoeError as error:
        said = from_error("problem", "intact", error)
        yield replace(said, what=f"config.yaml: {said.what}")
    else:
        yield _ok("config.yaml: complete, every key and part known")


def _lines(folder: _Folder) -> Iterator[Finding]:
    for name, keys in LINES.items():
        path = folder.path / name
        try:
            records = read_lines(path)
        except ArtifactError as error:
            yield from_error("problem", "intact", error)
            continue
        wrong = next((i for i, line in enumerate(records, 1) if not isinstance(line, dict) or set(line) != keys), None)
        if wrong:
            what = f"{name}: line {wrong} is none that moe writes"
            yield Finding("problem", "intact", what, "the file was changed after it was written", folder.again)
        elif not folder.holder and _torn(path):
            yield _torn_line(folder, name)
        elif folder.finished and not records:
            yield Finding("problem", "intact", f"{name}: empty, and the run has finished", do=folder.again)
        else:
            yield _ok(f"{name}: {len(records)} lines", lines=len(records))


def _torn(path: Path) -> bool:
    return path.exists() and path.read_bytes()[-1:] not in (b"", b"\n")


def _torn_line(folder: _Folder, name: str) -> Finding:
    what = f"{name}: its last line is torn"
    if folder.finished:
        return Finding("problem", "intact", what, "the file was cut after it was written", folder.again)
    return Finding("warning", "intact", what, "the run was killed as it wrote", f"Nothing is lost. {folder.resume}")


def _summary(folder: _Folder) -> Iterator[Finding]:
    if not folder.finished:
        return
    try:
        whole = isinstance(folder.run.summary.get("metrics"), dict)
    except ArtifactError as error:
        yield from_error("problem", "intact", error)
        return
    what = "summary.json: whole" if whole else "summary.json: it has no metrics"
    yield _ok(what) if whole else Finding("problem", "intact", what, do=folder.again)


def _trace(folder: _Folder) -> Iterator[Finding]:
    files = sorted((folder.path / "routing").rglob("*.npz"))
    bad = [finding for file in files if (finding := _unreadable(file))]
    yield from bad
    missing = [name for name in folder.layers if not _recorded(folder.path, name)]
    if folder.finished and missing:
        yield Finding("problem", "intact", f"routing/: no usage of {', '.join(missing)}", do=folder.again)
    elif not bad:
        yield _ok(f"routing/: {len(files)} files", files=len(files))


def _recorded(path: Path, layer: str) -> bool:
    return any((path / "routing" / layer).glob("usage-*.npz"))


def _unreadable(file: Path) -> Finding | None:
    try:
        read_arrays(file)
    except ArtifactError as error:
        return from_error("problem", "intact", error)
    except FileNotFoundError:  # rewound while we looked
        return None
    return None


def _checkpoints(folder: _Folder) -> Iterator[Finding]:
    steps = checkpoint.steps(folder.path)
    found = {step: _checkpoint(folder, step) for step in steps}
    intact = [step for step, finding in found.items() if finding is None]
    yield from (finding for finding in found.values() if finding)
    best = folder.info.get("best_step")
    if folder.finished and best not in steps:
        yield Finding("problem", "intact", f"checkpoints/: that of the best step {best} is missing", do=folder.again)
    elif not steps and not folder.holder:
        yield Finding(
            "warning", "intact", "checkpoints/: none yet", do=f"{folder.resume}, which begins at the beginning"
        )
    elif intact:
        yield _ok(f"checkpoints/: {len(intact)} of {len(steps)} equal to their manifest", intact=intact)


def _checkpoint(folder: _Folder, step: int) -> Finding | None:
    path = folder.path / "checkpoints" / f"step-{step:08d}"
    try:
        if not folder.info:  # whose checkpoint it is, a damaged run.json cannot say
            checkpoint.verify(path)
            return None
        _, state = checkpoint.load(path)
        short = [name for name in LINES if _length(folder, name) < state["position"][name.removesuffix(".jsonl")]]
    except ArtifactError as error:
        gone = folder.holder and not path.exists()  # pruned while we looked
        return None if gone else _broken(folder, step, error)
    except (KeyError, TypeError):
        return Finding("problem", "intact", f"{path / 'state.json'}: it lacks what going on needs", do=folder.again)
    if short:
        why = f"the checkpoint of step {step} saw more of it"
        return Finding("problem", "intact", f"{short[0]}: it was cut after it was written", why, folder.again)
    return None


def _length(folder: _Folder, name: str) -> int:
    path = folder.path / name
    return path.stat().st_size if path.exists() else 0


def _broken(folder: _Folder, step: int, error: ArtifactError) -> Finding:
    """What is left to do depends on whether anybody still needs that checkpoint."""
    said = from_error("problem", "intact", error)
    needed = folder.finished and step == folder.info.get("best_step")
    do = folder.again if needed else "Remove it: the best one is another" if folder.finished else folder.resume
    return Finding("problem", "intact", said.what, said.why, do, {"step": step})


def _leftovers(folder: _Folder) -> Iterator[Finding]:
    if folder.holder:
        return  # what is being written is no leftover
    left = sorted(folder.path.rglob(".tmp-*"))
    aside = sorted((folder.path / "checkpoints").glob("damaged-*"))
    if left:
        names = " ".join(shlex.quote(str(path)) for path in left[:8])
        why = "a process was killed as it wrote"
        yield Finding("warning", "intact", f"{len(left)} leftovers", why, f"Remove them: rm -r {names}")
    if aside:
        why = f"found damaged and moved aside: {', '.join(path.name for path in aside[:3])}"
        yield Finding("warning", "intact", f"checkpoints/: {len(aside)} set aside", why, "Remove what you do not need")


CHECKS: tuple[Callable[[_Folder], Iterator[Finding]], ...] = (
    _status,
    _config,
    _lines,
    _summary,
    _trace,
    _checkpoints,
    _leftovers,
)
