"""A disk that is full, fails, is too small, read-only, or gone: one line, exit 5, and the old checkpoint loads."""

from __future__ import annotations

import errno
import os
import re
import shutil
import subprocess
import sys

import pytest

from moecli.errors import EnvironmentFailure
from moecli.record import checkpoint
from moecli.record.folder import LineFile, Run, read_lines, require_room
from moecli.run import resume
from tests.faults.forking import TINY, Done
from tests.faults.test_interruption import one_line, only_run

EACH = [*TINY, "trainer.checkpoint_every=1"]


@pytest.fixture
def small_disk(tmp_path):
    """Mount a file system of its own: ``small_disk("size=1m")`` -> its folder."""
    mounted = []

    def mount(options: str):
        folder = tmp_path / f"disk{len(mounted)}"
        folder.mkdir()
        done = subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", folder], capture_output=True, text=True)
        if done.returncode:
            pytest.skip(f"no mount here: {done.stderr.strip()}")
        mounted.append(folder)
        return folder

    yield mount
    for folder in mounted:
        subprocess.run(["umount", "-l", folder], check=True)


def is_sound(run: Run, fewest: int = 1) -> None:
    """Its checkpoints load, and nothing half-written lies beside them."""
    steps = checkpoint.steps(run.path)
    assert len(steps) >= fewest
    for step in steps:
        checkpoint.load(run.path / f"checkpoints/step-{step:08d}")
    assert not list(run.path.rglob(".tmp-*"))


# -- a write that fails -------------------------------------------------------------------------------

FAILS = """
import itertools, os
count, name, step = itertools.count(1), {name!r}, None
from moecli.record import checkpoint
save, real = checkpoint.save, getattr(os, name)
def fail(*args):
    if step == 3 and next(count) == {nth}:
        raise OSError({error}, os.strerror({error}), *[str(path) for path in args[:1] if name != "fsync"])
    return real(*args)
def saving(folder, at, *args):
    global step
    step = at
    return save(folder, at, *args)
checkpoint.save = saving
setattr(os, name, fail)
"""
POINTS = [("fsync", 1), ("fsync", 5), ("fsync", 6), ("fsync", 7), ("replace", 1), ("replace", 5), ("rename", 1)]


@pytest.mark.parametrize(("name", "nth"), POINTS)
def test_a_save_that_fails_keeps_the_old_checkpoints_and_is_one_line(name, nth, moe, tmp_path):
    """Every kind of failure at each kind of point; tests/record has every point of the save itself."""
    error = [errno.ENOSPC, errno.EIO, errno.EDQUOT][nth % 3]
    done = moe("train", *EACH, "--quiet", "--runs", tmp_path, setup=FAILS.format(name=name, nth=nth, error=error))
    one_line(done, 5, "checkpoints", "the disk failed" if error == errno.EIO else "the disk is full (")
    run = only_run(tmp_path)
    assert run.info["status"] == "failed" and os.strerror(error) in run.info["error"]
    assert "Traceback" in next(run.path.glob("crash-*.log")).read_text()
    is_sound(run, fewest=2)
    assert resume(run.path).info["status"] == "finished"


def test_a_rename_that_does_nothing_is_noticed(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "rename", lambda *args: None)
    with pytest.raises(EnvironmentFailure, match="does not read back"):
        checkpoint.save(tmp_path, 1, {"model": {}}, {})


def test_short_writes_are_gone_on_with(tmp_path, monkeypatch):
    write, calls = os.write, []
    monkeypatch.setattr(os, "write", lambda number, data: (calls.append(1), write(number, data[:7]))[1])
    lines = LineFile(tmp_path / "m.jsonl")
    lines.append({"step": step, "value": "é"} for step in range(50))
    lines.close()
    monkeypatch.undo()
    assert len(calls) > 100 and [line["step"] for line in read_lines(tmp_path / "m.jsonl")] == list(range(50))


# -- a disk that is full ------------------------------------------------------------------------------


