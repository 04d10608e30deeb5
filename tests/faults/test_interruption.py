"""Killed, signalled, cut off from its terminal, moved: a run goes on to the same bits or says why not."""

from __future__ import annotations

import datetime
import json
import os
import random
import shutil
import signal

import pytest

import moecli.run
from moecli import config
from moecli.errors import ArtifactError, DataError, Interrupted
from moecli.record import checkpoint
from moecli.record import folder as folders
from moecli.record.folder import LineFile, Run, claim, read_lines
from moecli.record.recorder import Recorder
from moecli.record.view import view
from moecli.run import MAY_CHANGE, resume, train
from moecli.training import gradient
from moecli.training.gradient import Loop
from tests.faults.forking import TINY
from tests.training.killing import WORDS, quick
from tests.training.test_resume import bits

STEPS = 24
SMALL = [*WORDS, f"trainer.steps={STEPS}", "trainer.eval_every=8", "trainer.checkpoint_every=4"]


@pytest.fixture(scope="module", autouse=True)
def quickly():
    with pytest.MonkeyPatch.context() as patch:
        for name in ("_draw", "_change_without"):
            patch.setattr(moecli.run, name, getattr(moecli.run, name))
        quick()
        yield


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return train(*SMALL, runs=tmp_path_factory.mktemp("whole"))


def only_run(root):
    (found,) = root.glob("*/*/run.json")
    return Run(found.parent)


def one_line(done, code, *needles):
    assert done.code == code, done
    assert done.err.startswith("moe: error: ") and done.err.count("\n") == 1, done.err
    assert "Traceback" not in done.out + done.err
    for needle in needles:
        assert needle in done.err, done.err


# -- signals ------------------------------------------------------------------------------------------


def signal_in(monkeypatch, owner, name: str, call: int, number: int) -> None:
    """Send this process a signal as ``owner.name`` is called for the ``call``-th time."""
    real, calls = getattr(owner, name), []

    def signalling(*args, **kwargs):
        calls.append(name)
        if len(calls) == call:
            os.kill(os.getpid(), number)
        return real(*args, **kwargs)

    monkeypatch.setattr(owner, name, signalling)


@pytest.mark.parametrize(
    ("owner", "name", "call", "number"),
    [
        (gradient, "evaluate", 1, signal.SIGTERM),
        (os, "rename", 2, signal.SIGINT),
        (os, "fsync", 9, signal.SIGHUP),
        (Loop, "train", STEPS, signal.SIGTERM),
    ],
    ids=["validation", "renaming", "flushing", "last step"],
)
def test_a_signal_anywhere_saves_and_going_on_gives_the_same_bits(whole, tmp_path, owner, name, call, number):
    with pytest.MonkeyPatch.context() as patch:
        signal_in(patch, owner, name, call, number)
        with pytest.raises(Interrupted) as caught:
            train(*SMALL, runs=tmp_path)
    run = only_run(tmp_path)
    assert caught.value.code == 128 + number and run.info["status"] == "interrupted"
    assert not list(run.path.rglob(".tmp-*"))
    assert bits(resume(run.path)) == bits(whole)


def test_a_second_signal_within_a_save_leaves_at_once(moe, tmp_path):
    setup = (
        "import os, signal\nreal, calls = os.fsync, []\n"
        "def twice(number):\n"
        "    calls.append(number)\n"
        "    if len(calls) == 25: [os.kill(os.getpid(), n) for n in (signal.SIGTERM, signal.SIGINT)]\n"
        "    real(number)\n"
        "os.fsync = twice"
    )
    done = moe("train", *TINY, "trainer.checkpoint_every=1", "--runs", tmp_path, setup=setup)
    assert (done.code, done.err) == (130, "")
    run = only_run(tmp_path)
    assert run.info["status"] == "running"  # nothing more was written
    assert all(checkpoint.verify(run.path / f"checkpoints/step-{s:08d}") for s in checkpoint.steps(run.path))
    assert resume(run.path).info["status"] == "finished"


