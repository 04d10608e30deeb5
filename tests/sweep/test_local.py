"""A run requested is a run finished or explained, whatever dies: workers, their supervisor, the disk."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from functools import partial
from pathlib import Path

import pytest

from moecli.errors import ConflictError, EnvironmentFailure
from moecli.record.folder import find_runs
from moecli.record.lock import locked
from moecli.sweep import local, worker
from moecli.sweep.folder import MOST_DEATHS, Sweep
from moecli.sweep.lease import is_gone
from tests.sweep.small import TINY
from tests.sweep.standin import STEPS, swept, value
from tests.waiting import until

ROOT = Path(__file__).resolve().parents[2]
SUPERVISE = """
import sys
from pathlib import Path
from moecli.errors import MoeError
from moecli.sweep import local
from moecli.sweep.folder import Sweep
from tests.sweep.test_local import standin
try:
    local.run(Sweep(Path(sys.argv[1])), 2, standin("steps", float(sys.argv[2])))
except MoeError as error:
    print(error)
    sys.exit(error.code)
"""


def standin(what="steps", seconds=0.0):
    return partial(_words, what, seconds)


def _words(what, seconds, folder):
    return [sys.executable, "-m", "tests.sweep.standin", str(folder), what, str(seconds)]


def workers_of(folder) -> list[int]:
    """Living processes that work on a sweep's folder."""
    found = []
    for entry in Path("/proc").iterdir():
        try:
            words = (entry / "cmdline").read_bytes().split(b"\0") if entry.name.isdecimal() else []
        except OSError:
            continue
        if str(folder).encode() in words and b"tests.sweep.standin" in words:
            found.append(int(entry.name))
    return found


def statuses(sweep) -> list[str]:
    return [record["status"] for _, record in sorted(Sweep(sweep.path).done().items())]


def steps_of(sweep) -> list[tuple[str, int]]:
    lines = (sweep.path / "logs" / "steps.log").read_text().splitlines()
    return [(line.split()[0], int(line.split()[1])) for line in lines]


def supervisor(sweep, seconds=0.05):
    return subprocess.Popen(
        [sys.executable, "-c", SUPERVISE, str(sweep.path), str(seconds)], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )


def check_values(sweep):
    """Every run finished once, with the value that it always has."""
    done = Sweep(sweep.path).done()
    assert len(done) == len(sweep.plan.jobs(sweep.points()))
    for job in sweep.plan.jobs(sweep.points()):
        assert done[job.id]["value"] == value(job)


# -- workers that die ---------------------------------------------------------------------------------


def kill_some(sweep, kills: int, seed: int, killed: list[int], between: float):
    """Kill a worker at random moments, until so many have died."""
    draw = random.Random(seed)
    while len(killed) < kills and not sweep.is_complete():
        time.sleep(draw.uniform(0, between))
        held = [who["pid"] for who in sweep.leases.held().values() if who]
        if held:
            try:
                os.kill(draw.choice(held), signal.SIGKILL)
                killed.append(1)
            except ProcessLookupError:
                pass


def test_killed_workers_lose_no_run(tmp_path):
    sweep = swept(tmp_path, "num_experts=1..6", "seed=0,1")
    killed = []
    killer = threading.Thread(target=kill_some, args=(Sweep(sweep.path), 4, 1, killed, 0.3))
    killer.start()
    local.run(sweep, 2, standin(seconds=0.05))
    killer.join()
    assert len(killed) == 4
    done = Sweep(sweep.path).done()
    assert len(done) == 12
    for job in sweep.plan.jobs(sweep.points()):
        record = done[job.id]
        explained = record["status"] == "failed" and f"died {MOST_DEATHS} times" in record["error"]
        assert explained or record["value"] == value(job)
    assert sum(record["status"] == "finished" for record in done.values()) >= 11  # 4 kills are enough for one at most
    assert len(steps_of(sweep)) <= 12 * (STEPS + 1) + len(killed), "a run began anew instead of where it was"


@pytest.mark.parametrize(
    ("what", "how"),
    [
        pytest.param("segfault", "SIGSEGV", marks=pytest.mark.slow),
        ("abort", "SIGABRT"),
        pytest.param("exit", "exit 3", marks=pytest.mark.slow),
    ],
)
def test_a_run_that_takes_its_worker_with_it_is_explained(tmp_path, what, how):
    sweep = swept(tmp_path, "num_experts=1..4")
    local.run(sweep, 2, standin(what))
    assert statuses(sweep) == ["finished", "failed", "finished", "finished"]
    assert f"its worker died {MOST_DEATHS} times ({how})" in sweep.done()["0001-seed0"]["error"]
    assert sweep.value(sweep.points()[1]) is None and [p.number for p, _ in sweep.ranked()] == [0, 2, 3]


