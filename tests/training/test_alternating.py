"""Experts on parts, gate, reassignment: capacity, what each turn does, and runs that stop and go on."""

from __future__ import annotations

import os
import signal

import numpy as np
import pytest
import torch
from sklearn.svm import SVC

import moecli
from moecli.errors import Interrupted, UsageError
from moecli.experts.workers import Pool
from moecli.record import checkpoint
from moecli.record.folder import Run, read_lines
from moecli.run import resume
from moecli.tasks.task import generator
from moecli.training import alternating
from moecli.training.alternating import Alternating, by_preference, random_parts

WORDS = ["task=spirals", "task.rows=240", "model=density", "router=dense", "gate=mlp", "trainer=alternating",
         "num_experts=4", "trainer.jobs=1", "trainer.rounds=3", "trainer.inner=20", "optimizer.lr=0.02", "threads=1"]  # fmt: skip
SVMS = [*WORDS, "expert=sklearn", "expert.options={C: 10, gamma: 2}"]
TORCH = [*WORDS, "expert=feed_forward", "expert.hidden=8"]


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr("moecli.run._draw", lambda run: None)
    monkeypatch.setattr("moecli.run._change_without", lambda *args: None)


@pytest.fixture(scope="module")
def svms(tmp_path_factory):
    return moecli.train(*SVMS, runs=tmp_path_factory.mktemp("svms"))


def recorded(run: Run, name: str) -> list[float]:
    lines = read_lines(run.path / "metrics.jsonl")
    return [line["value"] for line in lines if line["name"] == name and line["split"] == "train"]


# -- parts -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("rows", "experts"), [(12, 4), (13, 4), (5, 5), (7, 1)])
def test_the_first_parts_are_equal_and_random(rows, experts):
    part = random_parts(rows, experts, generator(0))
    count = part.bincount(minlength=experts)
    assert int(count.max() - count.min()) <= 1 and int(count.sum()) == rows
    assert torch.equal(part, random_parts(rows, experts, generator(0)))
    if rows > experts > 1:
        assert not torch.equal(part, random_parts(rows, experts, generator(1)))


def test_rows_go_in_order_to_the_best_expert_with_room():
    logits = torch.tensor([[3.0, 2, 1], [3, 1, 2], [3, 2, 1], [3, 1, 2]])
    assert by_preference(logits, 4).tolist() == [0, 0, 0, 0]
    assert by_preference(logits, 2).tolist() == [0, 0, 1, 2]  # the first two fill expert 0


@pytest.mark.parametrize("slack", [0, 1, 7, None])
@pytest.mark.parametrize("seed", range(3))
def test_no_part_is_above_the_capacity_and_nobody_passes_over_a_better_one_with_room(slack, seed):
    plan, logits = Alternating(slack=slack), 3 * torch.randn(61, 5, generator=generator(seed))
    logits[:, 0] += 2
    capacity = plan.capacity(61, 5)
    assert capacity == 13 + (3 if slack is None else slack)
    part = by_preference(logits, capacity)
    assert int(part.bincount().max()) <= capacity
    for row, expert in enumerate(part.tolist()):
        better = (logits[row] > logits[row, expert]).nonzero()[:, 0]
        assert all(int((part[:row] == e).sum()) == capacity for e in better)
    assert int(logits.argmax(-1).bincount().max()) > capacity  # the control: without it one would be too large


# -- runs --------------------------------------------------------------------------------------------


def test_a_run_reports_its_rounds(svms):
    largest, smallest, moved = (recorded(svms, n) for n in ("largest part", "smallest part", "reassigned"))
    rows = 240 - 48 - 36
    assert largest[0] - smallest[0] <= 1 and max(largest) <= Alternating().capacity(rows, 4)
    assert all(0 <= share <= 1 for share in moved) and len(recorded(svms, "accuracy")) == len(moved) >= 2


