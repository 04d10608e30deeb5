"""Kill it any time: going on gives the same bits as never having stopped."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import moecli.run
from moecli.errors import ArtifactError, ConflictError, DataError, Interrupted
from moecli.record import checkpoint
from moecli.record.folder import Run
from moecli.record.lock import locked
from moecli.run import resume, train
from moecli.training import stop
from moecli.training.gradient import Loop

from .killing import WORDS, quick

STEPS = 60


@pytest.fixture(autouse=True)
def quickly(monkeypatch):
    monkeypatch.setattr("moecli.run._draw", moecli.run._draw)
    monkeypatch.setattr("moecli.run._change_without", moecli.run._change_without)
    quick()


def bits(run: Run) -> dict[str, bytes]:
    """Weights, optimizer and generator of the last checkpoint, and the metrics file."""
    tensors, state = checkpoint.load(run.path / "checkpoints" / f"step-{checkpoint.steps(run.path)[-1]:08d}")
    named = {f"{stem}/{name}": t.numpy().tobytes() for stem, part in tensors.items() for name, t in part.items()}
    return {**named, "metrics": (run.path / "metrics.jsonl").read_bytes(), "best": json.dumps(state["best"]).encode()}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    before = moecli.run._draw, moecli.run._change_without
    quick()
    run = train(*WORDS, f"trainer.steps={STEPS}", runs=tmp_path_factory.mktemp("whole"))
    moecli.run._draw, moecli.run._change_without = before
    return run


def interrupted(tmp_path: Path, monkeypatch, at: int, number: int = signal.SIGTERM) -> Run:
    """A run whose own process is signalled in step ``at``."""
    real = Loop.train

    def train_and_signal(self, step):
        real(self, step)
        if step == at:
            os.kill(os.getpid(), number)

    monkeypatch.setattr(Loop, "train", train_and_signal)
    with pytest.raises(Interrupted) as caught:
        train(*WORDS, f"trainer.steps={STEPS}", runs=tmp_path)
    monkeypatch.setattr(Loop, "train", real)
    assert caught.value.code == 128 + number and "--resume" in str(caught.value)
    (path,) = tmp_path.glob("*/*/run.json")
    return Run(path.parent)


@pytest.mark.parametrize(
    ("at", "number"), [(0, signal.SIGINT), (13, signal.SIGTERM), (19, signal.SIGTERM), (37, signal.SIGINT)]
)
def test_a_signal_saves_and_going_on_gives_the_same_bits(whole, tmp_path, monkeypatch, at, number):
    run = interrupted(tmp_path, monkeypatch, at, number)
    assert run.info["status"] == "interrupted" and checkpoint.steps(run.path)[-1] == at + 1
    again = resume(run.path)
    assert again.info["status"] == "finished" and bits(again) == bits(whole)
    assert again.info["attempts"][0]["status"] == "interrupted"
    assert again.summary["metrics"] == whole.summary["metrics"]


def test_the_comparison_can_fail(whole, tmp_path):
    other = train(*WORDS, f"trainer.steps={STEPS}", "seed=1", runs=tmp_path)
    mine, theirs = bits(whole), bits(other)
    assert mine.keys() == theirs.keys() and mine["metrics"] != theirs["metrics"]
    assert sum(mine[name] != theirs[name] for name in mine if name.startswith("model")) > 3


def test_without_the_generator_s_state_the_noise_would_differ(whole, tmp_path, monkeypatch):
    run = interrupted(tmp_path, monkeypatch, 13)
    monkeypatch.setattr("moecli.training.gradient.restore_random_state", lambda tensors: None)
    assert bits(resume(run.path)) != bits(whole)


def killing(folder: Path, *words: str) -> dict[str, int]:
    words = (sys.executable, "-m", "tests.training.killing", str(folder), *words)
    done = subprocess.run(words, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def same_bits(folder: Path, whole: Run) -> int:
    """How many runs lie in the folder, all with the bits of the run that was never stopped."""
    runs = [Run(path.parent) for path in folder.glob("*/*/*/run.json") if Run(path.parent).info["status"] == "finished"]
    assert all(bits(run) == bits(whole) for run in runs)
    return len(runs)


def kill(total: int, whole: Run, folder: Path) -> dict[str, int]:
    """Runs killed again and again until ``total`` kills have hit; every one of them ends in the same bits."""
    report = killing(folder, str(total), "0", str(STEPS))
    assert same_bits(folder, whole) == report["runs"]
    return report


def test_a_save_may_die_at_any_of_its_points(whole, tmp_path):
    """Before and after each: two whole checkpoints, the newest no older than before, and going on gives the same bits."""
    report = killing(tmp_path, "everywhere", str(STEPS))
    assert report["points"] >= 14  # a folder, five files flushed and renamed, their folder, its name, its parent
    assert same_bits(tmp_path, whole) == report["points"] + 1


def test_twenty_kills_change_no_bit_and_lose_no_more_than_an_interval(whole, tmp_path):
    report = kill(20, whole, tmp_path)
    assert report["kills"] >= 20 and report["lost"] <= 10  # trainer.checkpoint_every


@pytest.mark.slow
def test_two_hundred_kills(whole, tmp_path):
    report = kill(200, whole, tmp_path)
    print(report)
    assert report["kills"] >= 200 and report["lost"] <= 10


def test_a_damaged_checkpoint_is_passed_over_and_said(whole, tmp_path, monkeypatch):
    run = interrupted(tmp_path, monkeypatch, 33)
    file = run.path / "checkpoints" / "step-00000034" / "model.safetensors"
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)
    again = resume(run.path)
    assert bits(again) == bits(whole)
    assert any("SHA-256" in text for text in again.info["warnings"])


def test_where_none_is_intact_nothing_restarts_silently(tmp_path, monkeypatch):
    run = interrupted(tmp_path, monkeypatch, 33)
    for file in run.path.glob("checkpoints/step-*/model.safetensors"):
        file.write_bytes(b"")
    with pytest.raises(ArtifactError, match="none of its"):
        resume(run.path)


def test_a_finished_run_is_left_as_it_is_and_can_be_prolonged(whole, tmp_path):
    copy = shutil.copytree(whole.path, tmp_path / "copy" / whole.path.name)
    before = bits(Run(copy))
    assert bits(resume(copy)) == before
    longer = resume(copy, "trainer.steps=80")
    assert checkpoint.steps(longer.path)[-1] == 80 and longer.info["config"]["trainer.steps"] == 80
    assert longer.info["attempts"][0]["changed"] == ["trainer.steps=80"]


def test_what_makes_another_run_is_refused_by_name(whole, tmp_path, monkeypatch):
    copy = shutil.copytree(whole.path, tmp_path / "copy" / whole.path.name)
    for word in ("seed=1", "optimizer.lr=0.1", "router.k=3", "expert.hidden=9", "task.rows=300"):
        with pytest.raises(ArtifactError, match=word.partition("=")[0]):
            resume(copy, word)
    info = Run(copy).info
    (copy / "run.json").write_text(json.dumps({**info, "fingerprint": "other", "status": "interrupted"}))
    with pytest.raises(DataError, match="data is not what"):
        resume(copy, "trainer.steps=80")


def test_another_number_of_threads_is_said(tmp_path, monkeypatch):
    run = interrupted(tmp_path, monkeypatch, 13)
    again = resume(run.path, "threads=2")
    torch.set_num_threads(1)
    assert any("not promised: threads 1 -> 2" in text for text in again.info["warnings"])


def test_two_processes_never_train_one_run(whole, tmp_path):
    copy = shutil.copytree(whole.path, tmp_path / "copy" / whole.path.name)
    with locked(copy), pytest.raises(ConflictError, match=f"process {os.getpid()}"):
        resume(copy)
    assert resume(copy).info["status"] == "finished"  # the lock is gone with its holder


def test_handlers_come_back_and_a_second_signal_leaves_at_once(monkeypatch):
    before = signal.getsignal(signal.SIGTERM)
    left = []
    monkeypatch.setattr(os, "_exit", left.append)
    with stop.listening() as asked:
        os.kill(os.getpid(), signal.SIGTERM)
        assert asked.signal == signal.SIGTERM and not left
        os.kill(os.getpid(), signal.SIGINT)
        assert left == [130]
    assert signal.getsignal(signal.SIGTERM) is before
