"""What a checkpoint costs, and how soon a killed run is training again: python benchmarks/resume.py"""

from __future__ import annotations

import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

import torch
from interleave import medians

from moecli.record import checkpoint

REPEATS = 5
WORDS = ["task=spirals", "trainer.steps=1000000", "trainer.eval_every=100", "threads=1", "--quiet"]


def save_and_forget(folder: Path, tensors: dict[str, dict[str, torch.Tensor]]) -> None:
    step = 1 + max(checkpoint.steps(folder), default=0)
    checkpoint.save(folder, step, tensors, {})
    checkpoint.prune(folder, None)


def write(folder: Path, data: bytes) -> None:
    """The least that any checkpoint costs: as many bytes, on the disk."""
    with open(folder / "bytes", "wb") as file:
        file.write(data)
        os.fsync(file.fileno())


def start(*words: str) -> subprocess.Popen:
    return subprocess.Popen([sys.executable, "-m", "moecli", "train", *words], stdout=subprocess.DEVNULL)


def wait_for(root: Path, after: int) -> int:
    """The last checkpoint's step, once it is past ``after``."""
    while True:
        newest = max((s for run in root.glob("*/*/run.json") for s in checkpoint.steps(run.parent)), default=-1)
        if newest > after:
            return newest
        time.sleep(0.005)


def seconds_to_go_on(root: Path) -> float:
    """From SIGKILL to the first step after it, which is saved."""
    training = start(*WORDS, "--runs", str(root))
    wait_for(root, 99)
    training.kill()
    training.wait()
    started, (run,) = time.perf_counter(), root.glob("*/*")
    again = start("--resume", str(run), "--quiet")
    wait_for(root, checkpoint.steps(run)[-1])
    seconds = time.perf_counter() - started
    again.send_signal(signal.SIGKILL)
    again.wait()
    return seconds


if __name__ == "__main__":
    with tempfile.TemporaryDirectory(dir=".") as name:
        folder, data = Path(name), torch.randn(25, 1_000_000)  # 100 MB
        things = {"write": partial(write, folder, data.numpy().tobytes())}
        things["save"] = partial(save_and_forget, folder, {"model": {str(i): row for i, row in enumerate(data)}})
        found = medians(things, REPEATS)
        print(
            f"a checkpoint of 100 MB: {found['save']:.2f} s, {found['save'] / found['write']:.1f} x writing the bytes"
        )
        times = [seconds_to_go_on(folder / f"runs{number}") for number in range(REPEATS)]
        print(
            f"from kill to the first step after it: {statistics.median(times):.2f} s ({min(times):.2f} to {max(times):.2f})"
        )
