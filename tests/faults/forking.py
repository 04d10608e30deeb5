"""Run `moe` in forked children of a process that has imported it, so that many faults cost one import.

A child is a process of its own: what it does to its limits, its streams, its user or moecli's functions dies with it.
The server reads a JSON job a line and answers with a JSON line; it never computes, so that a child may.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

TINY = ["task=piecewise", "task.rows=60", "router=dense", "trainer.steps=6", "trainer.batch_size=20", "trainer.eval_every=2",
        "threads=1"]  # fmt: skip


class Done(NamedTuple):
    """As tests/cli has it: exit code (negative: the signal that killed it), standard output and error."""

    code: int
    out: str
    err: str


class Forking:
    """Jobs for the server: ``moe(words, setup=CODE, stdout=...)``; streams are kept, "closed", "broken" or a path."""

    def __init__(self):
        self.server = subprocess.Popen(
            [sys.executable, "-m", "tests.faults.forking"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[2],
        )  # fmt: skip

    def __call__(self, *words, setup: str = "", **streams: str) -> Done:
        with tempfile.TemporaryDirectory() as folder:
            job = {"words": [*map(str, words)], "setup": setup, "stdout": f"{folder}/1", "stderr": f"{folder}/2"}
            self.server.stdin.write(json.dumps({**job, **streams}) + "\n")
            self.server.stdin.flush()
            code = json.loads(self.server.stdout.readline())
            said = [Path(folder, name) for name in "12"]
            return Done(code, *(path.read_text() if path.exists() else "" for path in said))

    def close(self) -> None:
        self.server.stdin.close()
        self.server.wait()
        self.server.stdout.close()


def redirect(number: int, name: str, where: str) -> None:
    setattr(sys, name, None)
    if where == "closed":
        os.close(number)
        return
    if where == "broken":
        reader, target = os.pipe()
        os.close(reader)
    else:
        target = os.open(where, os.O_WRONLY | os.O_CREAT, 0o666)
    os.dup2(target, number)
    os.close(target)
    setattr(sys, name, open(number, "w", closefd=False))  # noqa: SIM115


def child(job: dict) -> None:
    """Run the job and leave as the interpreter would."""
    for number, name in ((1, "stdout"), (2, "stderr")):
        redirect(number, name, job[name])
    sys.argv = ["moe", *job["words"]]
    code = 70  # of a child that died otherwise than by leaving
    try:
        exec(job["setup"], {})
        app.main()
    except SystemExit as ended:
        code = ended.code
    finally:
        os._exit(code)


if __name__ == "__main__":
    import moecli.report.terminal  # noqa: F401  # an error would
    from moecli.cli import app
    from tests.training.killing import quick  # with all that a training imports

    quick()
    for line in sys.stdin:
        number = os.fork()
        if number == 0:
            child(json.loads(line))
        print(os.waitstatus_to_exitcode(os.waitpid(number, 0)[1]), flush=True)
