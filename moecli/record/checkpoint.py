"""Checkpoints that are intact or refused: written beside, flushed, renamed last, read back, then pruned.

``step-NNNNNNNN/`` holds ``model.safetensors``, ``optimizer.safetensors``, ``state.json`` and
``MANIFEST.json`` with the size and SHA-256 of each.  ``state.json`` says of which version, run and step
it is, so that a whole checkpoint in a wrong place is refused too.  No pickle is ever written or read.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import secrets
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor, nn

from moecli.errors import ArtifactError, EnvironmentFailure
from moecli.record.folder import MOST_JSON, Run, naming, read_regular, to_json, write_whole

KEEP = 2  # of the latest; the best stays beside them
VERSION = 1  # of what a checkpoint holds; whoever raises it still reads tests/faults/golden
FILE = re.compile(r"\w{1,100}\.(safetensors|json)", re.ASCII)
MOST_HEADER = 10_000_000  # bytes of a safetensors header, a hundred for each of a hundred thousand tensors
ANOTHER = "Use another checkpoint of the run"


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
        contents["state.json"] = to_json({"version": VERSION, "run": _run(folder), "step": step, **state})
        contents["MANIFEST.json"] = to_json({name: _entry(data) for name, data in contents.items()})
        for name, data in contents.items():
            write_whole(beside / name, data)
        _flush(beside)
        os.rename(beside, target)
        _flush(root)
    except BaseException:
        shutil.rmtree(beside, ignore_errors=True)
        raise
    try:
        verify(target)
    except ArtifactError as error:
        raise EnvironmentFailure(f"{target}: what was written does not read back ({error}). Check the disk") from error
    return target


def _run(folder: Path) -> str | None:
    """The id of the run in a folder, which stays when the folder is renamed; None where there is no run."""
    return Run(folder).info["id"] if (folder / "run.json").exists() else None


def _contiguous(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}


def _entry(data: bytes) -> dict[str, Any]:
    return {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}


def _flush(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with naming(folder):
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
    return sorted(int(name) for name in names if re.fullmatch(r"[0-9]{8}|[1-9][0-9]{8,17}", name))


def verify(checkpoint: Path) -> dict[str, bytes]:
    """Every file's bytes, equal to the manifest.  Raises ArtifactError naming the file that is not."""
    try:
        manifest = _manifest(json.loads(read_regular(checkpoint / "MANIFEST.json", MOST_JSON)))
        return {name: _intact(checkpoint / name, entry) for name, entry in manifest.items()}
    except (FileNotFoundError, NotADirectoryError, ValueError, RecursionError) as error:
        raise ArtifactError(f"{checkpoint}: not a whole checkpoint ({error}). {ANOTHER}") from error


def _manifest(found: Any) -> dict[str, dict[str, Any]]:
    """{file name: its size and SHA-256}.  Raises ValueError for what ``save`` never writes."""
    if not isinstance(found, dict) or not {"state.json", "model.safetensors"} <= found.keys():
        raise ValueError("its MANIFEST.json is none of ours")
    for name, entry in found.items():
        if not FILE.fullmatch(name) or not isinstance(entry, dict) or entry.keys() != {"size", "sha256"}:
            raise ValueError(f"its MANIFEST.json has an entry {name!r:.60} that moe never writes")
    return found


def _intact(file: Path, entry: Mapping[str, Any]) -> bytes:
    """The size is compared first, so that nothing larger than the manifest says is read."""
    if file.is_file() and file.stat().st_size != entry["size"]:
        raise ArtifactError(f"{file}: damaged (its size differs). {ANOTHER}")
    data = read_regular(file)
    if _entry(data) != entry:
        raise ArtifactError(f"{file}: damaged (its SHA-256 differs). {ANOTHER}")
    return data


def load(checkpoint: Path) -> tuple[dict[str, dict[str, Tensor]], dict[str, Any]]:
    """(tensors by file stem, state) of a verified checkpoint, all of its numbers finite.

    Raises ArtifactError where it is damaged, of another run or step, or of a newer moe.
    """
    return _load(checkpoint, _run(checkpoint.parents[1]))


def _load(checkpoint: Path, run: str | None) -> tuple[dict[str, dict[str, Tensor]], dict[str, Any]]:
    contents = verify(checkpoint)
    state = _state(checkpoint, contents["state.json"], run)
    files = [name for name in contents if name.endswith(".safetensors")]
    return {name.removesuffix(".safetensors"): _tensors(checkpoint / name, contents[name]) for name in files}, state


def _state(checkpoint: Path, data: bytes, run: str | None) -> dict[str, Any]:
    """The state, of this place and of a version that can be read; the very first named no version and no run."""
    try:
        state = json.loads(data)
        version, of, step = state.get("version", VERSION), state.get("run"), state["step"]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ArtifactError(f"{checkpoint / 'state.json'}: no state of a training ({error}). {ANOTHER}") from error
    if version != VERSION:
        raise OtherVersion(
            f"{checkpoint}: of checkpoint version {version!r:.60}, and this moe reads version {VERSION}. "
            "Use the moe that wrote it, or a newer one"
        )
    if type(step) is not int or checkpoint.name != f"step-{step:08d}":
        raise ArtifactError(f"{checkpoint}: a checkpoint of step {step!r:.60} under another name. {ANOTHER}")
    if None not in (of, run) and of != run:
        raise ArtifactError(f"{checkpoint}: a checkpoint of run {of!r:.60}, and this is {run}. {ANOTHER}")
    return state


