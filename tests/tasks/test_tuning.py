"""From a text to instructions: the same vocabulary carries over, frozen parameters stay, another one is one line."""

import pytest
import torch

import moecli
from moecli.errors import MoeError
from moecli.record.folder import Run
from moecli.run import best_weights

SMALL = ["model.dim=8", "model.depth=1", "model.heads=2", "expert.hidden=8", "num_experts=2", "trainer.steps=2"]
SMALL += ["trainer.batch_size=4", "task.context=96"]
LINE = "The cat sat on the mat and looked at 42 dogs.\n"


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory):
    """A run on a text in bytes."""
    folder = tmp_path_factory.mktemp("tuning")
    (folder / "a.txt").write_text(LINE * 80)
    text = ["task=text", f"task.path={folder / 'a.txt'}", "task.eval_windows=2", "task.tokens=bytes"]
    return moecli.train(*text, *SMALL, runs=folder)


def tuned(run, *words, **options):
    return moecli.train("task=instructions", "task.examples=39", *SMALL, f"init={run.path}", *words, **options)


def test_a_run_on_a_text_goes_on_with_instructions(pretrained, tmp_path):
    phases = "trainer.phases=[{steps: 2, train: ['*.experts.*']}]"
    run = tuned(pretrained, phases, "task.hold_out=[plural]", runs=tmp_path)
    before, after = (best_weights(Run(r.path)) for r in (pretrained, run))
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved and all(".experts." in name for name in moved) and "embedding.weight" in before
    assert 0 < run.summary["metrics"]["test/nll"] < 7


def test_another_vocabulary_is_one_line(pretrained, tmp_path):
    with pytest.raises(MoeError) as caught:
        tuned(pretrained, "task.tokens=characters", runs=tmp_path)
    assert "\n" not in str(caught.value) and "its vocabulary of 256 symbols is not the" in str(caught.value)


def test_a_vocabulary_of_the_same_size_and_other_symbols_is_one_line(tmp_path):
    words = []
    for name in ("abcdef", "uvwxyz"):
        (tmp_path / name).write_text(f"{name}\n" * 200)
        words.append(["task=text", f"task.path={tmp_path / name}", "task.eval_windows=2", *SMALL, "task.context=16"])
    run = moecli.train(*words[0], runs=tmp_path)
    moecli.train(*words[0], f"init={run.path}", runs=tmp_path)
    with pytest.raises(MoeError, match="its vocabulary of 8 symbols is not the 8 of this task"):
        moecli.train(*words[1], f"init={run.path}", runs=tmp_path)


@pytest.mark.parametrize("words", [["task=modular", "task.modulus=7"], ["task=copy", "task.sequences=40"]])
def test_toys_are_trained(tmp_path, words):
    run = moecli.train(*words, *(word for word in SMALL if "context" not in word), runs=tmp_path)
    assert 0 < run.summary["metrics"]["test/nll"] < 7
