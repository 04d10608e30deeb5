"""Run folders as TensorBoard reads them: the metrics and each expert's load, step by step, as event files.

A converter and no option of training: TensorBoard then shows old and imported runs too, a training never
depends on it, and what it shows is what the run folder says.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np

from moecli.errors import EnvironmentFailure, MoeError
from moecli.record.folder import Run, find_runs, read_lines
from moecli.record.trace import TraceReader

INSTALL = "TensorBoard's library is missing. Install it with: python -m pip install 'moecli[tensorboard]'"
Scalar = tuple[str, int, float]  # tag, step, value
Clock = Callable[[int], float]


def export(paths: Iterable[Path], folder: Path) -> tuple[list[Path], list[str]]:
    """(a folder ``name/id`` below ``folder`` for each run at or below ``paths``, a reason for each that cannot be read).

    An earlier export of the same run is replaced, whole.  Raises EnvironmentFailure where the extra is missing.
    """
    writer = _writer()
    made, reasons = [], []
    for path in find_runs(paths):
        absolute = path.absolute()
        target = folder / absolute.parent.name / absolute.name
        try:
            run = Run(path)
            _replace(target, list(scalars(run)), _clock(run), writer)
        except MoeError as error:
            reasons.append(str(error))
        else:
            made.append(target)
    return made, reasons


def scalars(run: Run) -> Iterator[Scalar]:
    """``split/name`` of metrics.jsonl, and ``load/<layer>/e<number>``: the expert's share of the step's work."""
    for line in run.metrics:
        if line["value"] is not None:
            yield f"{line['split']}/{line['name']}", int(line["step"]), float(line["value"])
    for layer in run.layers:
        usage = TraceReader(run.path).usage(layer)
        if usage:
            share = usage["served"] / np.maximum(usage["served"].sum(1, keepdims=True), 1e-30)  # (S, E)
            for step, loads in zip(usage["step"].tolist(), share.tolist(), strict=True):
                yield from ((f"load/{layer}/e{expert}", step, load) for expert, load in enumerate(loads))


def _clock(run: Run) -> Clock:
    """Seconds since 1970 at a step: those of the evaluations are known, between them it went evenly."""
    started = datetime.fromisoformat(run.info["started"]).timestamp()
    known = [(0, 0.0), *((line["step"], line["value"]) for line in read_lines(run.path / "timing.jsonl"))]
    steps, seconds = zip(*sorted(known), strict=True)
    return lambda step: started + float(np.interp(step, steps, seconds))


def _writer() -> Any:
    try:
        from tensorboard.compat.proto import event_pb2, summary_pb2
        from tensorboard.summary.writer.record_writer import RecordWriter
    except ImportError as error:
        raise EnvironmentFailure(INSTALL) from error
    return event_pb2, summary_pb2, RecordWriter


def _replace(target: Path, found: Sequence[Scalar], clock: Clock, writer: Any) -> None:
    """Write beside, then move: TensorBoard never sees half a file."""
    target.parent.mkdir(parents=True, exist_ok=True)
    beside = Path(tempfile.mkdtemp(prefix=".tmp-", dir=target.parent))
    _write(beside / "events.out.tfevents.moecli", found, clock, writer)
    shutil.rmtree(target, ignore_errors=True)
    beside.rename(target)


def _write(path: Path, found: Sequence[Scalar], clock: Clock, writer: Any) -> None:
    event_pb2, summary_pb2, record_writer = writer
    with open(path, "wb") as file:
        records = record_writer(file)
        records.write(event_pb2.Event(wall_time=clock(0), file_version="brain.Event:2").SerializeToString())
        for tag, step, value in found:
            summary = summary_pb2.Summary(value=[summary_pb2.Summary.Value(tag=tag, simple_value=value)])
            records.write(event_pb2.Event(wall_time=clock(step), step=step, summary=summary).SerializeToString())
        records.flush()