class OtherVersion(ArtifactError):
    """A checkpoint that is intact, for another moe."""


def _tensors(file: Path, data: bytes) -> dict[str, Tensor]:
    try:
        if int.from_bytes(data[:8], "little") > MOST_HEADER:  # a million empty tensors take a gigabyte
            raise ValueError(f"its header has more than {MOST_HEADER:,} bytes")
        tensors = load_tensors(data)
    except (SafetensorError, ValueError, KeyError, TypeError, AssertionError, OverflowError) as error:
        raise ArtifactError(f"{file}: no safetensors that torch can read ({error}). {ANOTHER}") from error
    wild = [name for name, tensor in tensors.items() if not _is_finite(tensor)]
    if wild:
        raise ArtifactError(f"{file}: NaN or infinity in {', '.join(wild[:3])}. {ANOTHER}")
    return tensors


def _is_finite(tensor: Tensor) -> bool:
    """One pass and no copy: NaN is both least and greatest."""
    if not tensor.numel() or not tensor.is_floating_point():
        return True
    return all(math.isfinite(value.item()) for value in tensor.aminmax())


@dataclass(frozen=True)
class Saved:
    """An intact checkpoint, read."""

    step: int
    tensors: dict[str, dict[str, Tensor]]
    state: dict[str, Any]


def latest(folder: Path) -> tuple[Saved | None, list[str]]:
    """The newest intact checkpoint of a run, and why each newer one was passed over; None where there is none.

    Damaged ones are moved aside, so that the same step can be saved again.
    Raises ArtifactError where there are checkpoints but none is intact, and where one is of a newer moe.
    """
    run = _run(folder)  # refused here where run.json is damaged: no checkpoint is to blame for that
    passed: list[str] = []
    for step in reversed(steps(folder)):
        path = folder / "checkpoints" / f"step-{step:08d}"
        try:
            return Saved(step, *_load(path, run)), passed
        except OtherVersion:
            raise
        except ArtifactError as error:
            passed.append(str(error))
            path.rename(path.with_name(f"damaged-{path.name}-{secrets.token_hex(4)}"))
    if passed:
        raise ArtifactError(f"{folder}: none of its {len(passed)} checkpoints is intact ({passed[0]}). Train it anew")
    return None, passed


def restore(model: nn.Module, tensors: Mapping[str, Tensor], source: str) -> None:
    """Copy weights into the model's own memory; a part that is more than its tensors then rebuilds the rest.

    Raises ArtifactError where names, shapes or types differ, or the rest comes out otherwise.
    """
    own = model.state_dict()
    missing, extra = sorted(own.keys() - tensors.keys()), sorted(tensors.keys() - own.keys())
    common = sorted(own.keys() & tensors.keys())
    shapes = [n for n in common if own[n].shape != tensors[n].shape]
    types = [n for n in common if own[n].dtype != tensors[n].dtype]
    found = {"missing": missing, "unknown": extra, "other shape": shapes, "other type": types}
    if any(found.values()):
        said = ", ".join(f"{what} {names[:3]}" for what, names in found.items() if names)
        raise ArtifactError(
            f"{source}: weights of another model ({said}). Use the configuration they were trained with"
        )
    with torch.no_grad():
        for name, tensor in own.items():
            tensor.copy_(tensors[name])
    for module in model.modules():
        rebuild = getattr(module, "restored", None)
        if callable(rebuild):
            rebuild(source)


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The optimizer's state as named tensors: ``<parameter index>.<key>``."""
    state = optimizer.state_dict()["state"]
    return {f"{i}.{k}": torch.as_tensor(v) for i, entry in state.items() for k, v in entry.items() if v is not None}


def restore_optimizer(optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor], source: str) -> None:
    """Put named tensors back; each is copied, because arithmetic depends on where memory is aligned.

    Raises ArtifactError for a state of other parameters.
    """
    params = [param for group in optimizer.param_groups for param in group["params"]]
    state: dict[int, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        index, _, key = name.partition(".")
        if not (index.isdecimal() and int(index) < len(params) and _belongs(tensor, params[int(index)])):
            raise ArtifactError(f"{source}: {name!r:.60} is the optimizer's state of another model. {ANOTHER}")
        state.setdefault(int(index), {})[key] = tensor.clone()
    if len({frozenset(entry) for entry in state.values()}) > 1:
        raise ArtifactError(f"{source}: the optimizer's state lacks or adds tensors of some parameters. {ANOTHER}")
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def _belongs(tensor: Tensor, param: Tensor) -> bool:
    """Moments are as the parameter is; a counter is one number."""
    return tensor.ndim == 0 or (tensor.shape == param.shape and tensor.dtype == param.dtype)


@contextmanager
def complete(source: str) -> Iterator[None]:
    """What a training reads of a checkpoint and does not find there, or finds in another form, as one line."""
    try:
        yield
    except (KeyError, IndexError, TypeError, ValueError, OverflowError, RuntimeError) as error:
        said = f"it lacks {error}" if isinstance(error, KeyError) else str(error)
        raise ArtifactError(f"{source}: its checkpoint is none to go on from ({said}). {ANOTHER}") from error
