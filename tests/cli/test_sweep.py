"""moe sweep: from words to a table, killed and gone on with; errors in one line."""

from __future__ import annotations

import io
import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from moecli.cli.app import app
from moecli.errors import MoeError, PartialSuccess
from moecli.sweep import start, view
from moecli.sweep.folder import Sweep
from tests.sweep.standin import swept, value

TINY = ["task=piecewise", "task.rows=60", "trainer.steps=6", "trainer.batch_size=20", "trainer.eval_every=2"]
REFUSED = {
    ("seed=0",): "no key has several values",
    ("router=top_k,hsah",): "Did you mean router=hash",
    ("seed=0,1", "--sampler", "gird"): "Did you mean grid",
    ("seed=0,1", "--engine", "pbs"): "no such engine",
    ("seed=0,1", "--budget", "soon"): "no length of time",
    ("seed=0,1", "--name", "../x"): "--name",
    ("optimizer.lr=interval(1,2)",): "--sampler random or tpe",
    ("num_experts=1..100", "seed=0..999"): "100,000 runs",
    ("--resume", "x", "seed=0,1"): "stands in its plan",
    ("--status", "x", "--resume", "x"): "stands in its plan",
    ("--status", "nowhere"): "no sweep folder",
    ("router=hash", "seed=0,1", *TINY): "it needs token ids",
}


def moe(*words, runs=None):
    """``moe sweep`` in this process: (what it printed, what it raised)."""
    done = CliRunner().invoke(app, ["sweep", *map(str, words), *(["--runs", str(runs)] if runs else [])])
    error = done.exception if not isinstance(done.exception, SystemExit) else None
    return done.stdout, error


def finished(root, **wrong):
    """A sweep whose runs are recorded without having been."""
    sweep = swept(root, "router=top_k,dense", "seed=0,1")
    for job in sweep.plan.jobs(sweep.points()):
        good = {"status": "finished", "value": value(job), "metric": "valid/r2", "seconds": 1.0}
        sweep.record(job, wrong.get(f"trial{job.trial}", good))
    return Sweep(sweep.path)


@pytest.mark.parametrize("words", REFUSED)
def test_refused_in_one_line_and_no_folder_is_made(words, tmp_path):
    printed, error = moe(*words, runs=tmp_path)
    assert isinstance(error, MoeError) and re.search(re.escape(REFUSED[words]), str(error)) and not printed
    assert "\n" not in str(error) and not list(tmp_path.iterdir())


def test_a_dry_run_lists_trials_and_refusals(tmp_path):
    printed, error = moe("router=top_k,hash", "seed=0..4", *TINY, "--dry-run", runs=tmp_path)
    lines = printed.splitlines()
    assert error is None and not list(tmp_path.iterdir())
    assert lines[0] == " 0000  router=top_k" and lines[1].startswith(" refused 0001 router=hash: ")
    assert lines[2] == " 5 runs: 1 trials x 5 seeds, judged by valid/r2"
    stored = json.loads(moe("router=top_k,hash", "seed=0..4", *TINY, "--dry-run", "--json")[0])
    assert [point["refused"] is None for point in stored["trials"]] == [True, False]


def test_a_table_best_first_with_intervals(tmp_path):
    sweep = finished(tmp_path)
    printed, error = moe("--status", sweep.path)
    lines = [line for line in printed.splitlines() if line]
    assert error is None
    assert re.split(r"  +", lines[0].strip()) == ["trial", "what", "seeds", "valid r2"]
    assert re.split(r"  +", lines[1].strip()) == ["0000", "router=top_k", "2/2", "1.000 ± 0.006"]
    assert lines[3] == " best  router=top_k: valid r2 1.000 ± 0.006 over 2 seeds"
    assert lines[-1] == f" next   moe compare {sweep.path} --by router"


def test_the_best_so_far_counts_the_seeds_it_has(tmp_path):
    sweep = finished(tmp_path)
    (sweep.path / "done" / "0000-seed1.json").unlink()
    assert " best  router=top_k: valid r2 1.000 over 1 of 2 seeds" in moe("--status", sweep.path)[0].splitlines()


@pytest.mark.parametrize(
    ("words", "by"),
    [
        (["router=top_k,dense", "optimizer.lr=0.1,0.2"], " --by router,optimizer.lr"),
        (["task=piecewise", "seed=0,1"], " --by seed"),
        (["experiment=student_outliers,hme_em", "scale=smoke"], ""),  # which no run.json has
    ],
)
def test_the_comparison_that_it_names_has_a_row_for_each_trial(tmp_path, monkeypatch, words, by):
    monkeypatch.setattr(Sweep, "state", "complete")
    sweep = swept(tmp_path, *words)
    assert view.ending(sweep)[-1] == f" next   moe compare {sweep.path}{by}"