def test_a_hang_up_saves_and_one_that_nohup_ignores_is_ignored(moe, tmp_path):
    send = "import os, signal; from moecli.training.gradient import Loop; real = Loop.train\n"
    send += "def hang_up(*args): real(*args); os.kill(os.getpid(), signal.SIGHUP)\nLoop.train = hang_up\n"
    done = moe("train", *TINY, "--runs", tmp_path / "a", setup=send)
    one_line(done, 129, "--resume")
    done = moe(
        "train", *TINY, "--quiet", "--runs", tmp_path / "b",
        setup=f"{send}signal.signal(signal.SIGHUP, signal.SIG_IGN)",
    )  # fmt: skip
    assert (done.code, done.err) == (0, "") and only_run(tmp_path / "b").info["status"] == "finished"


def test_em_is_interrupted_at_once_and_begins_again(tmp_path, monkeypatch):
    words = ["task=piecewise", "task.rows=60", "trainer=em", "trainer.steps=5", "trainer.tolerance=0", "threads=1"]
    known = train(*words, runs=tmp_path / "a")
    with pytest.MonkeyPatch.context() as patch:
        signal_in(patch, Recorder, "step", 3, signal.SIGINT)
        with pytest.raises(Interrupted, match="--resume"):
            train(*words, runs=tmp_path / "b")
    again = resume(only_run(tmp_path / "b").path)
    assert (again.path / "metrics.jsonl").read_bytes() == (known.path / "metrics.jsonl").read_bytes()
    assert again.summary["metrics"] == known.summary["metrics"]


# -- streams ------------------------------------------------------------------------------------------

STREAMS = [("closed", 0, ""), ("broken", 141, ""), ("/dev/full", 5, "standard output: the disk is full. ")]


@pytest.mark.parametrize(("stdout", "code", "said"), STREAMS)
def test_a_training_whose_output_is_gone_ends_as_any_other(stdout, code, said, moe, tmp_path):
    done = moe("train", *TINY, "--runs", tmp_path, stdout=stdout)
    assert done.code == code and (said in done.err if said else done.err == "")
    run = only_run(tmp_path)
    assert run.info["status"] == "finished" and run.summary["metrics"]
    assert "step 6/6" in (run.path / "log.txt").read_text()


@pytest.mark.parametrize(("stdout", "code", "said"), STREAMS)
@pytest.mark.parametrize("words", [["ls"], ["--help"], ["show", "router=top_k"]], ids=lambda words: words[0])
def test_a_command_whose_output_is_gone_leaves_quietly_or_in_one_line(words, stdout, code, said, moe):
    done = moe(*words, stdout=stdout)
    assert done.code == code and (said in done.err if said else done.err == "")
    assert moe(*words).code == 0


def test_without_standard_error_the_exit_code_still_tells(moe):
    for stderr in ("closed", "broken", "/dev/full"):
        assert moe("ls", "nonsense", stderr=stderr) == (2, "", "")


# -- killed -------------------------------------------------------------------------------------------


def test_a_run_killed_again_and_again_gets_on_each_time_and_says_so(moe, tmp_path):
    """Two steps an attempt and then SIGKILL, with a checkpoint due only at the end."""
    dies = (
        "import os; from moecli.training.gradient import Loop; real, done = Loop.train, []\n"
        "def train(loop, step):\n"
        "    if len(done) == 2: os.kill(os.getpid(), 9)\n"
        "    done.append(step); real(loop, step)\n"
        "Loop.train = train"
    )
    words = [*(word for word in TINY if "eval_every" not in word), "trainer.eval_every=6"]
    assert moe("train", *words, "--runs", tmp_path, setup=dies).code == -signal.SIGKILL
    run = only_run(tmp_path)
    reached = [checkpoint.steps(run.path)[-1]]
    while reached[-1] < 4:
        assert moe("train", "--resume", run.path, setup=dies).code == -signal.SIGKILL
        reached.append(checkpoint.steps(run.path)[-1])
        assert reached[-1] > reached[-2]
    assert reached == [1, 2, 3, 4]
    again = resume(run.path)
    assert sum("was killed" in text for text in again.info["warnings"]) == 1
    assert [attempt["status"] for attempt in again.info["attempts"]] == ["running"] * 4
    assert bits(again)["metrics"] == bits(train(*words, runs=tmp_path / "whole"))["metrics"]


