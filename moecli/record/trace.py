"""The routing trace: what every plot and analysis reads, so that nothing needs the live model.

``routing/<layer>/usage-NNNNNNNN.npz``   per recorded step: who was asked, who served, the gate's entropy
``routing/frame-NNNNNNNN.npz``            over a plane: the gate's favourite and its probability, ever more rarely
``routing/samples.npz``                    what a model of noisy images makes of nothing but noise
``routing/<layer>/tokens-<split>-NNNNNNNN.npz``   the same tokens at each evaluation: who served them
``routing/<layer>/slots.npz``             of soft slots: the averages of test rows that each slot read at the end
"""

from __future__ import annotations

import io
import math
import os
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from moecli.errors import ArtifactError
from moecli.plan import Slots
from moecli.record.folder import CHANGED, Fields, read_regular, write_whole
from moecli.routing import Routing, Usage
from moecli.tasks.task import Batch

CHUNK = 100  # recorded steps a file
GROWTH = 1.35  # of the steps from one frame to the next: most happens in the first ones
MOST_EXPERTS = 64  # of a token, heaviest first
ENTRIES = slice(-12, -10)  # of a zip without a comment: the number of its members
MOST_BYTES = 2**30  # of a file's arrays once inflated, where the largest of ours have some 10 MB


class Trace:
    """Collects usage in memory and writes a chunk whole when it is full; ``flush`` writes the rest."""

    def __init__(self, folder: Path):
        self.folder = folder / "routing"
        self.pending: dict[str, list[tuple[int, Usage]]] = {}

    def usage(self, step: int, usages: Mapping[str, Usage]) -> None:
        for layer, usage in usages.items():
            self.pending.setdefault(layer, []).append((step, usage))
        if max(map(len, self.pending.values()), default=0) >= CHUNK:
            self.flush()

    def flush(self) -> None:
        for layer, records in self.pending.items():
            if records:
                steps, usages = zip(*records, strict=True)
                fields = {f: np.stack([_array(getattr(u, f)) for u in usages]) for f in Usage.__dataclass_fields__}
                self._write(layer, f"usage-{steps[0]:08d}", {"step": np.array(steps), **fields})
        self.pending = {layer: [] for layer in self.pending}

    def rewind(self, step: int) -> None:
        """Remove what was recorded from ``step`` on."""
        for file in [*self.folder.glob("*/usage-*.npz"), *self.folder.glob("frame-*.npz")]:
            if _step(file) >= step:
                file.unlink()

    def frame_is_due(self, step: int) -> bool:
        return step >= math.ceil(GROWTH * max(map(_step, self.folder.glob("frame-*.npz")), default=-1) + 0.01)

    def frame(self, step: int, gate: Tensor) -> None:
        """What the gate believes over a plane: (M, E)."""
        prob, expert = gate.max(-1)
        self.folder.mkdir(exist_ok=True)
        write_arrays(
            self.folder / f"frame-{step:08d}.npz", {"expert": _array(expert.short()), "prob": _array(prob.half())}
        )

    def relabel(self, layer: str, order: Tensor) -> None:
        """Let expert ``order[e]`` (E,) of the usage and frames so far be expert e."""
        self.flush()
        for file in (self.folder / layer).glob("usage-*.npz"):
            arrays = read_arrays(file)
            write_arrays(file, {n: a[:, order.numpy()] if a.ndim == 2 else a for n, a in arrays.items()})
        for file in self.folder.glob("frame-*.npz"):
            arrays = read_arrays(file)
            write_arrays(file, {**arrays, "expert": order.argsort().short().numpy()[arrays["expert"]]})

    def tokens(self, step: int, split: str, layer: str, seen: list[dict[str, np.ndarray]]) -> None:
        """``seen`` are the parts that ``assignments`` made of each batch."""
        joined = {name: np.concatenate([part[name] for part in seen]) for name in seen[0]}
        self._write(layer, f"tokens-{split}-{step:08d}", joined)

    def _write(self, layer: str, name: str, arrays: Mapping[str, np.ndarray]) -> None:
        folder = self.folder / layer
        self.folder.mkdir(exist_ok=True)  # not its parents: a run folder that was deleted does not come back
        folder.mkdir(exist_ok=True)
        write_arrays(folder / f"{name}.npz", arrays)