def test_json_has_all_of_it(tmp_path):
    sweep = finished(tmp_path)
    found = json.loads(moe("--status", sweep.path, "--json")[0])
    assert found["state"] == "complete" and found["counts"]["finished"] == found["counts"]["total"] == 4
    assert found["best"] == {"trial": 0, "words": ["router=top_k"], "value": 1.0005}
    assert found["trials"][1]["runs"]["1"]["value"] == 0.501


@pytest.mark.parametrize(("status", "raised"), [("failed", PartialSuccess), ("refused", None), ("pruned", None)])
def test_failures_are_partial_success_and_refusals_are_not(tmp_path, monkeypatch, status, raised):
    sweep = finished(tmp_path, trial1={"status": status, "error": "why not", "value": 0.1})
    monkeypatch.setattr(start, "work", lambda *_: None)
    printed, error = moe("--resume", sweep.path)
    assert type(error) is (raised or type(None))
    assert f"2 {status}" in printed and ("why not" in printed) == (status != "pruned")
    assert "best  router=top_k" in printed


def test_all_failed_says_that_there_is_no_best(tmp_path):
    wrong = {"status": "failed", "error": "its valid r2 is not a number", "code": 6}
    printed, _ = moe("--status", finished(tmp_path, trial0=wrong, trial1=wrong).path)
    assert "best  none: no trial has a value" in printed


def test_a_queue_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(start, "work", lambda *_: "4711")
    printed, error = moe("--resume", finished(tmp_path).path, "--engine", "slurm")
    assert error is None and "queued as 4711 · moe sweep --status" in printed


def test_what_a_cluster_may_still_begin_is_not_told_to_go_on_here(tmp_path):
    sweep = swept(tmp_path, "router=top_k,dense", "seed=0,1")
    again = f" next   moe sweep --resume {sweep.path}"
    assert view.ending(sweep)[-1] == f"{again}   (it was stopped)"
    (sweep.path / "sweep.sbatch").touch()
    assert view.ending(sweep)[-1] == f"{again} --engine slurm   (it was stopped, unless squeue still has its array)"


def test_no_text_of_a_user_moves_the_cursor(tmp_path):
    sweep = finished(tmp_path, trial1={"status": "failed", "error": "\x1b[2J[/oops] boo", "code": 1})
    printed, _ = moe("--status", sweep.path)
    assert "\x1b" not in printed and "\\x1b[2J[/oops] boo" in printed


def test_a_line_for_each_run_and_a_live_table(tmp_path):
    from rich.console import Console

    sweep = finished(tmp_path)
    console = Console(record=True, width=100, force_terminal=True, file=io.StringIO())
    lines = view.Lines(swept(tmp_path, "router=top_k,dense", "seed=0,1"), console)
    lines.sweep = sweep
    lines.look()
    assert console.export_text().splitlines()[0] == " 1/4  router=top_k seed=0  finished  valid r2 1.000  1 s"
    table = view.Table(sweep, console)
    table.look()
    assert "4 of 4 runs finished" in table.picture().plain and "0000   router=top_k" in table.picture().plain
    table.close()


@pytest.mark.slow
def test_swept_killed_half_way_and_gone_on_with(tmp_path):
    """The tour of the README with real workers."""
    root = Path(__file__).resolve().parents[2]
    words = [sys.executable, "-m", "moecli", "sweep"]
    kept = {**os.environ, "OMP_NUM_THREADS": "1"}
    killed = subprocess.Popen(
        [*words, *TINY[:2], "router=top_k,dense", "seed=0,1", "trainer.steps=200", "--jobs", "1", "--runs", str(tmp_path)],
        cwd=root, env=kept, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    for line in killed.stdout:
        if line.startswith(" 1/4"):
            break
    killed.send_signal(signal.SIGINT)
    rest = killed.communicate(timeout=6)[0]
    assert killed.returncode == 130 and "Traceback" not in rest
    (folder,) = tmp_path.glob("*/*")
    before = {job: record["run"] for job, record in Sweep(folder).done().items()}
    assert 1 <= len(before) < 4 and Sweep(folder).state == "stopped"
    done = subprocess.run(
        [*words, "--resume", str(folder), "--json"], cwd=root, env=kept, capture_output=True, text=True
    )
    found = json.loads(done.stdout)
    assert done.returncode == 0 and not done.stderr and found["counts"]["finished"] == 4
    after = {job: record["run"] for job, record in Sweep(folder).done().items()}
    assert {job: after[job] for job in before} == before
