"""Runs of a sweep are runs as any other: the same bits as ``moe train``, gone on with, and failures that say why."""

from __future__ import annotations

import os
import stat
import sys
from pathlib import Path

import pytest

import moecli
from moecli.errors import EnvironmentFailure, UsageError
from moecli.record import checkpoint
from moecli.record.folder import Run, find_runs
from moecli.report import compare
from moecli.report import records as reading
from moecli.sweep import fit, slurm, start
from moecli.sweep.folder import Sweep
from moecli.sweep.grammar import parse
from moecli.sweep.plan import make
from tests.sweep.small import TINY, planned, pulled, stopped, swept
from tests.waiting import until


@pytest.fixture(scope="module")
def swept_once(tmp_path_factory):
    return pulled(swept(tmp_path_factory.mktemp("swept"), "router=top_k,dense", "seed=0,3"))


def test_the_same_bits_as_moe_train(swept_once, tmp_path, monkeypatch):
    monkeypatch.setattr("moecli.run._draw", lambda run: None)
    job = swept_once.plan.jobs(swept_once.points())[-1]
    own = Run(swept_once.run_of(job))
    alone = moecli.train(*TINY, "router=dense", "seed=3", runs=tmp_path)
    other = moecli.train(*TINY, "router=dense", "seed=0", runs=tmp_path)
    read = {run: (run.path / "metrics.jsonl").read_bytes() for run in (own, alone, other)}
    assert read[own] == read[alone] != read[other]
    assert (own.path / "config.yaml").read_bytes() == (alone.path / "config.yaml").read_bytes()
    assert own.summary["metrics"] == alone.summary["metrics"]
    assert swept_once.done()[job.id]["value"] == alone.summary["metrics"]["valid/r2"]
    assert own.info["command"] == f"moe train {' '.join(TINY)} router=dense seed=3"


def test_other_commands_find_the_runs_and_no_picture_was_drawn(swept_once):
    assert len(find_runs([swept_once.path])) == 4
    records, broken = reading.read_runs([swept_once.path])
    rows = compare.compare(records, "router").rows
    assert not broken and sorted((row.name, row.count) for row in rows) == [("dense", 2), ("top_k", 2)]
    assert not list(swept_once.path.rglob("*.png"))
    assert swept_once.plan.metric == "valid/r2" and swept_once.plan.higher_is_better


def test_data_are_read_once(swept_once, tmp_path, monkeypatch):
    built = []
    real = fit.build
    monkeypatch.setattr(fit, "build", lambda node: built.append(node) or real(node))
    pulled(swept(tmp_path, "router=top_k,dense", "seed=0,1"))
    assert len(built) == 2  # to refuse what does not fit, and to train


def test_a_run_that_was_stopped_goes_on_to_the_same_bits(swept_once, tmp_path, monkeypatch):
    sweep = stopped(swept(tmp_path, "router=top_k,dense", "seed=0,3"), monkeypatch, save=3)
    pulled(Sweep(sweep.path))
    first = sweep.plan.jobs(sweep.points())[0]
    resumed, whole = Run(sweep.run_of(first)), Run(swept_once.run_of(first))
    assert len(find_runs([sweep.path])) == 4 and resumed.info["attempts"]
    assert (resumed.path / "metrics.jsonl").read_bytes() == (whole.path / "metrics.jsonl").read_bytes()
    assert not list(sweep.path.rglob("*.png"))


def test_a_finished_run_that_nobody_recorded_is_not_trained_again(tmp_path):
    sweep = pulled(swept(tmp_path, "seed=0,1"))
    (sweep.path / "done" / "0000-seed1.json").unlink()
    before = {path: path.stat().st_mtime_ns for path in find_runs([sweep.path])}
    again = pulled(Sweep(sweep.path))
    assert again.is_complete() and {path: path.stat().st_mtime_ns for path in find_runs([sweep.path])} == before


