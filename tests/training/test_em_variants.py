"""Hard, sampled, balanced and online EM, restarts, and the trainer around them."""

from __future__ import annotations

import json
import math
import os
import signal
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linear_sum_assignment

import moecli.run
from moecli.compatibility import build_small
from moecli.config import build, option_node
from moecli.errors import Interrupted, NumericalFailure, UsageError
from moecli.experts.linear import Linear
from moecli.mixture import MixtureDensity
from moecli.plan import even_shares
from moecli.record import checkpoint
from moecli.run import resume, train
from moecli.training.assignment import assign
from moecli.training.em import Ascent, Em, em_step, scattered
from moecli.training.evidence import VARIANTS, observe
from moecli.training.maximise import maximise

from .killing import quick

F64 = torch.float64
DIM, EXPERTS = 8, 4


@pytest.fixture(autouse=True)
def quickly(monkeypatch):
    torch.manual_seed(0)
    leave_out(monkeypatch)


def leave_out(monkeypatch):
    """What the weights do not depend on, until the test ends."""
    monkeypatch.setattr("moecli.run._draw", moecli.run._draw)
    monkeypatch.setattr("moecli.run._change_without", moecli.run._change_without)
    quick()


def planted(rows: int = 120) -> tuple[torch.Tensor, torch.Tensor]:
    x = torch.randn(rows, DIM, dtype=F64)
    return x, torch.where(x[:, :1] > 0, x[:, 1:3], -x[:, 1:3]) + 0.2 * torch.randn(rows, 2, dtype=F64)


def density(family: str = "gaussian", router: str = "dense", **options) -> MixtureDensity:
    built = build_small({**option_node("router", router), **options}, option_node("gate", "linear"))
    own = build(option_node("family", family), out=2, num_experts=EXPERTS)
    return MixtureDensity(built, Linear(DIM, 2, EXPERTS), own).double().eval()


# -- assignment -----------------------------------------------------------------------------------------


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 30), st.integers(1, 6), st.booleans(), st.integers(0, 1000))
def test_assignment_is_the_best_there_is(rows, experts, ties, seed):
    draw = torch.Generator().manual_seed(seed)
    score = torch.randn(rows, experts, generator=draw, dtype=F64)
    score = score.round() if ties else score
    counts = even_shares(rows, experts)
    expert = assign(score, counts)
    assert expert.bincount(minlength=experts).tolist() == counts and max(counts) - min(counts) <= 1
    table = np.repeat(score.numpy(), counts, axis=1)  # a column for each place
    best = table[linear_sum_assignment(table, maximize=True)].sum()
    assert float(score.gather(1, expert[:, None]).sum()) == pytest.approx(best, abs=1e-9)


def test_assignment_of_the_impossible_and_of_rows_that_are_all_alike():
    score = torch.full((12, 3), -torch.inf, dtype=F64)
    score[:, 0] = 0.0
    assert assign(score, [4, 4, 4]).bincount().tolist() == [4, 4, 4]
    assert assign(torch.zeros(5000, 4, dtype=F64), [1250] * 4).bincount().tolist() == [1250] * 4


# -- variants -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["gaussian", "student_t", "laplace"])
@pytest.mark.parametrize("variant", ["soft", "hard", "balanced"])
def test_each_variant_raises_its_own_quantity(variant, family):
    layer, (x, y) = density(family), planted()
    steps = [em_step(layer, x, y, variant) for _ in range(10)]
    values = [step.criterion for step in steps]
    assert all(b >= a - 1e-9 * (1 + abs(a)) for a, b in pairwise(values)), values
    assert values[-1] > values[0] + 0.1
    if variant == "soft":
        assert values == pytest.approx([-step.joint_nll for step in steps], abs=1e-10)
    else:
        assert all(step.criterion < -step.joint_nll for step in steps)  # hard bounds soft from below
    if variant == "balanced":
        assert steps[-1].resp.sum(0).tolist() == [30.0] * EXPERTS


def test_sampled_em_raises_nothing():
    """The control of the theorem above: where no regime explains the targets, criterion and likelihood come and go."""
    layer, (x, _) = density(), planted()
    y = torch.randn(len(x), 2, dtype=F64)
    steps = [em_step(layer, x, y, "sampled", draw) for draw in range(40)]
    assert any(b.criterion < a.criterion - 1e-6 for a, b in pairwise(steps))
    assert any(b.joint_nll > a.joint_nll + 1e-6 for a, b in pairwise(steps))


@pytest.mark.parametrize("variant", list(VARIANTS))
def test_responsibilities_are_shares(variant):
    layer, (x, y) = density(), planted()
    resp = VARIANTS[variant](observe(layer, x, y).joint, torch.Generator().manual_seed(0))
    assert torch.allclose(resp.sum(-1), torch.ones(len(x), dtype=F64)) and bool((resp >= 0).all())
    assert bool(((resp == 0) | (resp == 1)).all()) == (variant != "soft")


