"""The loop: same seed same bits, phases, early stopping, refusal of what is not finite, best checkpoint."""

from __future__ import annotations

import itertools
import json
import math
from itertools import pairwise

import pytest
import torch

import moecli
from moecli.errors import NumericalFailure, UsageError
from moecli.record import checkpoint
from moecli.training.gradient import Best, _starts

TINY = [
    "task=spirals",
    "task.rows=200",
    "trainer.steps=20",
    "trainer.batch_size=32",
    "num_experts=4",
    "expert.hidden=8",
]


def weights(run) -> dict:
    tensors, _ = checkpoint.load(run.path / "checkpoints" / f"step-{checkpoint.steps(run.path)[-1]:08d}")
    return tensors["model"]


@pytest.fixture(scope="module")
def first(tmp_path_factory):
    return moecli.train(*TINY, runs=tmp_path_factory.mktemp("runs"))


@pytest.fixture(autouse=True)
def no_pictures(first, monkeypatch):
    """Only ``first`` draws its pictures, which take a second."""
    monkeypatch.setattr("moecli.run._draw", lambda run: None)


def test_the_same_seed_gives_the_same_bits(first, tmp_path):
    again, other = moecli.train(*TINY, runs=tmp_path), moecli.train(*TINY, "seed=1", runs=tmp_path)
    assert all(torch.equal(a, weights(again)[n]) for n, a in weights(first).items())
    assert (first.path / "metrics.jsonl").read_bytes() == (again.path / "metrics.jsonl").read_bytes()
    assert not all(torch.equal(a, weights(other)[n]) for n, a in weights(first).items())  # the control
    assert (first.path / "metrics.jsonl").read_bytes() != (other.path / "metrics.jsonl").read_bytes()


def test_a_stored_configuration_repeats_the_run(first, tmp_path):
    from moecli.config import Composed, read
    from moecli.run import Place, assemble, train_built

    again = train_built(assemble(Composed(read(first.path / "config.yaml"), frozenset())), Place(tmp_path))
    assert all(torch.equal(a, weights(again)[n]) for n, a in weights(first).items())


def test_the_run_folder_holds_what_its_readme_says(first):
    names = {path.name for path in first.path.iterdir()}
    assert names == {
        "config.yaml", "run.json", "metrics.jsonl", "timing.jsonl", "routing", "checkpoints", "summary.json", "plots", "log.txt", ".lock",
    }  # fmt: skip
    assert first.info["status"] == "finished" and first.summary["metrics"].keys() >= {"test/accuracy", "valid/accuracy"}
    assert set(first.summary["chance"]) <= set(first.summary["metrics"])
    assert list((first.path / "plots").glob("*.png"))
    for file in ("run.json", "summary.json"):
        json.loads((first.path / file).read_text(), parse_constant=pytest.fail)


def test_loading_gives_the_scores_that_were_reported(first):
    from moecli.run import evaluate_loaded

    loaded = moecli.load(first.path)
    found = evaluate_loaded(loaded, "test")
    assert found["metrics"]["accuracy"] == first.summary["metrics"]["test/accuracy"]
    x = loaded.task.batch("test", torch.arange(5)).x
    assert torch.allclose(loaded.predict(x).sum(-1), torch.ones(5), atol=1e-5)


def test_init_begins_from_a_run(first, tmp_path):
    """One step at a learning rate of next to nothing: the weights are still those of the run."""
    small = ["trainer.steps=1", "optimizer.lr=1e-12", "optimizer.weight_decay=0"]
    run = moecli.train(*TINY, *small, f"init={first.path}", runs=tmp_path)
    best = moecli.load(first.path).model.state_dict()
    assert all(torch.allclose(best[n], w, atol=1e-9) for n, w in weights(run).items())
    plain = moecli.train(*TINY, *small, runs=tmp_path)
    assert not all(torch.allclose(best[n], w, atol=1e-9) for n, w in weights(plain).items())


