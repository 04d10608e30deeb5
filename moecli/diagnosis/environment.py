"""Whether this machine can train: versions, cores, GPUs, extras, the disk, and a tiny mixture trained twice."""

from __future__ import annotations

import hashlib
import os
import platform
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from moecli.analysis.finding import Finding
from moecli.config import build, compose, conf_root, plugin_roots, registry
from moecli.errors import MoeError
from moecli.record.folder import runs_root
from moecli.run import Built, assemble

LITTLE = 1e9  # bytes free below which a run of checkpoints and pictures may fill the disk
FOR_CONTRIBUTORS = {"dev", "test"}  # extras that no command of moe needs
TINY = ["task=spirals", "task.rows=200", "num_experts=4", "expert.hidden=8", "threads=1"]
STEPS = 20  # that the tiny mixture trains for


def check_environment(runs: Path | None = None) -> list[Finding]:
    """One finding a line; a problem is what keeps ``moe train`` from working, a warning what may surprise."""
    checks = (_python(), _requirements(), _torch(), _cores(), _gpus(), _extras(), _disk(runs_root(runs)), _parts())
    return [*(finding for check in checks for finding in check), tiny_training()]


def _found(level: Any, what: str, why: str = "", do: str = "", **measured: Any) -> Finding:
    return Finding(level, "environment", what, why, do, measured)


def _python() -> Iterator[Finding]:
    here = platform.python_version()
    try:
        wanted = metadata.metadata("moecli")["Requires-Python"]
    except metadata.PackageNotFoundError:
        do = "Install it: python -m pip install -e ."
        yield _found("warning", f"python {here}; moecli is not installed", "its requirements are not known", do)
        return
    fits = SpecifierSet(wanted).contains(here, prereleases=True)
    yield (
        _found("ok", f"python {here}")
        if fits
        else _found("problem", f"python {here}: moecli needs {wanted}", do="Install another Python")
    )


def requirements() -> list[Requirement]:
    """What moecli's metadata asks for; nothing where it is not installed."""
    try:
        return [Requirement(text) for text in metadata.requires("moecli") or []]
    except metadata.PackageNotFoundError:
        return []


def _applies(wanted: Requirement, extra: str = "") -> bool:
    return wanted.marker is None or wanted.marker.evaluate({"extra": extra})


def fault(wanted: Requirement) -> str | None:
    """Why a requirement is not met: missing, or of another version."""
    try:
        here = metadata.version(wanted.name)
    except metadata.PackageNotFoundError:
        return "missing"
    return None if wanted.specifier.contains(here, prereleases=True) else f"is {here}"


def _requirements() -> Iterator[Finding]:
    needed = [wanted for wanted in requirements() if _applies(wanted)]
    for wanted in needed:
        if why := fault(wanted):
            do = f"python -m pip install '{wanted.name}{wanted.specifier}'"
            level = "problem" if why == "missing" else "warning"
            yield _found(level, f"{wanted.name} {why}: moecli is tested with {wanted.specifier}", do=do)
    if needed and not any(map(fault, needed)):
        yield _found("ok", f"{len(needed)} required packages in the versions moecli is tested with")


def _torch() -> Iterator[Finding]:
    kind = (
        f"CUDA {torch.version.cuda}"
        if torch.version.cuda
        else f"ROCm {torch.version.hip}"
        if torch.version.hip
        else "CPU"
    )
    yield _found("ok", f"torch {torch.__version__}, {kind} build, {torch.backends.cpu.get_cpu_capability()}")


def _cores() -> Iterator[Finding]:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    threads = torch.get_num_threads()
    what = f"{threads} thread{'s' if threads > 1 else ''} on {cores} core{'s' if cores > 1 else ''}"
    if threads > cores:
        yield _found("warning", what, "threads wait for each other", f"Set OMP_NUM_THREADS={cores}, or threads={cores}")
    else:
        yield _found("ok", what, threads=threads, cores=cores)


def _gpus() -> Iterator[Finding]:
    for index in range(torch.cuda.device_count()):
        gpu = torch.cuda.get_device_properties(index)
        yield _found("ok", f"cuda:{index} {gpu.name}, {gpu.total_memory / 1e9:.0f} GB")
    if torch.cuda.device_count():
        return
    if Path("/proc/driver/nvidia/version").exists() and not torch.version.cuda:
        do = "For the GPU install a CUDA build: https://pytorch.org/get-started"
        yield _found("warning", "a GPU's driver is here, and this torch is a CPU build", do=do)
    else:
        yield _found("skipped", "no GPU that torch can use: device=auto takes the CPU")


