"""Small sweeps of real trainings, and how they are stopped."""

from __future__ import annotations

import os
import signal

import pytest

from moecli.errors import Interrupted
from moecli.record import checkpoint
from moecli.sweep import start, worker
from moecli.sweep.folder import Sweep
from moecli.sweep.train import Trainer

TINY = [
    "task=piecewise",
    "task.rows=60",
    "trainer.steps=6",
    "trainer.batch_size=20",
    "trainer.eval_every=2",
    "threads=1",
]


def planned(*words, **options):
    plan, _ = start.make([*TINY, *words], start.Order(**options))
    return plan


def swept(root, *words, **options):
    return Sweep.create(root, "s", planned(*words, **options))


def pulled(sweep):
    worker.pull(sweep, Trainer(sweep))
    return sweep


def stopped(sweep, monkeypatch, save):
    """The sweep, whose worker was asked to stop as it began to write its ``save``-th checkpoint."""
    real, saves = checkpoint.save, []

    def kill_and_save(*arguments):
        saves.append(arguments[1])
        if len(saves) == save:
            os.kill(os.getpid(), signal.SIGTERM)
        return real(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "save", kill_and_save)
        with pytest.raises(Interrupted):
            pulled(sweep)
    assert not sweep.done() and not sweep.leases.held()
    return sweep
