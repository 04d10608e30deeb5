"""What the trainer costs beside a bare loop over the same model: python benchmarks/bookkeeping.py

Eight linear experts under a dense linear gate, 1,000 rows of two features, full batch.
"""

from __future__ import annotations

import tempfile
from functools import partial
from pathlib import Path

import torch
from interleave import medians

from moecli.config import build, compose
from moecli.record.recorder import Recorder
from moecli.record.view import view
from moecli.run import Built, assemble, job

STEPS = 2_000
WORDS = [
    "task=regions", "task.rows=1539", "gate=linear", "num_experts=8", "optimizer.lr=0.01",
    f"trainer.steps={STEPS}", "trainer.batch_size=1000000",
]  # fmt: skip


def through_the_trainer(built: Built) -> None:
    with tempfile.TemporaryDirectory() as folder:
        record = Recorder(Path(folder), view(Path(folder) / "log.txt", quiet=True))
        build(built.config["trainer"]).fit(job(built, record))
        record.close()


def bare(built: Built) -> None:
    """No clipping, no schedule, no evaluation, no record."""
    optimizer = build(built.config["optimizer"], params=built.model.parameters())
    batch = built.task.train_batch(0, 1_000_000, 0)
    for _ in range(STEPS):
        loss = built.objective(built.model(batch.x), batch.target)["total"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


if __name__ == "__main__":
    built = assemble(compose(WORDS))
    print(f"{torch.get_num_threads()} threads, {built.task.sizes['train']} rows")
    seconds = medians({"trainer": partial(through_the_trainer, built), "bare loop": partial(bare, built)}, repeats=5)
    for name, value in seconds.items():
        print(f"{name:10s} {STEPS / value:6.0f} steps/s")
    print(f"lost to bookkeeping: {1 - seconds['bare loop'] / seconds['trainer']:.0%}")