def test_phases_train_what_they_name(tmp_path):
    phases = "trainer.phases=[{steps: 10, train: ['*gate*']}, {steps: 10, train: ['*experts*']}]"
    run = moecli.train(*TINY, "trainer.checkpoint_every=10", phases, "trainer.eval_every=10", runs=tmp_path)
    start = moecli.train(
        *TINY[:2], "trainer.steps=1", *TINY[3:], "optimizer.lr=1e-12", "optimizer.weight_decay=0", runs=tmp_path
    )
    tensors, _ = checkpoint.load(run.path / "checkpoints" / "step-00000010")
    initial, final = weights(start), weights(run)
    for name, middle in tensors["model"].items():
        is_gate = "gate" in name
        assert torch.allclose(initial[name], middle, atol=1e-9) != is_gate, name
        assert torch.equal(middle, final[name]) == is_gate, name


def test_phases_of_another_shape_are_refused():
    with pytest.raises(UsageError, match="add up to 5"):
        _starts([{"steps": 5, "train": ["*"]}], 10)
    with pytest.raises(UsageError, match="a phase is"):
        _starts([{"step": 5}], 10)


def test_early_stopping(tmp_path):
    run = moecli.train(
        *TINY, "trainer.steps=400", "trainer.eval_every=1", "trainer.patience=3", "optimizer.lr=1e-12", runs=tmp_path
    )
    assert checkpoint.steps(run.path)[-1] == 4


def test_a_loss_that_is_not_finite_stops_before_the_step(tmp_path, monkeypatch):
    """The weights are left as they were, the last checkpoint stays, and the run says that it failed."""
    from moecli.losses.nll import NegativeLogLikelihood

    calls = {"n": 0}
    real = NegativeLogLikelihood.__call__

    def poisoned(self, prediction, target):
        calls["n"] += 1
        return real(self, prediction, target) * (math.nan if calls["n"] == 16 else 1.0)

    monkeypatch.setattr(NegativeLogLikelihood, "__call__", poisoned)
    with pytest.raises(NumericalFailure, match="step 15"):
        moecli.train(*TINY, "trainer.eval_every=5", runs=tmp_path)
    (folder,) = tmp_path.glob("*/*")
    info = json.loads((folder / "run.json").read_text())
    assert info["status"] == "failed" and "step 15" in info["error"] and list(folder.glob("crash-*.log"))
    assert checkpoint.steps(folder)[-1] == 15
    monkeypatch.undo()
    short = moecli.train(*TINY[:2], "trainer.steps=20", *TINY[3:], "trainer.eval_every=5", runs=tmp_path / "b")
    same, _ = checkpoint.load(short.path / "checkpoints" / "step-00000015")
    stopped, _ = checkpoint.load(folder / "checkpoints" / "step-00000015")
    assert all(torch.equal(a, stopped["model"][n]) for n, a in same["model"].items())


def test_nan_is_never_best():
    best = Best()
    assert best.improves(0.5, True)
    best = Best(1, 0.5)
    assert not best.improves(math.nan, True) and not best.improves(math.nan, False)
    assert best.improves(0.5, True) and best.improves(0.4, False) and not best.improves(0.4, True)


def test_bfloat16_autocast_trains(tmp_path):
    run = moecli.train(*TINY, "trainer.autocast=bfloat16", runs=tmp_path)
    assert run.info["status"] == "finished" and run.summary["metrics"]["test/nll"] > 0


@pytest.mark.parametrize(
    "words", [["optimizer=sgd"], ["schedule=constant"], ["trainer.batch_size=100000"], ["trainer.clip=null"]]
)
def test_other_optimizers_and_schedules(words, tmp_path):
    assert moecli.train(*TINY, *words, runs=tmp_path).info["status"] == "finished"


