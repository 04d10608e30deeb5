"""Checkpoints that are intact or refused: written beside, flushed, renamed last, read back, then pruned.

``step-NNNNNNNN/`` holds ``model.safetensors``, ``optimizer.safetensors``, ``state.json`` and
``MANIFEST.json`` with the size and SHA-256 of each.  No pickle is ever written or read.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor, nn

from moecli.errors import ArtifactError
from moecli.record.folder import to_json, write_whole

KEEP = 2  # of the latest; the best stays beside them


def save(folder: Path, step: int, tensors: Mapping[str, Mapping[str, Tensor]], state: Mapping[str, Any]) -> Path:
    """Write ``checkpoints/step-NNNNNNNN`` of a run folder; ``tensors`` maps a file's stem to its tensors."""
    root = folder / "checkpoints"
    root.mkdir(exist_ok=True)
    target, beside = root / f"step-{step:08d}", root / f".tmp-{step:08d}-{secrets.token_hex(4)}"
    if target.exists():  # the same step of the same run: what is there was verified when it was written
        return target
    beside.mkdir()
    try:
        contents = {f"{stem}.safetensors": save_tensors(_contiguous(part)) for stem, part in tensors.items()}
        contents["state.json"] = to_json({"step": step, **state})
        contents["MANIFEST.json"] = to_json({name: _entry(data) for name, data in contents.items()})
        for name, data in contents.items():
            write_whole(beside / name, data)
        _flush(beside)
        os.rename(beside, target)
        _flush(root)
    except BaseException:
        shutil.rmtree(beside, ignore_errors=True)
        raise
    verify(target)
    return target


def _contiguous(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}


def _entry(data: bytes) -> dict[str, Any]:
    return {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}


def _flush(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def prune(folder: Path, best: int | None) -> None:
    """Keep the latest two and the best."""
    *old, _, _ = [None, None, *steps(folder)]
    for step in old:
        if step is not None and step != best:
            shutil.rmtree(folder / "checkpoints" / f"step-{step:08d}")


def steps(folder: Path) -> list[int]:
    """The steps at which a checkpoint was completed, ascending."""
    names = [path.name.removeprefix("step-") for path in (folder / "checkpoints").glob("step-*")]
    return sorted(int(name) for name in names if name.isdecimal())


def verify(checkpoint: Path) -> dict[str, bytes]:
    """Every file's bytes, equal to the manifest.  Raises ArtifactError naming the file that is not."""
    try:
        manifest = json.loads((checkpoint / "MANIFEST.json").read_bytes())
        if not isinstance(manifest, dict) or "state.json" not in manifest or any("/" in name for name in manifest):
            raise ValueError("its MANIFEST.json is none of ours")
        contents = {name: (checkpoint / name).read_bytes() for name in manifest}
    except (OSError, ValueError, RecursionError) as error:
        raise ArtifactError(f"{checkpoint}: not a whole checkpoint ({error}). Use another one of the run") from error
    for name, data in contents.items():
        if _entry(data) != manifest[name]:
            raise ArtifactError(
                f"{checkpoint / name}: damaged (its SHA-256 differs). Use another checkpoint of the run"
            )
    return contents


def load(checkpoint: Path) -> tuple[dict[str, dict[str, Tensor]], dict[str, Any]]:
    """(tensors by file stem, state) of a verified checkpoint."""
    contents = verify(checkpoint)
    tensors = {
        n.removesuffix(".safetensors"): load_tensors(d) for n, d in contents.items() if n.endswith(".safetensors")
    }
    return tensors, json.loads(contents["state.json"])


@dataclass(frozen=True)
class Saved:
    """An intact checkpoint, read."""

    step: int
    tensors: dict[str, dict[str, Tensor]]
    state: dict[str, Any]


def latest(folder: Path) -> tuple[Saved | None, list[str]]:
    """The newest intact checkpoint of a run, and why each newer one was passed over; None where there is none.

    Damaged ones are moved aside, so that the same step can be saved again.
    Raises ArtifactError where there are checkpoints but none is intact.
    """
    passed: list[str] = []
    for step in reversed(steps(folder)):
        path = folder / "checkpoints" / f"step-{step:08d}"
        try:
            return Saved(step, *load(path)), passed
        except ArtifactError as error:
            passed.append(str(error))
            path.rename(path.with_name(f"damaged-{path.name}-{secrets.token_hex(4)}"))
    if passed:
        raise ArtifactError(f"{folder}: none of its {len(passed)} checkpoints is intact ({passed[0]}). Train it anew")
    return None, passed


def restore(model: nn.Module, tensors: Mapping[str, Tensor], source: str) -> None:
    """Copy weights into the model's own memory.  Raises ArtifactError where names or shapes differ."""
    own = model.state_dict()
    missing, extra = sorted(own.keys() - tensors.keys()), sorted(tensors.keys() - own.keys())
    shapes = [n for n in own.keys() & tensors.keys() if own[n].shape != tensors[n].shape]
    if missing or extra or shapes:
        raise ArtifactError(
            f"{source}: weights of another model (missing {missing[:3]}, unknown {extra[:3]}, other shape {shapes[:3]}). "
            "Use the configuration they were trained with"
        )
    with torch.no_grad():
        for name, tensor in own.items():
            tensor.copy_(tensors[name])


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The optimizer's state as named tensors: ``<parameter index>.<key>``."""
    state = optimizer.state_dict()["state"]
    return {f"{i}.{k}": torch.as_tensor(v) for i, entry in state.items() for k, v in entry.items() if v is not None}


def restore_optimizer(optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """Put named tensors back; each is copied, because arithmetic depends on where memory is aligned."""
    state: dict[int, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        index, _, key = name.partition(".")
        state.setdefault(int(index), {})[key] = tensor.clone()
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