def _extras() -> Iterator[Finding]:
    try:
        names = metadata.metadata("moecli").get_all("Provides-Extra") or []
    except metadata.PackageNotFoundError:
        names = []
    for extra in sorted(set(names) - FOR_CONTRIBUTORS):
        wanted = [r for r in requirements() if not _applies(r) and _applies(r, extra)]
        missing = [f"{r.name} {why}" for r in wanted if (why := fault(r))]
        do = f"If you want it: python -m pip install 'moecli[{extra}]'"
        yield (
            _found("skipped", f"extra {extra}: {', '.join(missing)}", do=do)
            if missing
            else _found("ok", f"extra {extra}: there")
        )


def _disk(root: Path) -> Iterator[Finding]:
    """The root itself, or the nearest folder above it that exists; the file that is tried has no name."""
    place = root.absolute()
    while not place.exists() and place != place.parent:
        place = place.parent
    try:
        with tempfile.TemporaryFile(dir=place) as file:
            file.write(b"moe")
        free = shutil.disk_usage(place).free
    except OSError as error:
        do = "Choose another place with --runs or MOE_RUNS"
        yield _found("problem", f"runs root {root}: cannot be written", error.strerror or str(error), do)
        return
    what = f"runs root {root}: writable, {free / 1e9:.1f} GB free"
    if free < LITTLE:
        yield _found("warning", what, do="Make room, or choose another place with --runs or MOE_RUNS", free=free)
    else:
        yield _found("ok", what, free=free)


def _parts() -> Iterator[Finding]:
    count = sum(len(options) for options in registry().values())
    if not count:
        yield _found("problem", f"conf root {conf_root()}: it has no parts", do="Install moecli anew")
        return
    plugins = "".join(f", {folder}" for folder in plugin_roots())
    yield _found("ok", f"conf root {conf_root()}{plugins}: {count} parts")


def tiny_training() -> Finding:
    """A tiny mixture, trained twice from one seed: its loss must fall, and to the same bits."""
    try:
        first, again = _train_tiny(), _train_tiny()
    except (MoeError, RuntimeError, OSError) as error:
        return _found("problem", "a tiny mixture does not train", " ".join(str(error).split()), "Install torch anew")
    if not first.losses[-1] < first.losses[0]:
        why = f"{first.losses[0]:.3f} to {first.losses[-1]:.3f} in {STEPS} steps"
        return _found("problem", "a tiny mixture trains, but its loss does not fall", why, "Install torch anew")
    if first.digest != again.digest:
        do = "Runs repeat only roughly here; set device=cpu threads=1 where bits matter"
        return _found("warning", "a tiny mixture trains, and not to the same bits twice", do=do)
    what = f"a tiny mixture trains (loss {first.losses[0]:.3f} to {first.losses[-1]:.3f}), twice to the same bits"
    return _found("ok", what, losses=[first.losses[0], first.losses[-1]])


@dataclass(frozen=True)
class _Tiny:
    """What a tiny training came to."""

    losses: list[float]  # of each step
    digest: str  # of the weights


def _train_tiny() -> _Tiny:
    threads, random = torch.get_num_threads(), torch.get_rng_state()
    try:
        built = assemble(compose(TINY))
        optimizer = build(built.config["optimizer"], params=built.model.parameters())
        losses = [_step(built, optimizer, step) for step in range(STEPS)]
    finally:
        torch.set_num_threads(threads)
        torch.set_rng_state(random)
    weights = b"".join(p.detach().cpu().numpy().tobytes() for p in built.model.parameters())
    return _Tiny(losses, hashlib.sha256(weights).hexdigest())


def _step(built: Built, optimizer: torch.optim.Optimizer, step: int) -> float:
    batch = built.task.train_batch(step, built.task.sizes["train"], seed=0).to(built.device)
    losses = built.objective(built.model(batch.x, batch.known), batch.target)
    optimizer.zero_grad()
    losses["total"].backward()
    optimizer.step()
    return losses["loss"].item()
