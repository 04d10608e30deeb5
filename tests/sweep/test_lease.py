"""One holder at a time, whatever dies: a lease goes to another when its holder is gone, and never before."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

from moecli.sweep import lease
from moecli.sweep.lease import Leases, identity, is_gone
from tests.waiting import until

TAKE = """
import sys, time
from pathlib import Path
from moecli.sweep.lease import Leases
assert Leases(Path(sys.argv[1])).take(sys.argv[2])
print("taken", flush=True)
time.sleep(60)
"""


@pytest.fixture
def leases(tmp_path):
    return Leases(tmp_path)


def forked(work):
    """Run ``work`` in a child process; returns its number."""
    number = os.fork()
    if number == 0:
        try:
            work()
            os._exit(0)
        except BaseException:
            os._exit(1)
    return number


@pytest.fixture
def holder(leases):
    """Another process that holds ``a``."""
    process = subprocess.Popen([sys.executable, "-c", TAKE, str(leases.folder), "a"], stdout=subprocess.PIPE)
    assert process.stdout.readline() == b"taken\n"
    yield process
    process.kill()
    process.wait()
    process.stdout.close()


def elsewhere(leases, name, age, **changed):
    """A lease of a process on another machine that gave its last sign of life ``age`` seconds ago."""
    path = leases.folder / f"{name}.000000"
    path.write_text(json.dumps({**identity(), "host": "elsewhere", **changed}))
    os.utime(path, (time.time() - age,) * 2)


def test_only_one_of_many_claimers_gets_each_name(leases):
    names = [f"{i:03d}" for i in range(100)]

    def take_all():
        mine = [name for name in names if leases.take(name)]
        Path(leases.folder / f".won-{os.getpid()}").write_text(" ".join(["won", *mine]))
        signal.pause()  # the dead would be robbed

    children = [forked(take_all) for _ in range(10)]
    until(lambda: sum(file.stat().st_size > 0 for file in leases.folder.glob(".won-*")) == len(children))
    for child in children:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    won = Counter(name for file in leases.folder.glob(".won-*") for name in file.read_text().split()[1:])
    assert won == Counter(names)


def test_a_lease_of_a_living_process_is_not_given_away(leases, holder):
    assert leases.take("a") is None
    assert leases.take("b") is not None


def test_a_killed_holder_loses_it_at_once(leases, holder):
    holder.kill()
    holder.wait()
    assert leases.take("a") is not None
    assert leases.deaths("a", leases.standing()) == 1
    assert leases.cause("a", leases.standing()) == lease.GONE


def test_a_zombie_is_gone_although_it_has_its_number_and_start(leases):
    child = forked(lambda: leases.take("a"))
    until(lambda: is_gone({**identity(), "pid": child, "start": lease._start(child)}) is not False)
    assert lease._start(child) is not None  # nobody has reaped it
    assert leases.take("a") is not None
    os.waitpid(child, 0)


def test_a_stopped_holder_is_not_robbed(leases, holder, monkeypatch):
    monkeypatch.setattr(lease, "STALE", 0.05)
    monkeypatch.setattr(lease, "BEAT", 0.01)
    holder.send_signal(signal.SIGSTOP)
    time.sleep(0.3)  # six times as long as a silent holder elsewhere would keep it
    assert leases.take("a") is None
    holder.send_signal(signal.SIGCONT)


def test_a_recycled_process_number_is_another_process():
    assert is_gone(identity()) is False
    assert is_gone({**identity(), "start": "1"}) is True


@pytest.mark.parametrize("changed", [{"host": "elsewhere"}, {"boot": "another"}, {"space": 1}])
def test_of_a_process_elsewhere_only_its_signs_of_life_tell(leases, changed):
    assert is_gone({**identity(), **changed}) is None
    elsewhere(leases, "a", lease.STALE - 10, **changed)
    assert leases.take("a") is None
    elsewhere(leases, "a", lease.STALE + 10, **changed)
    assert leases.take("a") is not None


def test_signs_of_life_keep_it(leases, monkeypatch):
    monkeypatch.setattr(lease, "BEAT", 0.02)
    own = leases.take("a")
    os.utime(own.path, (1, 1))
    own.beat(lambda: None)
    until(lambda: own.path.stat().st_mtime > 1)
    own.free()


def test_who_is_declared_dead_hears_of_it(leases, monkeypatch):
    monkeypatch.setattr(lease, "BEAT", 0.02)
    heard = []
    own = leases.take("a")
    own.beat(lambda: heard.append(True))
    time.sleep(0.1)
    assert not heard
    lease._mark(own.path, "dead")
    until(lambda: heard)
    own.stop()


def test_a_stale_look_takes_nothing(leases, holder):
    """A saw the holder dead; before A acts, B takes the lease, gives it back, and C takes it."""
    holder.kill()
    holder.wait()
    seen_by_a = leases.standing()
    leases.take("a").free()
    kept_by_c = leases.take("a")
    assert leases.take("a", seen_by_a) is None
    assert leases.take("a") is None and kept_by_c.path.name == "a.000002"


def test_a_lease_that_nobody_signed_is_free_after_a_while(leases):
    (leases.folder / "a.000000").touch()
    assert leases.take("a") is None
    os.utime(leases.folder / "a.000000", (time.time() - 2 * lease.BEAT,) * 2)
    assert leases.take("a") is not None


def test_a_disk_that_is_full_leaves_no_half_lease(leases, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", full)
        with pytest.raises(OSError, match="No space"):
            leases.take("a")
    assert leases.take("a") is not None


def test_a_pardon_forgets_deaths_and_keeps_the_living(leases, holder):
    for _ in range(3):
        lease._mark(leases.take("b").path, "dead", "SIGKILL")
    assert leases.deaths("b", leases.standing()) == 3
    assert leases.cause("b", leases.standing()) == "SIGKILL"
    elsewhere(leases, "c", 2 * lease.STALE)
    leases.pardon()
    assert set(leases.standing()) == {"a"}
    assert leases.take("a") is None


def test_a_burial_says_how_and_only_of_the_dead(leases, holder):
    assert leases.bury(holder.pid, "SIGKILL") is None
    holder.kill()
    holder.wait()
    assert leases.bury(holder.pid, "SIGKILL") == "a"
    assert leases.cause("a", leases.standing()) == "SIGKILL"
    assert leases.held() == {}


def test_a_burial_knows_what_another_has_taken_since(leases, holder):
    """Else a worker killed at work would count as one that died idle, of which three in a row end a sweep."""
    holder.kill()
    holder.wait()
    taken = leases.take("a")
    assert leases.bury(holder.pid, "SIGKILL") == "a"
    assert leases.held()["a"] == identity()
    taken.free()
    assert leases.bury(os.getpid(), "SIGKILL") is None
