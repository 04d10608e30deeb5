"""What a large text costs to read, and what share of a training step goes into loading its data.

python benchmarks/text.py                # both, about three minutes on an idle core
python benchmarks/text.py large [MB]     # a generated text of 500 MB: rate and memory, and again from the cache
python benchmarks/text.py loading        # each task that needs no file, with the model it recommends
"""

from __future__ import annotations

import os
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from multiprocessing import get_context
from pathlib import Path

import numpy as np

PATHS = {"text", "table", "images", "sklearn"}  # tasks of which a file or a name must be given
SUBWORDS = 20  # MB that bpe is timed on
REPEATS, STEPS = 50, 7


def large(megabytes: int) -> None:
    """Each reading in a process of its own, so that only its memory counts."""
    with tempfile.TemporaryDirectory() as folder:
        os.environ["MOE_CACHE"] = folder
        whole, part = Path(folder) / "whole.txt", Path(folder) / "part.txt"
        write(whole, megabytes)
        write(part, min(megabytes, SUBWORDS))
        for file, tokens, what in [
            (whole, "characters", "first"),
            (whole, "characters", "from the cache"),
            (whole, "bytes", "first"),
            (part, "bpe", "first"),
        ]:
            reader = get_context("spawn").Process(target=read, args=(file, tokens, what))
            reader.start()
            reader.join()


def write(file: Path, megabytes: int) -> None:
    """Lines of words drawn from 5,000, the frequent ones shorter."""
    draw = np.random.default_rng(0)
    words = ["".join(draw.choice(list("etaoinshrdlucmfwypvbgk"), size=2 + rank // 700)) for rank in range(5000)]
    with open(file, "w") as stream:
        while stream.tell() < megabytes * 1e6:
            chosen = (5000 * draw.random(120_000) ** 2).astype(int)
            lines = (" ".join(words[word] for word in line) for line in chosen.reshape(-1, 12))
            stream.write("\n".join(lines) + "\n")


def read(file: Path, tokens: str, what: str) -> None:
    import torch

    from moecli.tasks.text import Text

    torch.set_num_threads(1)
    before, started, worked = peak(), time.perf_counter(), time.process_time()
    task = Text(str(file), tokens=tokens)
    seconds, worked = time.perf_counter() - started, time.process_time() - worked
    batch = median(lambda step: task.train_batch(step, 32, 0), REPEATS)
    size = file.stat().st_size / 1e6
    print(
        f"{size:.0f} MB as {tokens}, {what}: {seconds:.1f} s ({worked:.1f} s of the processor, "
        f"{size / worked:.0f} MB/s), memory {before:.0f} MB before and {peak():.0f} MB at most; "
        f"a batch of 32 windows {1000 * batch:.2f} ms",
        flush=True,
    )


def peak() -> float:
    """The most resident memory so far, in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3


def loading() -> None:
    from moecli import config

    for name in sorted(set(config.registry()["task"]) - PATHS):
        batch, step = one_task(name)
        print(
            f"{name:16} batch {1000 * batch:8.3f} ms, step {1000 * step:8.1f} ms, share {batch / (batch + step):6.2%}"
        )


def one_task(name: str) -> tuple[float, float]:
    """Seconds of a batch, and of forward and backward on it."""
    from moecli.config import compose
    from moecli.run import assemble

    built = assemble(compose([f"task={name}"]))
    size = built.config["trainer"].get("batch_size", 128)
    batches = [built.task.train_batch(step, size, 0) for step in range(STEPS)]

    def train(step: int) -> None:
        batch = batches[step]
        output = built.model(batch.x, batch.known)
        built.objective(output, batch.target, batch.weight)["total"].backward()

    return median(lambda step: built.task.train_batch(step, size, 0), REPEATS), median(train, STEPS)


def median(work: Callable[[int], object], repeats: int) -> float:
    seconds = []
    for step in range(repeats):
        started = time.perf_counter()
        work(step)
        seconds.append(time.perf_counter() - started)
    return statistics.median(seconds)


if __name__ == "__main__":
    asked = sys.argv[1] if sys.argv[1:] else "both"
    if asked in ("both", "large"):
        large(int(sys.argv[2]) if sys.argv[2:] else 500)
    if asked in ("both", "loading"):
        loading()