def test_failures_say_why_and_the_sweep_goes_on(tmp_path):
    sweep = pulled(swept(tmp_path, "optimizer.lr=0.01,1e30", "optimizer=sgd", "trainer.clip=null"))
    good, bad = sweep.done()["0000-seed0"], sweep.done()["0001-seed0"]
    assert good["status"] == "finished" and bad["status"] == "failed"
    assert bad["code"] == 6 and "the loss is" in bad["error"]
    assert [point.number for point, _ in sweep.ranked()] == [0]


def test_a_value_that_is_no_number_is_a_failure(tmp_path, monkeypatch):
    real = Run.summary.func
    broken = property(lambda run: {**real(run), "metrics": {"valid/r2": None}})
    monkeypatch.setattr(Run, "summary", broken)
    sweep = pulled(swept(tmp_path, "seed=0,1"))
    assert {r["status"] for r in sweep.done().values()} == {"failed"}
    assert sweep.done()["0000-seed0"]["error"] == "its valid r2 is not a number" and not sweep.ranked()


@pytest.mark.parametrize(
    ("error", "said"), [(SystemExit(3), "SystemExit: 3"), (RuntimeError("a\nb"), "RuntimeError: a b")]
)
def test_whatever_a_run_does_is_recorded(tmp_path, monkeypatch, error, said):
    def wrong(*_):
        raise error

    sweep = swept(tmp_path, "seed=0,1")
    monkeypatch.setattr("moecli.sweep.train.train_built", wrong)
    assert {(r["status"], r["error"]) for r in pulled(sweep).done().values()} == {("failed", said)}


def test_a_full_disk_is_no_failure_of_the_run(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    sweep = swept(tmp_path, "seed=0,1")
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "save", full)
        with pytest.raises(OSError, match="No space"):
            pulled(sweep)
    assert not sweep.done() and not sweep.leases.held()
    assert pulled(Sweep(sweep.path)).counts()["finished"] == 2


# -- what does not fit --------------------------------------------------------------------------------


def test_what_does_not_go_together_is_told_before_anything_runs():
    plan = planned("router=top_k,hash,dense")
    assert [point.refused is None for point in plan.points] == [True, False, True]
    assert "it needs token ids" in plan.points[1].refused
    assert [job.trial for job in plan.jobs(plan.points)] == [0, 2]


def test_nothing_that_fits_is_one_line():
    with pytest.raises(UsageError, match="it needs token ids"):
        planned("router=hash", "seed=0,1")


def test_each_value_is_tried_once_with_each_choice_of_parts(monkeypatch):
    tried = []
    real = fit.assemble
    monkeypatch.setattr(fit, "assemble", lambda composed, task: tried.append(1) or real(composed, task))
    plan = planned("router=top_k,dense", "optimizer.lr=0.1,0.2,0.3", "num_experts=2,3,4")
    assert len(plan.points) == 18 and len(tried) == 2 * (3 + 3 - 1)
    tried.clear()
    plan = planned("router=top_k", "router.k=2,3", "num_experts=2,4,8")
    assert [point.refused is None for point in plan.points] == [True, True, True, False, True, True]


def test_what_only_a_combination_refuses_is_refused_when_it_begins(tmp_path):
    plan = make(parse([*TINY, "router=dense,hash"]), "grid", None)  # unchecked, as a combination that nobody tried is
    plan.metric = "valid/r2"
    sweep = pulled(Sweep.create(tmp_path, "s", plan))
    assert sweep.done()["0001-seed0"]["status"] == "refused" and sweep.counts()["failed"] == 0


def test_tasks_without_a_common_metric():
    words = ["task=piecewise,spirals", "trainer.steps=6"]
    plan, _ = start.make(words, start.Order())
    assert plan.metric is None and all(point.refused is None for point in plan.points)
    with pytest.raises(UsageError, match="no common metric"):
        start.make(words, start.Order(sampler="tpe"))


# -- Python, and a worker of its own ------------------------------------------------------------------