def test_what_is_stored_is_the_last_part_of_the_experts_and_the_next(svms):
    stored = checkpoint.load(svms.path / "checkpoints" / f"step-{checkpoint.steps(svms.path)[-1]:08d}")[0]
    own = next(tensor for name, tensor in stored["model"].items() if name.endswith("experts.part"))
    share = float((own != stored["alternating"]["part"]).double().mean())
    assert share == recorded(svms, "reassigned")[-1]


@pytest.mark.slow
def test_a_gated_mixture_of_svms_is_no_worse_than_one_where_the_task_is_simple_in_parts(tmp_path):
    """Cells of the plane with a line of their own each: linear SVMs suffice in each, and one of them does not."""
    words = [
        *SVMS,
        "task.rows=500",
        "num_experts=8",
        "trainer.rounds=6",
        "trainer.inner=150",
        "expert.options={kernel: linear}",
    ]
    mixture = moecli.train(*last(words), runs=tmp_path)
    task = moecli.load(mixture.path).task
    train, test = (task.batch(split, torch.arange(task.sizes[split])) for split in ("train", "test"))
    one = SVC(kernel="linear").fit(train.x.numpy(), train.target.numpy()).score(test.x.numpy(), test.target.numpy())
    assert mixture.summary["metrics"]["test/accuracy"] > one + 0.1


def last(words: list[str]) -> list[str]:
    """Each key once, with its last value."""
    return list({word.split("=")[0]: word for word in words}.values())


def test_experts_with_gradients_are_fitted_to_their_rows(tmp_path):
    run = moecli.train(*TORCH, runs=tmp_path)
    assert recorded(run, "loss")[-1] < recorded(run, "loss")[0]
    assert run.summary["metrics"]["test/accuracy"] > run.summary["chance"]["test/accuracy"]


def test_the_first_turn_of_each_expert_does_not_know_of_the_others(tmp_path, monkeypatch):
    """With the other experts' rows changed, an expert's parameters come out the same (no clipping, batches of all rows)."""
    words = last([*TORCH, "trainer.rounds=1", "trainer.batch_size=10000", "expert=linear"])
    words = [word for word in words if "hidden" not in word]
    real, found = alternating._Run._fit_experts, []

    def changed(flip: bool):
        def fit(self, number):
            if flip:
                self.y = torch.where(self.part == 0, self.y, 1 - self.y)
            real(self, number)
            found.append(self.layer.experts.weight.detach().clone())

        return fit

    for flip in (False, True):
        monkeypatch.setattr(alternating._Run, "_fit_experts", changed(flip))
        moecli.train(*words, runs=tmp_path)
    plain, flipped = found
    assert torch.allclose(plain[0], flipped[0], atol=1e-6)
    assert not torch.allclose(plain[1], flipped[1], atol=1e-2)  # the control


def test_the_gate_learns_and_the_experts_stand_still(tmp_path, monkeypatch):
    real, seen = alternating._Run._fit_gate, []

    def watched(self, number, loc):
        before = [
            {n: p.detach().clone() for n, p in part.named_parameters()} for part in (self.gate, self.layer.experts)
        ]
        real(self, number, loc)
        after = [dict(part.named_parameters()) for part in (self.gate, self.layer.experts)]
        seen.append([all(torch.equal(b[n], a[n]) for n in b) for b, a in zip(before, after, strict=True)])

    monkeypatch.setattr(alternating._Run, "_fit_gate", watched)
    moecli.train(*last([*TORCH, "trainer.rounds=2"]), runs=tmp_path)
    assert seen == [[False, True], [False, True]]


def test_a_gate_that_cannot_learn_ends_it_after_one_round(tmp_path):
    run = moecli.train(*last([*SVMS, "gate=uniform"]), runs=tmp_path)
    assert recorded(run, "reassigned") == [0.0]


def test_real_targets_have_a_scale_fitted_to_what_is_left(tmp_path):
    words = [
        w for w in last([*SVMS, "task=regions", "expert.estimator=svm.SVR", "trainer.rounds=1"]) if "options" not in w
    ]
    run = moecli.train(*words, runs=tmp_path)
    assert run.summary["metrics"]["test/r2"] > 0 and np.isfinite(run.summary["metrics"]["test/nll"])
    layer = moecli.load(run.path).model.mixtures["layer0"]
    assert bool((layer.family.scale != 1).all())


