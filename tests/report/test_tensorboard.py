"""TensorBoard's own reader finds every number of the run folder."""

from __future__ import annotations

import sys

import numpy as np
import pytest

from moecli.errors import EnvironmentFailure
from moecli.record.folder import Run
from moecli.record.trace import TraceReader
from moecli.report import tensorboard

from .conftest import copied


def test_every_metric_and_load_is_read_back(trained, tmp_path):
    reader = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    (made,), reasons = tensorboard.export([trained], tmp_path)
    assert not reasons and made == tmp_path / trained.parent.name / trained.name
    found = reader.EventAccumulator(str(made)).Reload()
    run, usage = Run(trained), TraceReader(trained).usage("layer0")
    metrics = run.metrics
    wanted = {f"{line['split']}/{line['name']}" for line in metrics}
    loads = {f"load/layer0/e{expert}" for expert in range(4)}
    assert set(found.Tags()["scalars"]) == wanted | loads and len(wanted) >= 5
    for tag in wanted:
        lines = [(m["step"], np.float32(m["value"])) for m in metrics if f"{m['split']}/{m['name']}" == tag]
        assert [(event.step, np.float32(event.value)) for event in found.Scalars(tag)] == lines
    for expert in range(4):
        share = usage["served"][:, expert] / usage["served"].sum(1)
        assert [event.value for event in found.Scalars(f"load/layer0/e{expert}")] == pytest.approx(share.tolist())
    times = [event.wall_time for event in found.Scalars("valid/accuracy")]
    assert times == sorted(times) and times[0] > 1.7e9


def test_an_export_is_a_function_of_the_run_and_replaces_itself(trained, tmp_path):
    pytest.importorskip("tensorboard")
    files = []
    for _ in range(2):
        (made,), _ = tensorboard.export([trained], tmp_path)
        (file,) = made.iterdir()
        files.append(file.read_bytes())
    assert files[0] == files[1] and [path.name for path in made.parent.iterdir()] == [trained.name]


def test_a_broken_run_is_a_reason(trained, tmp_path):
    pytest.importorskip("tensorboard")
    copied(trained, tmp_path / "runs" / "a" / "good")
    path = copied(trained, tmp_path / "runs" / "a" / "bad")
    (path / "metrics.jsonl").write_text("no json\n")
    made, reasons = tensorboard.export([tmp_path / "runs"], tmp_path / "out")
    assert [one.name for one in made] == ["good"] and len(reasons) == 1 and "metrics.jsonl" in reasons[0]
    assert not list((tmp_path / "out").rglob("bad*"))


def test_a_missing_library_is_one_sentence(trained, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorboard.compat.proto", None)
    with pytest.raises(EnvironmentFailure, match=r"moecli\[tensorboard\]"):
        tensorboard.export([trained], tmp_path)