def test_from_python(tmp_path, monkeypatch):
    def in_this_process(sweep, jobs, command, show):
        pulled(sweep)
        show()

    monkeypatch.setattr("moecli.sweep.local.run", in_this_process)
    sweep = moecli.sweep.run(*TINY, "router=top_k,dense", "seed=0,1", runs=str(tmp_path), name="mine")
    assert sweep.path.parent == tmp_path / "mine" and len(sweep.ranked()) == 2
    assert moecli.sweep.resume(sweep.path).is_complete()


SBATCH = """#!/bin/bash
echo "$@" >> {folder}/called
[ -e {folder}/refuse ] && {{ echo "sbatch: error: invalid partition" >&2; exit 1; }}
[ -e {folder}/garbage ] && {{ echo "hello"; exit 0; }}
for task in $(seq 0 $(grep -oP 'array=0-\\K\\d+' "$1")); do
    env -i PATH=/usr/bin:/bin bash "$1" >> {folder}/printed 2>&1 & echo $! >> {folder}/tasks
done
echo "Submitted batch job 4711"
"""


@pytest.fixture
def sbatch(tmp_path, monkeypatch):
    """A cluster of this machine: it runs the script in an empty environment."""
    folder = tmp_path / "bin"
    folder.mkdir()
    (folder / "sbatch").write_text(SBATCH.format(folder=folder))
    (folder / "sbatch").chmod(stat.S_IRWXU)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    return folder


def test_slurm_is_handed_an_array_of_workers(tmp_path, sbatch, monkeypatch):
    """Bug 4: what a worker needs stands in the plan, for no variable of ours reaches it."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    sweep = swept(tmp_path, "router=top_k,dense", jobs=2)
    assert start.work(sweep, start.Order(engine="slurm", jobs=1)) == "4711"
    script = (sweep.path / "sweep.sbatch").read_text()
    assert (
        "#SBATCH --array=0-0" in script
        and "#SBATCH --requeue" in script
        and f"{sweep.path}/logs/slurm-%A_%a.log" in script
    )
    for number in (sbatch / "tasks").read_text().split():
        until(lambda number=number: not Path(f"/proc/{number}").exists())  # bash has left it to init, or to nobody
    found = Sweep(sweep.path)
    assert found.is_complete() and found.counts()["finished"] == 2, (sbatch / "printed").read_text()
    assert {Run(path).info["threads"] for path in find_runs([sweep.path])} == {1}


def test_without_ray_one_line_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(EnvironmentFailure, match=r"pip install 'moecli\[ray\]'"):
        start.work(swept(tmp_path, "seed=0,1"), start.Order(engine="ray"))


@pytest.mark.slow
def test_ray_starts_the_same_workers(tmp_path, monkeypatch):
    pytest.importorskip("ray", reason="ray has 209 MB and is no part of moecli[test]")
    monkeypatch.setenv("HOME", str(tmp_path))  # where it writes a token
    sweep = swept(tmp_path, "router=top_k,dense", "seed=0,1", jobs=2)
    assert start.work(sweep, start.Order(engine="ray", jobs=1)) is None
    assert Sweep(sweep.path).counts()["finished"] == 4


@pytest.mark.parametrize(("trouble", "said"), [("refuse", "invalid partition"), ("garbage", "named no job")])
def test_a_cluster_that_takes_nothing_loses_nothing(tmp_path, sbatch, trouble, said):
    (sbatch / trouble).touch()
    sweep = swept(tmp_path, "router=top_k,dense")
    with pytest.raises(EnvironmentFailure, match=f"{said}.*--resume {sweep.path} --engine slurm"):
        slurm.submit(sweep, 2)
    assert sweep.counts()["waiting"] == 2


def test_without_slurm_one_line_says_so(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(EnvironmentFailure, match="no sbatch here"):
        slurm.submit(swept(tmp_path, "router=top_k,dense"), 2)