def test_one_expert_is_the_estimator_itself(tmp_path):
    run = moecli.train(*SVMS, "model.twin=true", runs=tmp_path)
    loaded = moecli.load(run.path)
    train, test = (loaded.task.batch(s, torch.arange(loaded.task.sizes[s])) for s in ("train", "test"))
    own = SVC(C=10, gamma=2).fit(train.x.double().numpy(), train.target.numpy()).predict(test.x.double().numpy())
    assert loaded.predict(test.x).argmax(-1).tolist() == own.tolist()


# -- stopping ----------------------------------------------------------------------------------------


def stopped_in(round_number: int, monkeypatch, turn: str = "_fit_gate") -> None:
    """The process is signalled as that round's turn begins."""
    real = getattr(alternating._Run, turn)

    def signalled(self, number, *args):
        if number == round_number:
            os.kill(os.getpid(), signal.SIGTERM)
        return real(self, number, *args)

    monkeypatch.setattr(alternating._Run, turn, signalled)


@pytest.mark.parametrize("words", [SVMS, pytest.param(TORCH, marks=pytest.mark.slow)], ids=["svms", "torch"])
def test_an_interrupted_run_goes_on_to_the_same_bits(words, svms, tmp_path, monkeypatch):
    whole = svms if words is SVMS else moecli.train(*words, runs=tmp_path / "whole")
    with monkeypatch.context() as patched:
        stopped_in(1, patched)
        with pytest.raises(Interrupted):
            moecli.train(*words, runs=tmp_path / "cut")
    (file,) = (tmp_path / "cut").glob("*/*/run.json")
    assert checkpoint.steps(file.parent)[-1] == 1
    resumed = resume(file.parent)
    assert (resumed.path / "metrics.jsonl").read_bytes() == (whole.path / "metrics.jsonl").read_bytes()
    step = checkpoint.steps(whole.path)[-1]
    a, b = (checkpoint.load(run.path / "checkpoints" / f"step-{step:08d}")[0]["model"] for run in (whole, resumed))
    assert len(a) >= 4 and all(torch.equal(a[name], b[name]) for name in a)


def test_an_interrupt_leaves_no_worker(tmp_path, monkeypatch):
    stopped_in(1, monkeypatch, "_fit_experts")
    real, pids = Pool.fit, {}

    def fit(self, *args):
        try:
            return real(self, *args)
        finally:
            pids.update({worker.process.pid: worker.process for worker in self.workers})

    monkeypatch.setattr(Pool, "fit", fit)
    with pytest.raises(Interrupted):
        moecli.train(*last([*SVMS, "trainer.jobs=2"]), runs=tmp_path)
    assert len(pids) == 2 and all(process.poll() is not None for process in pids.values())


# -- what cannot be ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["num_experts=300"], "only 156 training rows"),
        (["expert.estimator=svm.SVR", "expert.options={}"], "svm.SVC"),
        (["router=top_k"], "router=dense"),
        (["model=layer"], "model=density"),
        (["auxiliary=[entropy]"], "trainer=gradient"),
        (["expert=constant", "expert.options="], "trainer=alternating|no such key"),
    ],
)
def test_what_cannot_be_is_refused_in_one_sentence(words, says, tmp_path):
    with pytest.raises(UsageError, match=says) as refused:
        moecli.train(*last([*SVMS, *words]), runs=tmp_path)
    assert "\n" not in str(refused.value)


def test_weights_of_rows_are_refused(tmp_path):
    file = tmp_path / "rows.csv"
    file.write_text("x,w,y\n" + "".join(f"{n % 7},{1 + n % 2},{n % 3}.5\n" for n in range(40)))
    words = ["task=table", f"task.path={file}", "task.target=y", "task.weights=w", "model=density", "router=dense",
             "trainer=alternating", "expert=linear"]  # fmt: skip
    with pytest.raises(UsageError, match=r"task\.weights"):
        moecli.train(*words, runs=tmp_path)
