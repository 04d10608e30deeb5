"""Run folders as flat records: what ``moe compare``, ``moe ls runs`` and ``moecli.runs`` read of run.json and summary.json."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from moecli.errors import MoeError
from moecli.record.folder import CHANGED, Run, find_runs, runs_root

if TYPE_CHECKING:
    import pandas

LAYER = {
    "balance CV": "balance_cv",
    "max/mean": "max_over_mean",
    "effective experts": "effective_experts",
    "dropped": "dropped",
    "entropy": "entropy",
}  # column: what summary.json calls it in each layer
MADE_WITH = ("git", "device", "threads", "arithmetic")  # of run.json, beside the versions
CRITERIA = ("loglik", "aic", "bic", "icl")  # of classical mixtures, on their training rows

ENCODER = json.JSONEncoder(ensure_ascii=False)  # made once: a thousand runs have a hundred thousand values


@dataclass(frozen=True)
class Record:
    """A run as tables read it."""

    path: str
    id: str
    status: str
    config: dict[str, Any]  # flat: {"router.k": 2, ...}
    setting: dict[str, str]  # the same in words, without what does not matter: equal ones are one run, made twice
    seed: int
    fingerprint: str  # of the data
    headline: str  # metric by which the task is judged, "accuracy"; on test it is ``numbers["test/accuracy"]``
    unit: str  # of the headline, "" for none
    higher_is_better: bool
    per: str  # what FLOPs are counted per: example or token
    twin: bool
    leak: bool  # its router saw the future
    made_with: dict[str, Any]  # versions, git revision, device, threads
    numbers: dict[str, float]  # by column; NaN where it was not finite, absent where the run has none
    error: str = ""  # why it failed

    @property
    def quality(self) -> float | None:
        """The headline on test, None of a run that has not finished."""
        return self.numbers.get(f"test/{self.headline}")


def runs(root: Path | str | None = None) -> pandas.DataFrame:
    """Every readable run below ``root`` as a row: path, id, status, flat config, numbers."""
    import pandas

    records, _ = read_runs([runs_root(Path(root) if root else None)])
    return pandas.DataFrame([{**r.config, **vars(r), **r.numbers} for r in records]).drop(
        columns=["config", "setting", "numbers", "made_with"], errors="ignore"
    )


def read_runs(paths: Sequence[Path]) -> tuple[list[Record], list[str]]:
    """(a record per run, a reason per run that could not be read)."""
    records, broken = [], []
    for path in find_runs(paths):
        try:
            records.append(record(Run(path)))
        except MoeError as error:
            broken.append(str(error))
        except (TypeError, AttributeError, ValueError, OverflowError) as error:
            broken.append(f"{path}: run.json or summary.json is none of ours ({error}). {CHANGED}")
    return records, broken


def record(run: Run) -> Record:
    """All that the tables read of a run.  Raises what a wrong type raises, now and not in the middle of a table."""
    info = run.info
    if not all(isinstance(info["config"][key], kind) for key, kind in (("task", str), ("router", str), ("seed", int))):
        raise TypeError("its task, router or seed is none")
    headline, sizes = info["headline"], info["parameters"]
    cost = {"total": sizes["total"], "active": sizes["active"], "FLOP": info["flops"], "seconds": info.get("seconds")}
    measured = _measured(run.summary, headline) if info["status"] == "finished" else {}
    return Record(
        path=str(run.path),
        id=info["id"],
        status=info["status"],
        config=dict(info["config"]),
        setting={key: text(value) for key, value in info["config"].items() if key not in ("device", "threads")},
        seed=info["config"]["seed"],
        fingerprint=info["fingerprint"],
        headline=headline,
        unit=str(info.get("units", {}).get(headline, "")),
        higher_is_better=info["higher_is_better"],
        per=info["unit"],
        twin=info["twin"],
        leak=info["leak"],
        made_with=info.get("versions", {}) | {name: info[name] for name in MADE_WITH if name in info},
        numbers={name: _number(value) for name, value in cost.items() if value is not None} | measured,
        error=str(info.get("error") or ""),
    )


def text(value: Any) -> str:
    """A value as one types it: true, null, 0.003, a word without quotes; an empty one is ``none``."""
    return (value or "none") if isinstance(value, str) else ENCODER.encode(value)


def _measured(summary: dict[str, Any], headline: str) -> dict[str, float]:
    """Metrics by name, and means over the mixture layers where there are any."""
    found = {name: _number(value) for name, value in (summary["metrics"] | summary.get("criteria", {})).items()}
    if (chance := summary.get("chance", {}).get(f"test/{headline}")) is not None:
        found["chance"] = _number(chance)
    layers = summary["layers"]
    for column, name in LAYER.items():
        found |= _over_layers(column, [layer[name] for layer in layers if name in layer])
    labels = [list(layer["nmi"].items()) for layer in layers]
    found |= _over_layers("NMI", [of_layer[0][1]["value"] for of_layer in labels if of_layer])
    for label in dict.fromkeys(label for of_layer in labels for label, _ in of_layer):
        measures = [layer["nmi"][label] for layer in layers if label in layer["nmi"]]
        found |= _over_layers(f"NMI {label}", [m["value"] for m in measures])
        found |= _over_layers(f"NMI {label} by chance", [m["chance"] for m in measures if m["chance"] is not None])
    return found


def _number(value: Any) -> float:
    """NaN for what was not finite when it was written, which JSON calls null.

    Raises TypeError for what is no number, ValueError for one that is not finite, OverflowError for one too large.
    """
    if value is None:
        return math.nan
    if not math.isfinite(value):
        raise ValueError(f"{value} is not finite")
    return float(value)


def _over_layers(column: str, values: list[Any]) -> dict[str, float]:
    """The mean over layers; nothing for a run without such layers, as a dense twin is."""
    known = [_number(value) for value in values]
    return {column: math.fsum(known) / len(known)} if values else {}