def test_sampled_responsibilities_average_to_soft_ones():
    layer, (x, y) = density(), planted(20)
    joint, draw = observe(layer, x, y).joint, torch.Generator().manual_seed(0)
    mean = sum(VARIANTS["sampled"](joint, draw) for _ in range(2000)) / 2000
    assert torch.allclose(mean, VARIANTS["soft"](joint, draw), atol=4 * 0.5 / 2000**0.5)
    assert not torch.allclose(VARIANTS["sampled"](joint, draw), VARIANTS["sampled"](joint, draw))  # the control


def test_a_truncated_e_step_gives_nothing_off_the_plan():
    layer, (x, y) = density(router="top_k", k=2), planted()
    found = em_step(layer, x, y)
    assert (found.resp > 0).sum(-1).max() <= 2 and torch.allclose(found.resp.sum(-1), torch.ones(len(x), dtype=F64))
    with pytest.raises(UsageError, match="every expert's likelihood"):
        train("task=piecewise", "trainer=em", "router=top_k")


def test_an_empty_expert_is_said_and_kept():
    layer, (x, y) = density(), planted()
    with torch.no_grad():
        layer.router.gate.linear.bias[2] = -1e4
    kept = layer.experts.weight[2].clone()
    ascent = Ascent(Em(), layer, x, y, seed=0)
    ascent.iterate(0)
    assert any("e2 serves no rows" in text for text in ascent.news) and len(ascent.news) == 1
    assert torch.equal(layer.experts.weight[2], kept) and not torch.equal(layer.experts.weight[1], kept)
    ascent.iterate(1)
    assert not ascent.news  # once is enough


def test_an_expert_that_closes_in_on_one_row_is_said():
    layer, (x, y) = density(), planted()
    layer.family.min_scale = 0.05
    resp = torch.zeros(len(x), EXPERTS, dtype=F64)
    resp[:, 0], resp[3, 0], resp[3, 1] = 1, 0, 1
    for _ in range(3):
        maximise(layer, x, y, resp, observe(layer, x, y).density)
    ascent = Ascent(Em(), layer, x, y, seed=0)
    ascent.iterate(0)
    assert any("e1 has closed in" in text for text in ascent.news), ascent.news


def test_a_fall_is_said():
    layer, (x, y) = density(), planted()
    ascent = Ascent(Em(), layer, x, y, seed=0)
    ascent.iterate(0)
    with torch.no_grad():
        layer.experts.weight += 1.0
    ascent.reached += 1.0
    ascent.iterate(1)
    assert any("likelihood fell" in text for text in ascent.news)


def test_a_likelihood_that_no_float_holds_is_one_line():
    layer, (x, y) = density(), planted()
    with pytest.raises(NumericalFailure, match=r"iteration 0: the likelihood is not finite. Raise family.min_scale"):
        Ascent(Em(), layer, x, y * 1e200, seed=0).iterate(0)


def test_scattered_starts_are_cells_of_rows():
    x, y = planted()
    cells = scattered(x, y, EXPERTS, torch.Generator().manual_seed(0))
    assert cells.shape == (120, EXPERTS) and bool((cells.sum(-1) == 1).all()) and bool((cells.sum(0) > 0).all())
    assert torch.equal(cells, scattered(x, y, EXPERTS, torch.Generator().manual_seed(0)))
    assert not torch.equal(cells, scattered(x, y, EXPERTS, torch.Generator().manual_seed(1)))
    assert scattered(x[:2], y[:2], EXPERTS, torch.Generator()).sum(0).tolist()[2:] == [0, 0]
    assert scattered(x, torch.randint(3, (120,)), EXPERTS, torch.Generator()).shape == (120, EXPERTS)


# -- the trainer ----------------------------------------------------------------------------------------

WORDS = ("task=piecewise", "task.rows=200", "trainer=em", "trainer.steps=12", "trainer.tolerance=0")


def _read(run, name: str) -> list[float]:
    lines = [json.loads(line) for line in (run.path / "metrics.jsonl").read_text().splitlines()]
    return [line["value"] for line in lines if line["name"] == name and line["split"] == "train"]


@pytest.mark.parametrize("variant", list(VARIANTS))
def test_every_variant_trains_and_says_what_it_raises(variant, tmp_path):
    run = train(*WORDS, f"trainer.variant={variant}", runs=tmp_path)
    assert run.summary["metrics"]["test/r2"] > 0.5
    assert ("raises no quantity" in (run.path / "log.txt").read_text()) == (variant == "sampled")
    assert bool(_read(run, "classification_nll")) == (variant in ("hard", "balanced"))
    assert not any("fell" in text for text in run.info["warnings"])