@pytest.mark.parametrize("limit", [600, 1_000, 3_000, 6_000, 12_000])
def test_files_that_may_grow_no_more_are_a_full_disk(limit, moe, tmp_path):
    """RLIMIT_FSIZE, which needs no root: config.yaml, the metrics, the trace and the weights meet it in turn."""
    setup = f"import resource; resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit}))"
    done = moe("train", *EACH, "trainer.steps=100", "num_experts=50", "--quiet", "--runs", tmp_path, setup=setup)
    one_line(done, 5, "the disk is full (")
    assert not list(tmp_path.rglob(".tmp-*"))
    for found in tmp_path.glob("*/*/run.json"):
        is_sound(Run(found.parent), fewest=0)


def test_a_disk_filling_up_stops_at_the_last_checkpoint_that_fitted(moe, small_disk):
    disk = small_disk("size=400k")
    fills = (
        "from moecli.training.gradient import Loop; real = Loop.train\n"
        "def train(loop, step):\n"
        f"    if step == 4: open({str(disk / 'other')!r}, 'wb', buffering=0).write(bytes(10**6))\n"
        "    real(loop, step)\n"
        "Loop.train = train"
    )
    done = moe("train", *EACH, "--quiet", "--runs", disk, setup=fills)
    one_line(done, 5, "the disk is full (0.0 MB and ", str(disk))
    run = only_run(disk)
    is_sound(run, fewest=2)
    assert checkpoint.steps(run.path)[-1] == 4
    (disk / "other").unlink()
    assert resume(run.path).info["status"] == "finished"


def test_a_disk_without_room_for_the_checkpoints_to_come_is_refused_at_the_first_step(moe, small_disk):
    """Four stand at once: the latest two, the best, and the one being written; each is 1.7 MB here."""
    words = [
        "train",
        "task=digits",
        "expert.hidden=128",
        "trainer.steps=6",
        "trainer.eval_every=2",
        "threads=1",
        "--quiet",
    ]
    disk = small_disk("size=6m")
    done = moe(*words, "--runs", disk)
    one_line(done, 5, "3 checkpoints need", "MB are free")
    run = only_run(disk)
    is_sound(run)
    (path,) = run.path.glob("checkpoints/step-*")
    size = sum(file.stat().st_size for file in path.iterdir())
    needed = float(re.search(r"need ([\d.]+) MB", done.err)[1]) * 1e6
    assert needed == pytest.approx(3 * size, rel=0.01) and checkpoint.steps(run.path) == [1]
    assert moe(*words, "--runs", small_disk("size=16m")).code == 0


def test_room_is_what_the_disk_says(tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(100, 50, 50))
    require_room(tmp_path, 50, "two of it")
    with pytest.raises(EnvironmentFailure, match="two of it need"):
        require_room(tmp_path, 51, "two of it")


@pytest.mark.parametrize("files", [6, 12, 30])
def test_no_more_files_is_a_full_disk_too(files, moe, small_disk):
    disk = small_disk(f"size=16m,nr_inodes={files}")
    done = moe("train", *EACH, "--quiet", "--runs", disk)
    one_line(done, 5, "the disk is full (16.", "MB and ")
    assert int(re.search(r"and (\d+) files", done.err)[1]) < 6
    for found in disk.glob("*/*/run.json"):
        is_sound(Run(found.parent), fewest=0)


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("strace"), reason="needs strace")
@pytest.mark.parametrize("call", ["fsync:error=EIO", "fsync:error=ENOSPC", "rename:error=EDQUOT"])
def test_the_kernel_s_own_failures(call, tmp_path):
    """An unmodified command, failed by the kernel at the nth system call, for n spread over them."""
    words = [sys.executable, "-m", "moecli", "train", *EACH, "--quiet", "--runs"]
    for nth in (1, 12, 30):
        root = tmp_path / str(nth)
        root.mkdir()
        inject = ["strace", "-f", "-qq", "-o", os.devnull, "-e", f"inject={call}:when={nth}"]
        done = subprocess.run([*map(str, inject), *words, root], capture_output=True, text=True)
        one_line(Done(done.returncode, done.stdout, done.stderr), 5)
        for found in root.glob("*/*/run.json"):
            is_sound(Run(found.parent), fewest=0)


# -- permissions --------------------------------------------------------------------------------------


# Root is held to permissions too, once it has given up all its capabilities.
NO_POWERS = """
import ctypes
assert ctypes.CDLL(None).capset((ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()) == 0
"""


