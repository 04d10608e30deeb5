"""Span corruption: nothing is lost, as much is cut as was asked for, and batches are a pure function of (seed, step)."""

from __future__ import annotations

import pytest
import torch

from moecli.config import compose
from moecli.errors import UsageError
from moecli.run import build_task
from moecli.tasks.span_corruption import divided


@pytest.fixture(scope="module")
def words(tmp_path_factory):
    file = tmp_path_factory.mktemp("text") / "a.txt"
    file.write_text("the cat sat on the mat and saw the rat; " * 80)
    return ["task=span_corruption", "task.text=text", f"task.text.path={file}", "task.text.context=40"]


def made(words, *more):
    return build_task(compose([*words, *more]))


def put_back(task, source, target):
    """The text again: each span in its sentinel's place."""
    spans, current = {}, []
    for symbol in target:
        if symbol >= task.sentinel:
            current = spans.setdefault(symbol, [])
        else:
            current.append(symbol)
    return [t for symbol in source for t in (spans[symbol] if symbol >= task.sentinel else [symbol])]


@pytest.mark.parametrize("options", [[], ["task.density=0.5", "task.mean_length=1"], ["task.density=0.02"]])
def test_spans_put_back_are_the_text(words, options):
    task = made(words, *options)
    for batch, text in [
        (task.train_batch(3, 16, seed=1), task.text.train_batch(3, 16, seed=1)),
        (task.batch("test", torch.arange(4)), task.text.batch("test", torch.arange(4))),
    ]:
        source = batch.x[:, : task.source]
        for row, expected in enumerate(text.x.tolist()):
            assert put_back(task, source[row].tolist(), batch.target[row].tolist()) == expected
        assert (batch.x[:, task.source] == task.begin).all() and (batch.target[:, -1] == task.end).all()
        assert torch.equal(batch.x[:, task.source + 1 :], batch.target[:, :-1])
        assert (source[:, 0] < task.sentinel).all()
        assert torch.equal(batch.labels["mark"], (batch.x >= task.sentinel).long())
        own = batch.labels["mark"] == 0  # a token of text keeps the label it has there
        assert torch.equal(batch.labels["character"][own], task.text._class_of[batch.x[own]])


def test_as_much_is_cut_as_in_the_paper(words):
    """15 % of 40 tokens are 6, in spans of 3 tokens on average: 2 of them."""
    task = made(words)
    assert (task.cut, task.spans, task.source) == (6, 2, 40 - 6 + 2)
    batch = task.train_batch(0, 64, seed=0)
    assert batch.target.shape == (64, 6 + 2 + 1) and batch.x.shape == (64, task.source + 9)
    assert (batch.x >= 0).all() and batch.x.max() < task.vocab_size == len(task.kind.symbols)
    lengths = {tuple(row.nonzero()[:, 0].diff().tolist()) for row in batch.target >= task.sentinel}
    assert len(lengths) == 5  # 6 = 1 + 5 = 2 + 4 = ... = 5 + 1


def test_all_divisions_are_equally_likely():
    """5 things in 3 parts: C(4, 2) = 6 ways."""
    draw = torch.rand(6000, 4, generator=torch.Generator().manual_seed(0))
    found, count = divided(draw, 3).unique(dim=0, return_counts=True)
    assert len(found) == 6 and (found.sum(1) == 5).all() and found.min() == 1
    assert (count - 1000).abs().max() < 5 * 30  # five standard deviations


def test_batches_are_a_pure_function_of_seed_and_step(words):
    task, again = made(words), made(words)
    for step in (0, 7):
        assert torch.equal(task.train_batch(step, 8, 3).x, again.train_batch(step, 8, 3).x)
    assert not torch.equal(task.train_batch(0, 8, 3).x, task.train_batch(0, 8, 4).x)
    whole = task.batch("valid", torch.arange(4))
    parts = [task.batch("valid", torch.tensor([index])).x for index in range(4)]
    assert torch.equal(whole.x, torch.cat(parts))


def test_bytes_are_those_of_the_text(words):
    """Sentinels are no text: bits per byte divide by the bytes that were cut out."""
    task = made(words)
    batch = task.batch("test", torch.arange(2))
    scores = task.kind.score(torch.zeros(*batch.target.shape, task.out), batch.target)
    assert torch.allclose(scores["bytes"] * batch.target.shape[1], torch.tensor([6.0, 6.0]))


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["task.text.context=1"], "nothing to cut out"),
        (["task.density=0"], "task.density"),
        (["task.density=1.5"], "density"),
    ],
)
def test_what_cannot_be_cut_is_refused(words, more, said):
    with pytest.raises(UsageError, match=said) as caught:
        made(words, *more)
    assert "\n" not in str(caught.value)


def test_a_text_is_needed():
    with pytest.raises(UsageError, match="no task of plain text"):
        build_task(compose(["task=span_corruption", "task.text=spirals"]))
