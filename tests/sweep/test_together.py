"""Runs of a sweep that train as one: ordinary run folders, which fail, stop and go on each for itself."""

from __future__ import annotations

import pytest

import moecli
from moecli.record import checkpoint
from moecli.record.folder import Run
from moecli.run import resume
from moecli.sweep import start
from moecli.sweep.folder import Sweep
from tests.sweep.small import TINY, pulled, stopped, swept


def run_of(sweep, job):
    return Run(sweep.run_of(next(j for j in sweep.plan.jobs(sweep.points()) if j.id == job)))


def noted(run):
    return (run.path / "log.txt").read_text().splitlines()[0]


def close(one, other):
    """Metrics of two runs, as float32 has them."""
    return one.summary["metrics"] == pytest.approx(other.summary["metrics"], rel=1e-3, abs=1e-4)


@pytest.fixture(scope="module")
def stacked(tmp_path_factory):
    words = ("router=top_k,dense", "optimizer.lr=0.003,0.01", "seed=0,3", "trainer.stack=3")
    return pulled(swept(tmp_path_factory.mktemp("stacked"), *words))


def test_each_run_has_its_own_folder_and_is_as_by_itself(stacked, tmp_path, monkeypatch):
    monkeypatch.setattr("moecli.run._draw", lambda run: None)
    assert stacked.counts()["finished"] == 8 and not stacked.leases.held()
    notes = [noted(run_of(stacked, job)) for job in stacked.done()]  # seed by seed, of one router at a time
    assert notes.count("trainer.stack: trained as one of 3") == 6 and len(notes) == 8
    run = run_of(stacked, "0001-seed0")
    alone, other = (
        moecli.train(*TINY, "router=top_k", f"optimizer.lr={rate}", runs=tmp_path) for rate in (0.01, 0.003)
    )
    assert close(run, alone) and not close(run, other)
    assert run.info["status"] == "finished" and run.info["config"]["trainer.stack"] == 3
    assert stacked.done()["0001-seed0"]["value"] == run.summary["metrics"]["valid/r2"]


def test_a_checkpoint_of_a_stack_goes_on_alone(stacked, tmp_path, monkeypatch):
    monkeypatch.setattr("moecli.run._draw", lambda run: None)
    words = ["router=dense", "optimizer.lr=0.003", "seed=0"]
    run = run_of(stacked, "0002-seed0")
    again = resume(run.path, "trainer.steps=8")
    whole = resume(moecli.train(*TINY, *words, runs=tmp_path).path, "trainer.steps=8")
    assert again.info["status"] == "finished" and checkpoint.steps(again.path)[-1] == 8 and close(again, whole)


def test_a_stop_saves_all_and_the_sweep_goes_on(tmp_path, monkeypatch):
    sweep = stopped(swept(tmp_path, "seed=0..2", "trainer.stack=3"), monkeypatch, save=4)
    jobs = [job.id for job in sweep.plan.jobs(sweep.points())]
    assert [run_of(sweep, job).info["status"] for job in jobs] == ["interrupted"] * 3
    assert [checkpoint.steps(run_of(sweep, job).path)[-1] for job in jobs] == [2] * 3
    again = pulled(Sweep(sweep.path))
    assert again.counts()["finished"] == 3 and all(run_of(again, job).info["attempts"] for job in jobs)


def test_a_run_that_fails_leaves_the_others(tmp_path):
    words = ("optimizer.lr=0.01,1e30", "optimizer=sgd", "trainer.clip=null", "seed=0,1", "trainer.stack=4")
    sweep = pulled(swept(tmp_path, *words))
    done = sweep.done()
    assert {job: record["status"] for job, record in done.items()} == {
        "0000-seed0": "finished", "0000-seed1": "finished", "0001-seed0": "failed", "0001-seed1": "failed",
    }  # fmt: skip
    assert done["0001-seed0"]["code"] == 6 and "the loss is" in done["0001-seed0"]["error"]
    assert {noted(run_of(sweep, job)) for job in done} == {"trainer.stack: trained as one of 4"}


def test_what_cannot_be_one_trains_by_itself_to_the_same_bits(tmp_path):
    words = ("router=catch_up", "seed=0,1")
    plain, stack = pulled(swept(tmp_path / "a", *words)), pulled(swept(tmp_path / "b", *words, "trainer.stack=2"))
    one, other = run_of(plain, "0000-seed0"), run_of(stack, "0000-seed0")
    assert (one.path / "metrics.jsonl").read_bytes() == (other.path / "metrics.jsonl").read_bytes()
    assert noted(other) == "trainer.stack: trained by itself: the router has a state beside its gate's"


def test_what_may_differ_between_runs_that_train_as_one():
    words = [*TINY, "optimizer.lr=0.1,0.2", "num_experts=2,4", "seed=0,1", "trainer.stack=2"]
    plan, _ = start.make(words, start.Order())
    first = plan.points[0]
    alike = [p.values for p in plan.points if plan.alike(p, first)]
    assert [v["optimizer.lr"] for v in alike] == [0.1, 0.2] and {v["num_experts"] for v in alike} == {2}
    assert plan.stack(first) == 2
