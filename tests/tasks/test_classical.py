"""The tasks of the classical papers, each as `moe train task=X` would take it."""

import pytest
import torch

import moecli
from moecli.config import build, compose, flatten, raw_node
from moecli.errors import UsageError
from moecli.run import assemble

# a task and what makes it small
TASKS = {
    "vowels": [],
    "speakers": ["task.tokens=10"],
    "robot_arm": ["task.rows=200"],
    "outliers": ["task.rows=100"],
    "jittered_digits": ["task.copies=1"],
    "sklearn": [],
}


@pytest.mark.parametrize("name", TASKS)
def test_a_short_training_lands_with_metrics_beside_chance(name, tmp_path, monkeypatch):
    monkeypatch.setattr("moecli.run._draw", lambda run: None)  # pictures have tests of their own, and take longest
    run = moecli.train(f"task={name}", *TASKS[name], "trainer.steps=2", runs=tmp_path)
    summary = run.summary
    assert summary["status"] == "finished"
    chance = summary["chance"]
    assert chance and set(chance) <= set(summary["metrics"])


@pytest.mark.parametrize("name", TASKS)
def test_all_of_the_advice_is_taken(name):
    """What fits no chosen part would be left out silently."""
    composed = compose([f"task={name}"]).config
    taken = {**dict(flatten(composed)), **composed["choices"]}
    advice = raw_node("task", name)["recommends"]
    assert len(advice) >= 3
    assert {key: taken[key] for key in advice} == advice


@pytest.mark.parametrize("name", TASKS)
def test_batches_are_a_pure_function_of_seed_and_step(name):
    node = compose([f"task={name}", *TASKS[name]]).config["task"]
    one, same = build(node), build(node)
    size = min(16, one.sizes["train"] - 1)
    first = [one.train_batch(step, size, 3).x for step in range(5)]
    again = {step: same.train_batch(step, size, 3).x for step in reversed(range(5))}
    assert all(torch.equal(first[step], again[step]) for step in range(5))
    assert not torch.equal(first[4], one.train_batch(4, size, 4).x)
    assert not torch.equal(first[0], first[1])


@pytest.mark.parametrize("words", [["gate=linear"], ["expert=linear"], ["model=layer"]])
def test_what_reads_vectors_refuses_frames_in_one_sentence_and_takes_them_flat(words):
    frames = ["task=speakers", "task.tokens=10", *words]
    with pytest.raises(UsageError) as caught:
        assemble(compose(frames))
    said = str(caught.value)
    assert words[0] in said and "vectors" in said and "\n" not in said
    assemble(compose(["task=speakers", "task.tokens=10", "task.flat=true", "gate=linear", "expert=linear", words[0]]))


def test_what_reads_frames_refuses_vectors():
    with pytest.raises(UsageError, match="expert=tdnn"):
        assemble(compose(["task=vowels", "expert=tdnn"]))