def write_arrays(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)  # type: ignore[arg-type]
    write_whole(path, buffer.getvalue())


def assignments(
    routing: Routing, batch: Batch, first_sequence: int, every: int = 1, predicted: Tensor | None = None
) -> dict[str, np.ndarray]:
    """Who serves each token of a batch, heaviest expert first, with all that it may be held against.

    ``sequence`` counts on from ``first_sequence``, and every so many are noted; labels are of the token,
    or of its example.  Where tokens are symbols their ``id`` and the ``target`` after them are noted too, and the
    ``predicted`` (B, T) one; of a source, which nothing is predicted in, these two are -1.
    """
    weights = routing.plan.weights.detach()  # (N, E)
    weight, expert = weights.topk(min(MOST_EXPERTS, weights.shape[1]), dim=-1)
    probs = routing.probs.detach()
    top = probs.topk(min(2, probs.shape[1]), dim=-1).values
    arrays = {
        "expert": expert.masked_fill(weight <= 0, -1).short(),
        "weight": weight.float(),
        "entropy": torch.special.entr(probs).sum(-1).float(),
        "margin": (top[:, 0] - top[:, 1:].sum(-1)).float(),  # of the gate's first over its second
        "position": routing.position.int(),
        "sequence": (routing.example + first_sequence).int(),
        "document": batch.document[routing.example].int(),
    }
    if probs.shape[1] == 3:
        arrays["probs"] = probs.float()  # (N, 3) a point of a triangle
    if routing.logits is not None:
        arrays["logsumexp"] = routing.logits.detach().logsumexp(-1).float()
    if not batch.x.is_floating_point():
        symbols = {"id": batch.x, "target": batch.target, "predicted": predicted}
        arrays |= {
            n: _of_places(value, batch.x)[routing.example, routing.position].int()
            for n, value in symbols.items()
            if value is not None
        }
    for name, label in batch.labels.items():
        of_token = label[routing.example] if label.ndim == 1 else label[routing.example, routing.position]
        arrays[f"label_{name}"] = of_token.int()
    kept = arrays["sequence"] % every == 0
    return {name: _array(value[kept]) for name, value in arrays.items()}


def _of_places(values: Tensor, x: Tensor) -> Tensor:
    """Values (B, T) of the last places of x (B, source + T), -1 in the source: (B, source + T)."""
    return torch.nn.functional.pad(values, (x.shape[1] - values.shape[1], 0), value=-1)


def slot_averages(plan: Slots, x: Tensor) -> dict[str, np.ndarray]:
    """What each slot reads of rows x (N, D), all of one group: their ``mean`` by its weights (E, P, D), its largest
    ``weight`` (E, P), the ``effective`` number of rows 1 / sum of squared weights (E, P), and beside them what uniform
    weights would read, ``uniform`` (D,), of so many ``rows`` ().
    """
    into = plan.into.detach()  # (N, E, P)
    mean = torch.einsum("nep,nd->epd", into, x.to(into))
    effective = 1 / into.square().sum(0)
    found = {"mean": mean, "weight": into.amax(0), "effective": effective, "uniform": x.mean(0)}
    return {**{name: _array(value) for name, value in found.items()}, "rows": np.array(len(x))}


def _step(file: Path) -> int:
    return int(file.stem.rsplit("-", 1)[1])


def _array(value: Tensor | int) -> np.ndarray:
    return np.asarray(value.detach().cpu() if isinstance(value, Tensor) else value)