def test_going_on_tries_again_what_died_and_nothing_else(tmp_path):
    sweep = swept(tmp_path, "num_experts=1..3")
    local.run(sweep, 1, standin("abort"))
    before = steps_of(sweep)
    local.run(Sweep(sweep.path), 1, standin())
    check_values(sweep)
    assert [job for job, _ in steps_of(sweep)[len(before) :]] == ["0001-seed0"] * (STEPS + 1)


def test_a_stopped_worker_keeps_its_run(tmp_path):
    sweep = swept(tmp_path, "num_experts=1,2")
    stopped = []

    def stop_first():
        if not stopped and (held := sweep.leases.held()):
            stopped.append(next(iter(held.values()))["pid"])
            os.kill(stopped[0], signal.SIGSTOP)
            threading.Timer(1.0, os.kill, (stopped[0], signal.SIGCONT)).start()

    local.run(sweep, 2, standin(seconds=0.02), stop_first)
    check_values(sweep)
    held_by = [line.split()[2] for line in (sweep.path / "logs" / "steps.log").read_text().splitlines()]
    jobs = dict(zip(held_by, [job for job, _ in steps_of(sweep)], strict=True))
    assert stopped and len(steps_of(sweep)) == 2 * (STEPS + 1) and str(stopped[0]) in jobs


def test_workers_that_never_begin_end_the_sweep(tmp_path):
    with pytest.raises(EnvironmentFailure, match=r"no such thing.*worker-0\.log.*--resume"):
        local.run(
            swept(tmp_path, "seed=0,1"), 1, lambda folder: [sys.executable, "-c", "raise OSError('no such thing')"]
        )


def test_a_full_disk_stops_the_sweep_and_it_goes_on_later(tmp_path):
    sweep = swept(tmp_path, "num_experts=1..4")
    with pytest.raises(EnvironmentFailure, match="No space left"):
        local.run(sweep, 1, standin("full"))
    assert not workers_of(sweep.path) and len(sweep.done()) < 4
    local.run(Sweep(sweep.path), 2, standin())
    check_values(sweep)


def test_what_a_worker_prints_is_kept_and_bounded(tmp_path, monkeypatch):
    monkeypatch.setattr(local, "MOST_LOG", 200_000)
    sweep = swept(tmp_path, "num_experts=1..3")
    local.run(sweep, 1, standin("flood"))
    check_values(sweep)
    sizes = [file.stat().st_size for file in (sweep.path / "logs").glob("worker-0.log*")]
    assert len(sizes) == 2 and 0 < sum(sizes) < 2 * 200_000


def test_one_supervisor_at_a_time(tmp_path):
    sweep = swept(tmp_path, "seed=0,1")
    with locked(sweep.path), pytest.raises(ConflictError):
        local.run(sweep, 1, standin())


# -- whoever waits ------------------------------------------------------------------------------------


def test_a_worker_waits_for_what_a_peer_may_yet_drop(tmp_path, monkeypatch):
    """Bug 3: one that leaves when nothing is free leaves the run of a peer that dies to nobody."""
    monkeypatch.setattr(worker, "TICK", 0.01)
    sweep = swept(tmp_path, "seed=0,1")
    peer = Sweep(sweep.path).claim()
    trained = []

    def train(claimed):
        trained.append(claimed.job.id)
        return {"status": "finished", "value": 1.0}

    threading.Timer(0.3, peer.lease.free).start()
    worker.pull(sweep, train)
    assert trained == ["0000-seed1", "0000-seed0"]


def test_a_run_that_another_still_writes_is_left_alone(tmp_path, monkeypatch):
    monkeypatch.setattr(worker, "TICK", 0.01)
    sweep = swept(tmp_path, "seed=0,1")
    tries = []

    def train(claimed):
        tries.append(claimed.job.id)
        if len(tries) < 3:
            raise ConflictError("process 1 is training it")
        return {"status": "finished", "value": 1.0}

    worker.pull(sweep, train)
    assert tries == ["0000-seed0"] * 3 + ["0000-seed1"] and statuses(sweep) == ["finished"] * 2


# -- supervisors that die -----------------------------------------------------------------------------


