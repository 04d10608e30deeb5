"""A run folder -> all that a report says of the run, read at once, so that a damaged folder is noticed here.

A run that cannot be read whole is left out with its reason: a report of twenty runs with five broken ones is a
report of fifteen and a table of five reasons.
"""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from moecli.analysis.doctor import diagnose
from moecli.errors import MoeError
from moecli.record.folder import CHANGED, Run, find_runs
from moecli.report import terminal
from moecli.report.page import layers as mixtures
from moecli.report.page import rows
from moecli.report.page.examples import Inputs
from moecli.report.page.layers import Layer
from moecli.report.page.values import Heat, Picture
from moecli.report.terminal import number

MOST_PAGES = 600  # experts of a report that get a page
LOUD = ("problem", "warning")
Metric = tuple[list[float], list[float]]  # steps and finite values


@dataclass(frozen=True)
class RunPart:
    """One run of a report; ``anchor`` is where it stands on the page, ``row`` its row of the comparison."""

    anchor: str
    label: str  # name/id, whatever folder it was read from
    path: Path
    record: rows.Record
    task: str
    fingerprint: str  # of the data
    seed: int
    status: str
    config: Mapping[str, Any]
    command: str  # what made it: a training's, or that of the sweep it belongs to
    group: str  # the folder below the root that the command makes its folders in
    headline: str
    units: Mapping[str, str]
    per: str  # example or token
    machine: tuple[str, ...]
    header: str  # what is combined, and what it costs
    warnings: Sequence[str]
    metrics: Mapping[tuple[str, str], Metric]  # by split and name
    chance: Mapping[str, float | None]  # of the metrics, as split/name
    result: str
    known: str  # what its experts know of the first label
    layers: Sequence[Layer]
    load: Heat | None
    row: str = ""
    pictures: Sequence[Picture] = ()

    @property
    def finished(self) -> bool:
        return self.status == "finished"

    @property
    def title(self) -> str:
        return f"{self.row}, seed {self.seed}"


def read_all(paths: Iterable[Path]) -> tuple[list[RunPart], list[tuple[str, str]]]:
    """(the runs at or below ``paths`` in the order of their start, (label, reason) of each that cannot be read)."""
    found = sorted(find_runs(paths), key=lambda path: (path.name, label(path)))
    parts: list[RunPart] = []
    broken, inputs = [], Inputs()
    for path in found:
        try:
            parts.append(_read(f"run-{len(parts) + 1}", Run(path), inputs, MOST_PAGES // len(found)))
        except MoeError as error:
            broken.append((label(path), _short(str(error), path)))
        except OSError as error:
            broken.append(
                (label(path), f"{_short(str(error.filename), path)}: {error.strerror}. Check its permissions")
            )
        except (TypeError, AttributeError, ValueError, LookupError, ArithmeticError) as error:
            broken.append((label(path), f"its files do not fit each other ({error!r}). {CHANGED}"))
    return parts, broken


def label(path: Path) -> str:
    """The run's own name/id: the same from whatever folder the report is made."""
    absolute = path.absolute()
    return f"{absolute.parent.name}/{absolute.name}"


def _short(text: str, path: Path) -> str:
    """The text with the run's folder called by its label."""
    return text.replace(str(path), label(path))


def _read(anchor: str, run: Run, inputs: Inputs, most: int) -> RunPart:
    info, done = run.info, run.info["status"] == "finished"
    layers = mixtures.layers(run, anchor, inputs.of(run), most) if done else []
    command, group = _origin(run)
    return RunPart(
        anchor=anchor,
        label=label(run.path),
        path=run.path,
        record=rows.read(run.path),
        task=info["config"]["task"],
        fingerprint=info["fingerprint"],
        seed=info["seed"],
        status=info["status"],
        config=dict(info["config"]),
        command=command,
        group=group,
        headline=info["headline"],
        units=dict(info["units"]),
        per=info["unit"],
        machine=_machine(info),
        header=_header(info),
        warnings=_warnings(run),
        metrics=_metrics(run),
        chance=dict(run.summary["chance"]) if done else {},
        result=_result(run) if done else f"status: {info['status']}",
        known=_known(run) if done else "",
        layers=layers,
        load=mixtures.load_heat(run, layers) if done else None,
    )


def _origin(run: Run) -> tuple[str, str]:
    """The command that makes the run again, and the name below which it lands; of a swept run those of its sweep."""
    folder = run.path.absolute()
    sweep = folder.parents[2] if len(folder.parents) > 3 else folder
    try:
        command = json.loads((sweep / "plan.json").read_text())["command"]
    except (OSError, ValueError, KeyError, TypeError):  # no sweep, or a plan that moe sweep would not read either
        command = None
    return (command, sweep.parent.name) if isinstance(command, str) else (run.info["command"], folder.parent.name)


def _machine(info: Mapping[str, Any]) -> tuple[str, ...]:
    """Versions, git revision, device and the processor's instructions in use."""
    versions = ", ".join(f"{name} {version}" for name, version in info["versions"].items())
    threads = f", threads: {info['threads']}" if info["device"] == "cpu" else ""
    return versions, str(info.get("git") or "–"), f"{info['device']}{threads}", str(info.get("arithmetic", "–"))


def _header(info: Mapping[str, Any]) -> str:
    lines = (" ".join(line.split()) for line in terminal.header(dict(info)))
    return " · ".join(line.removesuffix(" · dense twin: model.twin=true") for line in lines)


def _warnings(run: Run) -> list[str]:
    """What the training warned of, and what moe doctor finds in the folder."""
    found = [finding for finding in diagnose(run) if finding.level in LOUD]
    return [*map(str, run.info.get("warnings", [])), *(f"{f.level}: {_short(f.sentence, run.path)}" for f in found)]


def _metrics(run: Run) -> dict[tuple[str, str], Metric]:
    found: dict[tuple[str, str], list[tuple[float, float]]] = defaultdict(list)
    for line in run.metrics:
        if line["value"] is not None:
            found[line["split"], line["name"]].append((float(line["step"]), float(line["value"])))
    return {name: ([s for s, _ in sorted(points)], [v for _, v in sorted(points)]) for name, points in found.items()}


def _result(run: Run) -> str:
    """Quality beside its chance level."""
    info, metric = run.info, f"test/{run.info['headline']}"
    value, chance = run.summary["metrics"][metric], run.summary["chance"].get(metric)
    unit = info["units"].get(info["headline"], "")
    against = "" if chance is None else f" (chance {number(chance)})"
    leak = "; its router saw the future (model.allow_leak)" if info["leak"] else ""
    return f"test {info['headline']} {number(value)}{' ' + unit if unit else ''}{against}{leak}"


def _known(run: Run) -> str:
    for layer in run.summary["layers"]:
        for name, measure in layer["nmi"].items():
            return f"{name} in {layer['layer']}: {mixtures.against(measure)}"
    return ""


def finite(value: float | None) -> bool:
    return value is not None and math.isfinite(value)
