"""A few tiny runs, and one browser for all tests of this folder."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

import moecli
from moecli.record.folder import to_json

from .browser import Browser, found

SMALL = ["task=digits", "trainer.steps=12", "num_experts=4", "expert.hidden=8", "trainer.eval_every=4"]


@pytest.fixture(scope="session")
def trained(tmp_path_factory) -> Path:
    """A run of top-k on digits, four experts."""
    return moecli.train(*SMALL, runs=tmp_path_factory.mktemp("trained")).path


@pytest.fixture(scope="session")
def study(trained, tmp_path_factory) -> Path:
    """Five runs of digits: top-k and a made-up other router over two seeds, and a made-up dense twin."""
    root = tmp_path_factory.mktemp("study")
    made = [("top_k", 0, 0.8, False), ("top_k", 1, 0.9, False), ("other", 0, 0.6, False), ("other", 1, 0.5, False)]
    for number, (router, seed, value, twin) in enumerate([*made, ("top_k", 0, 0.7, True)]):
        path = copied(trained, root / f"digits-{router}" / f"20260101T00000{number}-aaaa", seed=seed, twin=twin)
        changed(path, "run.json", config={"router": router, "seed": seed, "model.twin": twin})
        changed(path, "summary.json", metrics={"test/accuracy": value})
    return root


@pytest.fixture(scope="session")
def browser(tmp_path_factory) -> Iterator[Browser]:
    command = found()
    if command is None:
        pytest.skip("no Chromium here; Debian's is: apt-get install chromium")
    page = Browser(command, tmp_path_factory.mktemp("profile"))
    yield page
    page.close()


def copied(run: Path, target: Path, **info) -> Path:
    """A copy of a run folder with other words in its run.json."""
    shutil.copytree(run, target, ignore=shutil.ignore_patterns("checkpoints"))
    changed(target, "run.json", id=target.name, **info)
    return target


def changed(run: Path, name: str, **values) -> None:
    """Lay values over those of a JSON file; of a dictionary only the given keys."""
    file = run / name
    known = json.loads(file.read_text(encoding="utf-8"))
    for key, value in values.items():
        known[key] = known[key] | value if isinstance(value, dict) else value
    file.write_bytes(to_json(known))


def run_folders(root: Path) -> list[Path]:
    """In the order of their start."""
    return sorted((path.parent for path in root.glob("*/*/run.json")), key=lambda path: path.name)