@dataclass(frozen=True)
class TraceReader:
    """Reads ``routing/`` of a run folder as arrays.  Raises ArtifactError for a file that is not as it was written."""

    folder: Path

    def usage(self, layer: str) -> dict[str, np.ndarray]:
        """step (S,), asked, served, first, mass (S, E), entropy (S,) summed over tokens, tokens (S,)."""
        return _joined(sorted((self.folder / "routing" / layer).glob("usage-*.npz")))

    def steps(self, layer: str, split: str) -> list[int]:
        """The steps at which ``split``'s tokens were recorded."""
        files = sorted((self.folder / "routing" / layer).glob(f"tokens-{split}-*.npz"))
        return [_step(file) for file in files if file.stem.rsplit("-", 1)[1].isdecimal()]

    def tokens(self, layer: str, split: str, step: int | None = None) -> dict[str, np.ndarray]:
        """expert, weight (n, K), entropy, margin, position, sequence, document, label_* (n,); the last step by default.

        Beside them logsumexp (n,) of a gate's logits, probs (n, 3) of a gate over three experts, and id, target,
        predicted (n,) where tokens are symbols; runs made before these were recorded lack them.
        """
        steps = self.steps(layer, split)
        if not steps:
            return {}
        step = steps[-1] if step is None else step
        return _joined([self.folder / "routing" / layer / f"tokens-{split}-{step:08d}.npz"])

    def surface(self) -> dict[str, np.ndarray]:
        """x (M, D) of the task's grid with prediction and deviation (M, Y), gate (M, E), experts (M, E, Y); data_x, data_y."""
        return self._single("surface")

    def responsibilities(self) -> dict[str, np.ndarray]:
        """resp (n, E) of test rows, and where they can be drawn x (n, 1 or 2) and target."""
        return self._single("responsibilities")

    def slots(self, layer: str) -> dict[str, np.ndarray]:
        """What ``slot_averages`` made of a layer of soft slots over whole examples."""
        return self._single(f"{layer}/slots")

    def samples(self) -> dict[str, np.ndarray]:
        """image (M, C, H, W) in 0..1 that the model made of noise, and class (M,)."""
        return self._single("samples")

    def frames(self) -> list[tuple[int, dict[str, np.ndarray]]]:
        """(step, expert and prob (M,) over the plane's rows), in order."""
        return [(_step(file), _joined([file])) for file in sorted((self.folder / "routing").glob("frame-*.npz"))]

    def _single(self, name: str) -> dict[str, np.ndarray]:
        path = self.folder / "routing" / f"{name}.npz"
        return read_arrays(path) if os.path.lexists(path) else {}


def _joined(files: list[Path]) -> dict[str, np.ndarray]:
    """The arrays of several files end to end; in each file all are equally long."""
    parts = [read_arrays(file) for file in files]
    for file, part in zip(files, parts, strict=True):
        if len({array.shape[:1] for array in part.values()}) > 1:
            raise ArtifactError(f"{file}: its arrays are not equally long. {CHANGED}")
    if len(parts) < 2:
        return parts[0] if parts else {}
    try:
        return Fields(files[0].parent, {n: np.concatenate([part[n] for part in parts]) for n in parts[0]})
    except ValueError as error:
        raise ArtifactError(f"{files[0].parent}: its files do not fit each other ({error}). {CHANGED}") from error


def read_arrays(file: Path) -> dict[str, np.ndarray]:
    """Every array of an ``.npz``.  Raises ArtifactError where it is damaged, would run code, or grows beyond
    ``MOST_BYTES`` when inflated, and for a name that it lacks when that is asked for.
    """
    data = io.BytesIO(read_regular(file))
    try:
        with zipfile.ZipFile(data) as archive:
            members = archive.infolist()
        if len(members) != (said := int.from_bytes(data.getvalue()[ENTRIES], "little")):
            raise ValueError(f"its list of contents has {len(members)} names of {said}")
        if (size := sum(member.file_size for member in members)) > MOST_BYTES:
            raise ValueError(f"its arrays have {size:,} bytes, of which moe reads {MOST_BYTES:,}")
        with np.load(data, allow_pickle=False) as arrays:
            found = {name: np.asarray(arrays[name]) for name in arrays.files}
    except Exception as error:  # zipfile, zlib and numpy raise two dozen kinds for what is damaged
        raise ArtifactError(f"{file}: no arrays that moe wrote ({error}). {CHANGED}") from error
    if odd := [name for name, array in found.items() if array.dtype.kind not in "biuf"]:
        raise ArtifactError(f"{file}: {', '.join(odd[:3])} of no numbers. {CHANGED}")
    return Fields(file, found)