def test_a_killed_supervisor_leaves_no_orphan_and_nothing_is_repeated(tmp_path):
    sweep = swept(tmp_path, "num_experts=1..4", "seed=0,1")
    running = supervisor(sweep)
    until(lambda: len(Sweep(sweep.path).done()) >= 2)
    finished = Sweep(sweep.path).done()
    running.kill()
    running.wait()
    until(lambda: not workers_of(sweep.path), 6)
    numbers = sorted(os.listdir(sweep.path / "done"))
    local.run(Sweep(sweep.path), 2, standin())
    check_values(sweep)
    assert set(finished) <= {name.partition(".")[0] for name in numbers}
    begun = steps_of(sweep)
    assert all(begun.count((job, 0)) == 1 for job in finished), "a finished run was repeated"
    assert max(begun.count(at) for at in begun) <= 2, "a run began anew instead of where it was"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_gives_the_prompt_back(tmp_path, number):
    sweep = swept(tmp_path, "num_experts=1..4")
    running = supervisor(sweep, 0.3)
    until(sweep.leases.held)
    running.send_signal(number)
    said, _ = running.communicate(timeout=5)
    assert running.returncode == 128 + number
    assert f"stopped by {number.name}" in said and f"moe sweep --resume {sweep.path}" in said
    assert not workers_of(sweep.path)
    assert all(map(is_gone, sweep.leases.held().values())) and Sweep(sweep.path).state == "stopped"


def test_a_second_signal_waits_for_nothing(tmp_path):
    sweep = swept(tmp_path, "seed=0,1")
    running = supervisor(sweep, 0.3)
    until(sweep.leases.held)
    held = [who["pid"] for who in sweep.leases.held().values()]
    for pid in held:
        os.kill(pid, signal.SIGSTOP)  # it will not leave in time
    running.send_signal(signal.SIGINT)
    time.sleep(0.5)
    running.send_signal(signal.SIGINT)
    assert running.wait(3) == 130  # sooner than the grace of workers ends
    for pid in held:
        os.kill(pid, signal.SIGCONT)
    until(lambda: not workers_of(sweep.path), 6)
    running.stdout.close()


def test_a_spent_budget_begins_no_more(tmp_path):
    sweep = swept(tmp_path, "seed=0..9")
    local.run(sweep, 1, standin(seconds=0.05), lambda: sweep.done() and sweep.allow(-1.0))
    found = Sweep(sweep.path)
    assert 0 < len(found.done()) < 10 and set(statuses(sweep)) == {"finished"} and found.state == "out of time"
    found.allow(None)
    local.run(found, 2, standin())
    check_values(sweep)


# -- folders ------------------------------------------------------------------------------------------


def test_a_hundred_starts_under_one_name_have_a_hundred_folders(tmp_path):
    plan = swept(tmp_path, "seed=0,1", name="other").plan
    made = []
    threads = [
        threading.Thread(target=lambda: made.append(Sweep.create(tmp_path, "one", plan).path)) for _ in range(100)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(made)) == 100 and all(json.loads((path / "plan.json").read_bytes()) for path in made)


def test_a_share_of_the_cores(monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS")
    monkeypatch.setattr(local, "cores", lambda: 8)
    assert [local.threads(n) for n in (1, 3, 8, 16)] == [8, 2, 1, 1]
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    assert local.threads(1) == 2


# -- many -----------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("real", [False, True])
def test_fifty_kills_in_two_hundred_runs(tmp_path, real):
    """Every run is finished or explained; with ``real`` they are trainings, and their workers import torch anew."""
    sweep = swept(tmp_path, *(TINY if real else []), "router=top_k,dense", "num_experts=2..5", "seed=0..24")
    killed, started = [], time.monotonic()
    killer = threading.Thread(target=kill_some, args=(Sweep(sweep.path), 50, 7, killed, 1.2 if real else 0.6))
    killer.start()
    local.run(sweep, 2, local.worker_command if real else standin(seconds=0.05))
    killer.join()
    done = Sweep(sweep.path).done()
    finished = {job for job, record in done.items() if record["status"] == "finished"}
    print(f"{len(killed)} kills, {len(finished)} finished, {time.monotonic() - started:.0f} s")
    assert len(killed) == 50 and len(done) == 200
    assert all("its worker died" in done[job]["error"] for job in done.keys() - finished)
    folders = [path.parent.name for path in find_runs([sweep.path])]
    assert len(folders) == len(set(folders))
    assert finished <= set(folders) <= done.keys() if real else not folders