def test_em_recovers_planted_lines(tmp_path):
    run = moecli.train("task=piecewise", "task.noise=0.01", "trainer=em", runs=tmp_path)
    assert run.summary["metrics"]["test/r2"] > 0.99
    (layer,) = run.summary["layers"]
    assert layer["nmi"]["regime"]["value"] > 0.9 > 10 * layer["nmi"]["regime"]["chance"]
    joint = [r["value"] for r in run.metrics if r["name"] == "joint_nll"]
    assert all(b <= a + 1e-6 for a, b in itertools.pairwise(joint)) and len(joint) > 3


def test_a_setting_that_the_trainer_never_uses_is_refused(tmp_path):
    for word in ("optimizer.lr=9", "schedule=constant", "auxiliary=[switch_balance]"):
        with pytest.raises(UsageError, match=r"trainer=em takes none"):
            moecli.train("task=piecewise", "trainer=em", word, runs=tmp_path)
    assert not list(tmp_path.glob("*/*"))


def test_a_pattern_of_a_later_phase_is_refused_before_the_first_step(tmp_path):
    phases = "trainer.phases=[{steps: 15, train: ['*']}, {steps: 5, train: ['*nothing*']}]"
    with pytest.raises(UsageError, match="no parameter matches"):
        moecli.train(*TINY, phases, runs=tmp_path)
    (folder,) = tmp_path.glob("*/*")
    assert not (folder / "checkpoints").exists()


def test_init_leaves_this_run_its_own_seed(first, tmp_path):
    """With noise, order and start from elsewhere, two seeds still differ."""
    words = [*TINY, "router=noisy_top_k", "auxiliary=[]"]
    source = moecli.train(*words, runs=tmp_path / "source")
    a, b = (moecli.train(*words, f"init={source.path}", f"seed={seed}", runs=tmp_path) for seed in (1, 2))
    assert not all(torch.equal(w, weights(b)[n]) for n, w in weights(a).items())


def test_a_long_split_is_noted_evenly(monkeypatch):
    """The first tokens of a sorted split would show one domain alone."""
    from moecli.config import compose
    from moecli.run import assemble
    from moecli.training import evaluate as module

    monkeypatch.setattr(module, "MOST_TOKENS", 100)
    parts = assemble(compose(["task=spirals", "task.rows=4000"]))
    found = module.evaluate(parts.model, parts.task, "train", parts.device, trace=True)
    sequence = [s for part in found.tokens["layer0"] for s in part["sequence"].tolist()]
    assert len(sequence) <= 100 and max(sequence) > 0.95 * parts.task.sizes["train"]
    assert len({b - a for a, b in pairwise(sequence)}) == 1


def test_a_run_is_not_read_with_data_it_was_not_fitted_to(tmp_path):
    """A table's features are scaled by its training rows: cut, the same row would mean something else."""
    from moecli.errors import ArtifactError

    file = tmp_path / "a.csv"
    rows = ["x,y", *(f"{i / 7:.3f},{i * 0.3:.3f}" for i in range(120))]
    file.write_text("\n".join(rows) + "\n")
    run = moecli.train("task=table", f"task.path={file}", "task.target=y", "trainer.steps=3", runs=tmp_path / "runs")
    moecli.load(run.path)
    file.write_text("\n".join(rows[:80]) + "\n")
    with pytest.raises(ArtifactError, match="not what the run was fitted to"):
        moecli.load(run.path)


def test_an_odd_file_name_is_no_crash(tmp_path):
    import os

    for domain in (b"caf\xe9", b"plain"):
        folder = os.path.join(os.fsencode(tmp_path), b"texts", domain)
        os.makedirs(folder)
        for name in (b"a.txt", b"b.txt"):
            with open(os.path.join(folder, name), "w") as file:
                file.write("the cat sat on the mat; " * 60)
    small = [
        "task.context=8",
        "model.dim=8",
        "model.depth=1",
        "expert.hidden=4",
        "trainer.steps=2",
        "trainer.batch_size=4",
    ]
    run = moecli.train("task=text", f"task.path={tmp_path / 'texts'}", *small, runs=tmp_path / "runs")
    assert run.info["status"] == "finished"