def test_a_run_that_patience_ended_stays_ended_when_its_end_was_killed(tmp_path):
    words = [*SMALL, "trainer.eval_every=2", "trainer.patience=1", "optimizer.lr=0.3"]
    known = train(*words, runs=tmp_path / "a")
    assert checkpoint.steps(known.path)[-1] < STEPS  # patience did end it
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(moecli.run, "summarise", lambda *args: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            train(*words, runs=tmp_path / "b")
    assert bits(resume(only_run(tmp_path / "b").path)) == bits(known)


def test_a_torn_line_is_cut_wherever_it_is_torn(tmp_path):
    """Every number of bytes of twenty more lines: what a checkpoint knew is what is left."""
    record = Recorder(tmp_path, view(tmp_path / "log.txt", quiet=True))
    record.step(0, {"loss": 1.0, "grad_norm": 2.0}, {})
    position = record.position()
    known = (tmp_path / "metrics.jsonl").read_bytes()
    for step in range(1, 11):
        record.step(step, {"loss": 1 / step, "grad_norm": float("nan")}, {})
    data = (tmp_path / "metrics.jsonl").read_bytes()
    assert data.count(b"\n") == 22
    for cut in range(len(known), len(data) + 1):
        (tmp_path / "metrics.jsonl").write_bytes(data[:cut])
        record.rewind(1, position)
        assert (tmp_path / "metrics.jsonl").read_bytes() == known
    record.step(1, {"loss": 1.0}, {})
    assert [line["step"] for line in read_lines(tmp_path / "metrics.jsonl")] == [0, 0, 1]
    record.close()


def test_a_file_shorter_than_its_checkpoint_knows_is_refused_and_not_filled_with_zeros(tmp_path):
    lines = LineFile(tmp_path / "m.jsonl")
    lines.append([{"step": 0}])
    with pytest.raises(ArtifactError, match=r"m\.jsonl.*shorter"):
        lines.cut(lines.flush() + 1)
    assert (tmp_path / "m.jsonl").read_bytes() == b'{"step": 0}\n'
    lines.close()


def test_a_prune_may_die_at_any_point(tmp_path):
    """Whichever file it dies at: the latest two and the best are whole, and the next prune ends what it began."""
    points = 0
    while True:
        folder = tmp_path / str(points)
        folder.mkdir()
        for step in (1, 2, 3, 4):
            checkpoint.save(folder, step, {"model": {}}, {})
        with pytest.MonkeyPatch.context() as patch:
            count = iter(range(points, -1, -1))

            def dying(real, count=count):
                def call(*args, **kwargs):
                    if next(count) == 0:
                        raise KeyboardInterrupt
                    return real(*args, **kwargs)

                return call

            for name in ("unlink", "rmdir"):
                patch.setattr(os, name, dying(getattr(os, name)))
            try:
                checkpoint.prune(folder, 1)
                break
            except KeyboardInterrupt:
                points += 1
        for step in (1, 3, 4):
            assert checkpoint.load(folder / f"checkpoints/step-{step:08d}")
        checkpoint.prune(folder, 1)
        assert checkpoint.steps(folder) == [1, 3, 4]
    assert points == 4  # three files and their folder


# -- power, clocks, places ----------------------------------------------------------------------------


def test_what_a_checkpoint_knows_is_on_the_disk_before_it_has_its_name(tmp_path, monkeypatch):
    events, fsync, rename = [], os.fsync, os.rename
    monkeypatch.setattr(os, "fsync", lambda n: (events.append(os.readlink(f"/proc/self/fd/{n}")), fsync(n))[1])
    monkeypatch.setattr(os, "rename", lambda a, b: (events.append(str(b)), rename(a, b))[1])
    run = train(*TINY, runs=tmp_path)
    named = [place for place, path in enumerate(events) if path.endswith("checkpoints/step-00000002")]
    first = events[: named[0]]
    for name in ("metrics.jsonl", "timing.jsonl"):
        written = [place for place, path in enumerate(first) if path == str(run.path / name)]
        assert written and "step-00000001" in " ".join(first[: written[-1]])  # once more since the checkpoint before
    assert events[named[0] + 1] == str(run.path / "checkpoints")


def test_the_clock_may_jump(tmp_path, monkeypatch):
    """Folders stay apart and the latest checkpoint is that of the highest step, whatever the clock says."""
    draw, now = random.Random(0), [datetime.datetime(2026, 10, 25, 1, tzinfo=datetime.UTC)]

    class Jumping:
        @staticmethod
        def now(zone):
            now[0] += datetime.timedelta(seconds=draw.choice([0, 0, 1, -1, 3600, -3600, 86400, -86400]))
            return now[0]

    monkeypatch.setattr(folders, "datetime", Jumping)
    assert len({claim(tmp_path, "x") for _ in range(1000)}) == 1000
    for step in range(1, 9):
        path = checkpoint.save(tmp_path, step, {"model": {}}, {})
        os.utime(path, (draw.randrange(10**9),) * 2)
        assert checkpoint.latest(tmp_path)[0].step == step


def test_a_run_goes_on_elsewhere(whole, tmp_path, monkeypatch):
    """Moved, reached by a link, from another folder, without a home."""
    with pytest.MonkeyPatch.context() as patch:
        signal_in(patch, Loop, "train", 6, signal.SIGTERM)
        with pytest.raises(Interrupted):
            train(*SMALL, runs=tmp_path / "here")
    moved = shutil.move(only_run(tmp_path / "here").path, tmp_path / "there")
    (tmp_path / "link").symlink_to(moved)
    monkeypatch.chdir("/")
    monkeypatch.setenv("HOME", "/nonexistent")
    monkeypatch.setenv("LC_ALL", "C")
    again = resume(tmp_path / "link")
    assert bits(again) == bits(whole) and not again.info["warnings"]


# -- another machine, configuration or data -----------------------------------------------------------


def test_other_instructions_or_another_torch_are_said(whole, tmp_path, monkeypatch):
    copy = shutil.copytree(whole.path, tmp_path / "copy")
    others = {"arithmetic": "AVX3", "threads": 7, "device": "tpu", "versions": {**whole.info["versions"], "torch": "0"}}
    (copy / "run.json").write_text(json.dumps({**whole.info, **others}))
    warnings = resume(copy, f"trainer.steps={STEPS + 1}").info["warnings"]
    assert len(warnings) == 1 and warnings[0].startswith("bit-exactness is not promised: ")
    assert all(name in warnings[0] for name in ("arithmetic AVX3 -> ", "threads 7 -> ", "device tpu", "torch 0 -> "))
    monkeypatch.setenv("MKL_CBWR", "COMPATIBLE")
    assert moecli.run.arithmetic().endswith(" MKL_CBWR=COMPATIBLE")


def test_every_key_that_makes_another_run_is_refused_by_name():
    """Each key of the configuration is changed once; those that may change are taken."""
    stored = config.compose(SMALL).config
    refused = 0
    for key, value in config.flatten(stored):
        changed = json.loads(json.dumps(stored))
        *path, last = key.split(".")
        node = changed
        for name in path:
            node = node[name]
        node[last] = [value]  # another than it was, whatever it was
        if key in MAY_CHANGE:
            moecli.run._refuse_other_run(stored, changed)
        else:
            with pytest.raises(ArtifactError, match=key):
                moecli.run._refuse_other_run(stored, changed)
            refused += 1
    assert refused >= 30
    moecli.run._refuse_other_run(stored, stored)


def test_one_changed_byte_of_the_data_is_refused(tmp_path):
    file = tmp_path / "d.csv"
    rows = "".join(f"{i % 7}.{i},{i % 5}.5\n" for i in range(40))
    file.write_text("x,y\n" + rows)
    words = ["task=table", f"task.path={file}", "task.target=y", "trainer.steps=2", "trainer.batch_size=10"]
    run = train(*words, runs=tmp_path / "r")
    data, draw = file.read_bytes(), random.Random(0)
    for _ in range(20):
        at = draw.choice([i for i, byte in enumerate(data) if chr(byte).isdigit()])
        file.write_bytes(data[:at] + bytes([48 + (data[at] - 47) % 10]) + data[at + 1 :])
        with pytest.raises(DataError):
            resume(run.path, "trainer.steps=3")
    file.write_bytes(data)
    assert resume(run.path, "trainer.steps=3").info["status"] == "finished"
