"""Routers that are told of a token what no point of a grid has, on tasks whose pictures draw over a grid."""

from __future__ import annotations

import pytest

import moecli
from moecli.record.trace import read_arrays

WORDS = ["trainer.steps=3", "trainer.batch_size=16", "task.rows=120", "threads=1"]


@pytest.mark.parametrize("router", ["oracle", "replay"])
@pytest.mark.parametrize("words", [["task=spirals"], ["task=regions"], ["task=regions", "model=density"]])
def test_they_train_where_others_are_drawn_over_a_plane(tmp_path, monkeypatch, router, words):
    monkeypatch.setattr("moecli.run._draw", lambda run: None)
    run = moecli.train(f"router={router}", *words, *WORDS, runs=tmp_path)
    assert run.info["status"] == "finished"
    drawn = {file.name for file in (run.path / "routing").glob("*.npz")}
    assert "surface.npz" not in drawn and not any(name.startswith("frame") for name in drawn)
    if words[-1] == "model=density":  # what it needs to be told is known of the rows
        resp = read_arrays(run.path / "routing" / "responsibilities.npz")["resp"]
        assert resp.sum(-1) == pytest.approx(1)


def test_another_router_is_drawn(tmp_path, monkeypatch):
    monkeypatch.setattr("moecli.run._draw", lambda run: None)
    run = moecli.train("router=top_k", "task=regions", *WORDS, runs=tmp_path)
    assert (run.path / "routing" / "surface.npz").is_file() and list((run.path / "routing").glob("frame-*.npz"))
