"""A report is there whole or not at all, whenever its writer dies."""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from moecli.report.page import gather, html, write


@pytest.fixture(autouse=True)
def ready(trained, monkeypatch):
    """What is killed is the writing: the page is gathered and rendered before."""
    content = gather.gather([trained])
    text = html.page(content)
    monkeypatch.setattr(write, "gather", lambda paths, by: content)
    monkeypatch.setitem(write.WRITERS, ".html", lambda content: text)


def torn(out: Path, prepare: Callable[[], None], kills: int, seed: int) -> int:
    """Kill so many writers at a random time; how often ``out`` was neither the old report nor the new one."""
    draw, count = random.Random(seed), 0
    started = time.monotonic()
    write.write([], out)
    span = time.monotonic() - started
    new = out.read_bytes()
    for _ in range(kills):
        old = b"the report of before" * 50_000
        out.write_bytes(old)
        child = os.fork()
        if child == 0:
            with open(os.devnull, "w") as nowhere:
                os.dup2(nowhere.fileno(), 2)
            prepare()
            write.write([], out)
            os._exit(0)
        time.sleep(draw.uniform(0, 3 * span))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        count += out.read_bytes() not in (old, new)
    return count


def test_fifty_kills_leave_the_old_report_or_the_new_one(tmp_path):
    assert torn(tmp_path / "x.html", lambda: None, kills=50, seed=0) == 0
    assert {path.name for path in tmp_path.iterdir() if not path.name.startswith(".tmp-")} == {"x.html"}


def test_the_check_sees_a_writer_that_writes_in_place(tmp_path):
    def in_place(path, data):
        with open(path, "wb", buffering=0) as file:
            file.write(data[: len(data) // 2])
            time.sleep(60)  # until it is killed, however quick or slow the disk was

    assert torn(tmp_path / "x.html", lambda: setattr(write, "write_whole", in_place), kills=20, seed=0) > 0