def test_restarts_reach_at_least_what_one_start_does_and_say_how_many_did(tmp_path):
    words = ("task=piecewise", "task.rows=200", "trainer=em", "trainer.steps=40")
    alone, best = train(*words, runs=tmp_path), train(*words, "trainer.restarts=4", runs=tmp_path)
    assert _read(best, "joint_nll")[-1] <= _read(alone, "joint_nll")[-1] + 1e-9
    assert " of 4 restarts reached the best" in (best.path / "log.txt").read_text()
    reached = [_read(best, f"restart{n}")[0] for n in range(4)]
    assert min(reached) == pytest.approx(_read(best, "joint_nll")[-1], abs=1e-9) and max(reached) > min(reached) + 1e-6


def test_a_twin_without_a_gate_is_fitted_too(tmp_path):
    run = train(*WORDS, "model.twin=true", runs=tmp_path)
    values = _read(run, "joint_nll")
    assert values == sorted(values, reverse=True) and values[-1] < values[0] - 0.1


def test_the_likeliest_of_the_sampled_is_kept(tmp_path):
    run = train(*WORDS, "trainer.variant=sampled", runs=tmp_path)
    tensors, _ = checkpoint.load(run.path / "checkpoints" / f"step-{checkpoint.steps(run.path)[-1]:08d}")
    assert -tensors["em_best"]["reached"].item() == pytest.approx(min(_read(run, "joint_nll")))


@pytest.mark.parametrize("words", [(), ("trainer.variant=sampled",), ("trainer.restarts=2",), ("trainer=online_em",)])
def test_going_on_gives_the_same_bits(words, tmp_path, monkeypatch):
    words = [w for w in (*WORDS, *words) if not (w.startswith("trainer.tol") and "trainer=online_em" in words)]
    words = [w for w in words if w != "trainer=em" or "trainer=online_em" not in words]
    whole = train(*words, runs=tmp_path / "whole")
    stop_after(monkeypatch, 5)
    with pytest.raises(Interrupted):
        train(*words, runs=tmp_path / "cut")
    monkeypatch.undo()
    leave_out(monkeypatch)
    (folder,) = (tmp_path / "cut").glob("*/*")
    done = resume(folder)
    assert (done.path / "metrics.jsonl").read_bytes() == (whole.path / "metrics.jsonl").read_bytes()
    last = [
        checkpoint.load(r.path / "checkpoints" / f"step-{checkpoint.steps(r.path)[-1]:08d}")[0] for r in (done, whole)
    ]
    for part in ("model", "em"):
        assert all(torch.equal(value, last[1][part][name]) for name, value in last[0][part].items())
    assert len(last[0]["model"]) > 3


def stop_after(monkeypatch, at: int) -> None:
    """Send SIGTERM to this process in iteration ``at``."""
    from moecli.training import em, online

    for run, name in ((em._Run, "iterate"), (online._Run, "train")):
        real = getattr(run, name)

        def signalled(self, number, real=real):
            if number == at:
                os.kill(os.getpid(), signal.SIGTERM)
            return real(self, number)

        monkeypatch.setattr(run, name, signalled)


def test_online_em_nears_what_em_on_all_rows_reaches(tmp_path):
    words = ("task=piecewise", "task.rows=600", "task.regimes=2", "num_experts=2")
    batch = train(*words, "trainer=em", "trainer.steps=30", runs=tmp_path)
    online = train(*words, "trainer=online_em", "trainer.steps=350", "trainer.eval_every=350", runs=tmp_path)
    assert online.summary["metrics"]["test/nll"] < batch.summary["metrics"]["test/nll"] + 0.1
    assert _read(online, "joint_nll")[0] > _read(online, "joint_nll")[-1] + 1  # it came from afar


def test_em_takes_no_objective_and_a_family_its_own_kind_of_targets():
    for words, text in (
        (("trainer=em", "objective=blend_error"), "trainer=em takes none"),
        (("model=density", "family=poisson"), "it needs counts"),
        (("model=density", "family=gamma"), "it needs positive targets"),
        (("model=density", "family=logistic"), "it needs targets of 0 and 1"),
        (("model=density", "expert=tdnn"), "it reads frames in a row"),
        (("model=layer", "objective=expected_error"), "only a density keeps them apart"),
    ):
        with pytest.raises(UsageError, match=text):
            train("task=piecewise", *words)


def test_counts_of_a_table_train(tmp_path):
    draw = np.random.default_rng(0)
    x = draw.normal(size=200)
    y = draw.poisson(np.exp(np.where(x > 0, 1 + x, 1 - x)))
    (tmp_path / "a.csv").write_text("x,y\n" + "\n".join(f"{a},{b}" for a, b in zip(x, y, strict=True)))
    words = ("task=table", f"task.path={tmp_path / 'a.csv'}", "task.target=y", "task.kind=regression", "model=density",
             "router=dense", "expert=linear", "num_experts=2", "trainer=em", "trainer.steps=20")  # fmt: skip
    run = train(*words, "family=poisson", "task.standardize=false", runs=tmp_path)
    assert run.summary["metrics"]["test/r2"] > 0.3 and math.isfinite(run.summary["metrics"]["test/nll"])
    with pytest.raises(UsageError, match=r"it needs counts .* task.standardize=false"):
        train(*words, "family=poisson", runs=tmp_path)