def test_a_place_that_may_not_be_written_is_refused_before_any_work(moe, tmp_path):
    (tmp_path / "closed").mkdir(mode=0o555)
    done = moe("train", *TINY, "--runs", tmp_path / "closed", setup=NO_POWERS)
    one_line(done, 5, "closed", "Permission denied", "--runs")
    assert not list((tmp_path / "closed").iterdir())
    assert moe("train", *TINY, "--runs", tmp_path / "mine", setup=NO_POWERS).code == 0


def test_permission_lost_on_the_way_ends_at_the_next_save(moe, tmp_path):
    loses = (
        "from moecli.training.gradient import Loop; real = Loop.train\n"
        "def train(loop, step):\n"
        "    real(loop, step)\n"
        "    if step == 2: __import__('os').chmod(loop.job.record.folder / 'checkpoints', 0o555)\n"
        "Loop.train = train"
    )
    words = [*TINY, "trainer.checkpoint_every=2", "trainer.eval_every=6"]
    done = moe("train", *words, "--quiet", "--runs", tmp_path / "mine", setup=NO_POWERS + loses)
    one_line(done, 5, "checkpoints", "Permission denied")
    run = only_run(tmp_path / "mine")
    is_sound(run, fewest=2)
    assert checkpoint.steps(run.path)[-1] == 2 and run.info["status"] == "failed"
    one_line(moe("train", "--resume", run.path, setup=NO_POWERS), 5, "Permission denied")


def test_a_read_only_run_is_read_and_not_resumed(moe, tmp_path):
    assert moe("train", *TINY, "--runs", tmp_path / "mine", setup=NO_POWERS).code == 0
    run = only_run(tmp_path / "mine")
    for path in [run.path, *run.path.rglob("*")]:
        path.chmod(0o555 if path.is_dir() else 0o444)
    for words in (["eval", run.path], ["show", run.path], ["compare", run.path]):
        assert moe(*words, setup=NO_POWERS).code == 0
    one_line(moe("train", "--resume", run.path, setup=NO_POWERS), 5, "Permission denied")


@pytest.mark.parametrize("mask", [0o002, 0o022, 0o077])
def test_every_file_of_a_run_has_the_mode_that_the_umask_leaves(mask, moe, tmp_path):
    assert moe("train", *TINY, "--runs", tmp_path, setup=f"import os; os.umask({mask})").code == 0
    found = list(only_run(tmp_path).path.rglob("*"))
    assert len(found) > 15
    for path in found:
        assert path.stat().st_mode & 0o777 == (0o777 if path.is_dir() else 0o666) & ~mask, path


# -- a folder that is gone ----------------------------------------------------------------------------


def test_a_run_folder_that_is_deleted_does_not_come_back(moe, tmp_path):
    deletes = (
        "import shutil; from moecli.training.gradient import Loop; real = Loop.train\n"
        "def train(loop, step):\n"
        "    real(loop, step)\n"
        "    if step == 3: shutil.rmtree(loop.job.record.folder)\n"
        "Loop.train = train"
    )
    one_line(moe("train", *TINY, "--quiet", "--runs", tmp_path, setup=deletes), 5, str(tmp_path), "No such file")
    assert not [path for path in tmp_path.rglob("*") if path.parent.parent != tmp_path and path.parent != tmp_path]
    assert not list(tmp_path.glob("*/*"))


def test_an_unexpected_error_leaves_its_traceback_in_the_run_folder(moe, tmp_path):
    breaks = "from moecli.training.gradient import Loop; Loop.train = lambda loop, step: {}['missing']"
    done = moe("train", *TINY, "--quiet", "--runs", tmp_path / "a", setup=breaks)
    one_line(done, 1, "internal: KeyError: 'missing'", "MOE_DEBUG=1")
    (log,) = only_run(tmp_path / "a").path.glob("crash-*.log")
    assert "Traceback" in log.read_text() and "KeyError: 'missing'" in log.read_text()
    shown = f"import os; os.environ['MOE_DEBUG'] = '1'; {breaks}"
    assert "Traceback" in moe("train", *TINY, "--quiet", "--runs", tmp_path / "b", setup=shown).err
