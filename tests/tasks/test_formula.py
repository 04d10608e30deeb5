"""Formulas: equal to a design built by hand, the same for new rows, safe, and one line where they are wrong."""

import numpy as np
import pandas as pd
import pytest
import torch

import moecli
from moecli.config import compose
from moecli.errors import DataError, MoeError, UsageError
from moecli.run import assemble, load, predictions
from moecli.tasks.formula import Design
from moecli.tasks.table import Table

ROWS = 120
MODEL = ("model=density", "router=dense", "expert=linear", "trainer=em", "num_experts=2")


def example(seed=0):
    draw = np.random.default_rng(seed)
    a, b, z = draw.normal(size=(3, ROWS)).round(4)
    kind = np.array(list("uvw"))[np.arange(ROWS) % 3]
    first = draw.random(ROWS) < 1 / (1 + np.exp(-3 * z))
    y = (2 * a - b + (kind == "v") * a + np.where(first, 4, -4) + draw.normal(0, 0.3, ROWS)).round(4)
    times, level = np.arange(ROWS) % 4, np.arange(ROWS) % 5
    return pd.DataFrame(
        {"a": a, "b": b, "z": z, "kind": kind, "y": y, "times": times, "level": level, "my col": a**2 + 1}
    )


@pytest.fixture
def csv(tmp_path):
    example().to_csv(tmp_path / "d.csv", index=False)
    return str(tmp_path / "d.csv")


def refused(build, *needles, error=UsageError):
    with pytest.raises(error) as caught:
        build()
    message = str(caught.value)
    assert "\n" not in message and ". " in message and "\x1b" not in message, message
    for needle in needles:
        assert needle in message, message


# What a formula becomes


def test_the_design_is_the_one_built_by_hand(csv, tmp_path):
    frame = example()
    v, w = (frame.kind == "v") * 1.0, (frame.kind == "w") * 1.0
    by_hand = pd.DataFrame(
        {"a": frame.a, "b": frame.b, "kind[T.v]": v, "kind[T.w]": w, "a:b": frame.a * frame.b, "a:kind[T.v]": frame.a * v,
         "a:kind[T.w]": frame.a * w, "y": frame.y}
    )  # fmt: skip
    by_hand.to_csv(tmp_path / "hand.csv", index=False)
    task = Table(csv, formula="y ~ a*kind + b + a:b")
    known = Table(str(tmp_path / "hand.csv"), "y", features=task.feature_names)
    assert set(task.feature_names) == set(by_hand) - {"y"}
    for split in ("train", "valid", "test"):
        assert torch.equal(task.splits[split].x, known.splits[split].x)
        assert torch.equal(task.splits[split].target, known.splits[split].target)
    assert (task.kind, task.reads) == (known.kind, {})
    assert "kind" in task.label_names and "kind" not in known.label_names


def test_gate_and_experts_read_their_own_side_of_the_bar(csv):
    built = assemble(compose(("task=table", f"task.path={csv}", "task.formula=y ~ a + b | z + a", *MODEL)))
    layer, x = built.model.layer0, built.task.splits["train"].x
    assert built.task.feature_names == ["a", "b", "z"]
    assert layer.experts.columns == [0, 1] and layer.router.gate.columns == [2, 0]
    moved = x.clone()
    moved[:, 1] += 1
    before, after = layer.router.gate(x), layer.router.gate(moved)
    assert torch.equal(before, after)
    assert not torch.allclose(built.model.experts_alone(x), built.model.experts_alone(moved))
    moved = x.clone()
    moved[:, 2] += 1
    assert torch.equal(built.model.experts_alone(x), built.model.experts_alone(moved))
    assert not torch.allclose(layer.router.gate(moved), before)
    assert built.config["gate"]["columns"] is None  # the formula is what the run stores


def test_a_side_without_features_wants_a_constant_part(csv):
    words = ("task=table", f"task.path={csv}", *MODEL)
    built = assemble(compose((*words, "task.formula=y ~ 1 | z", "expert=constant")))
    assert built.task.feature_names == ["z"]
    assert assemble(compose((*words, "task.formula=y ~ a | 1", "gate=constant"))).task.feature_names == ["a"]
    refused(lambda: assemble(compose((*words, "task.formula=y ~ a | 1"))), "gate=constant")
    refused(lambda: assemble(compose((*words, "task.formula=y ~ 1 | z"))), "expert=constant")
    refused(lambda: assemble(compose((*words, "task.formula=y ~ a | z", "gate.columns=[z]"))), "gate.columns", "bar")
    refused(lambda: Table(csv, formula="y ~ 1"), "no feature")


def test_computed_targets_and_columns_with_spaces(csv):
    frame = example()
    task = Table(csv, formula="log(`my col`) ~ np.exp(a) + C(level) + poly(b, 2)", standardize=False)
    assert task.kind.targets == ("log(my col)",) or "my col" in task.kind.targets[0]
    assert len(task.feature_names) == 1 + 4 + 2 and "C(level)[T.4]" in task.feature_names
    known = np.sort(np.log(frame["my col"]))
    found = torch.cat([task.splits[split].target for split in task.splits]).sort(0).values[:, 0]
    assert found.numpy() == pytest.approx(known, abs=1e-5)


def test_two_targets_and_classes(csv):
    assert Table(csv, formula="y + b ~ a").kind.targets == ("y", "b")
    assert Table(csv, formula="kind ~ a").kind.classes == ("u", "v", "w")


# What is estimated comes from training rows, and is kept for new ones


def test_new_rows_get_the_same_encoding(csv, tmp_path):
    task = Table(csv, formula="y ~ poly(a, 2) + center(b) + C(kind) + C(level) | z")
    frame = example()
    frame.iloc[::-1].to_csv(tmp_path / "turned.csv", index=False)
    frame.iloc[:1].to_csv(tmp_path / "one.csv", index=False)
    (every, _), (one, _) = (task.new_rows(tmp_path / name) for name in ("turned.csv", "one.csv"))
    assert torch.equal(every[-1:], one)
    everything = {tuple(row) for split in task.splits.values() for row in split.x.tolist()}
    assert {tuple(row) for row in every.tolist()} == everything


def test_held_out_rows_do_not_reach_the_design(csv, tmp_path):
    task, frame = Table(csv, formula="y ~ center(a) + poly(b, 2)", standardize=False), example()
    train = set(map(tuple, task.splits["train"].target.tolist()))
    held_out = [tuple(v) not in train for v in torch.tensor(frame.y.to_numpy()).float()[:, None].tolist()]
    frame.loc[held_out, ["a", "b"]] += 100
    frame.to_csv(tmp_path / "moved.csv", index=False)
    moved = Table(str(tmp_path / "moved.csv"), formula="y ~ center(a) + poly(b, 2)", standardize=False)
    assert torch.equal(task.splits["train"].x, moved.splits["train"].x)
    assert not torch.allclose(task.splits["test"].x, moved.splits["test"].x)


def test_a_category_that_training_has_not_seen_is_refused(csv, tmp_path):
    task = Table(csv, formula="y ~ C(kind) + C(level)")
    for column, value in (("kind", "q"), ("level", 77)):
        example().iloc[:3].assign(**{column: value}).to_csv(tmp_path / "new.csv", index=False)
        refused(lambda: task.new_rows(tmp_path / "new.csv"), "unseen category", str(value), error=DataError)


# Through a run, from the command line's words


def test_a_run_with_a_formula_predicts_and_reloads(csv, tmp_path, monkeypatch):
    monkeypatch.setattr("moecli.run._draw", lambda run: None)
    words = ("task=table", f"task.path={csv}", "task.formula=y ~ a*kind + b | z", *MODEL, "trainer.restarts=3")
    run = moecli.train(*words, runs=tmp_path / "runs")
    assert run.summary["metrics"]["test/r2"] > 0.2
    answers = predictions(load(run.path), csv)
    low, high = answers["2.5% y"], answers["97.5% y"]
    inside = (example().y >= low) & (example().y <= high)
    assert inside.mean() > 0.9 and (low < high).all()
    gate, resp = answers.filter(like="gate e"), answers.filter(like="responsibility e")
    assert gate.sum(axis=1).to_numpy() == pytest.approx(1, abs=1e-5) and resp.sum(axis=1).to_numpy() == pytest.approx(
        1, abs=1e-5
    )
    assert resp.to_numpy() != pytest.approx(gate.to_numpy(), abs=0.1)
    mean = -np.log(answers["density"]).mean()
    assert run.summary["metrics"]["test/nll"] == pytest.approx(mean, abs=1.0)
    example().drop(columns="y").to_csv(tmp_path / "new.csv", index=False)
    without = predictions(load(run.path), tmp_path / "new.csv")
    assert without["predicted y"].tolist() == answers["predicted y"].tolist() and "density" not in without


# Weights


def test_weights_are_replications_in_the_fit_and_the_metrics(csv, tmp_path):
    weighted = Table(csv, "y", drop=["kind", "level", "my col"], weights="times", standardize=False)
    plain = Table(csv, "y", drop=["kind", "level", "my col", "times"], standardize=False)
    assert weighted.feature_names == plain.feature_names == ["a", "b", "z"]
    times = {split: part.weight.long() for split, part in weighted.splits.items()}
    draw = torch.randn(len(times["test"]), 1)
    scores = weighted.kind.score(draw, weighted.splits["test"].target) | {"weight": times["test"].float()}
    again = weighted.kind.score(
        *(t.repeat_interleave(times["test"], 0) for t in (draw, weighted.splits["test"].target))
    )
    assert weighted.kind.summarise(scores) == pytest.approx(weighted.kind.summarise(again), rel=1e-6)
    assert weighted.chance("test") != plain.chance("test")
    train, test = (weighted.splits[split].target.repeat_interleave(times[split], 0) for split in ("train", "test"))
    assert weighted.chance("test") == pytest.approx(weighted.kind.chance(train, test), rel=1e-5)
    assert weighted.fingerprint != plain.fingerprint


def test_weights_reach_the_gradient(csv):
    words = ("task=table", f"task.path={csv}", "task.formula=y ~ a | z", *MODEL[:3])
    built = assemble(compose((*words, "task.weights=times", "trainer=gradient")))
    batch = built.task.batch("train", torch.arange(40))
    times = batch.weight.long()
    loss = built.objective(built.model(batch.x), batch.target, batch.weight)["total"].detach()
    x, y = (t.repeat_interleave(times, 0) for t in (batch.x, batch.target))
    assert float(loss) == pytest.approx(float(built.objective(built.model(x), y)["total"].detach()), rel=1e-5)
    assert float(loss) != pytest.approx(
        float(built.objective(built.model(batch.x), batch.target)["total"].detach()), rel=1e-4
    )


def test_bad_weights(csv, tmp_path):
    example().assign(times=-1).to_csv(tmp_path / "bad.csv", index=False)
    refused(lambda: Table(str(tmp_path / "bad.csv"), "y", weights="times"), "negative weight", "row 1", error=DataError)
    example().assign(times=0).to_csv(tmp_path / "none.csv", index=False)
    refused(lambda: Table(str(tmp_path / "none.csv"), "y", weights="times"), "no weight", error=DataError)
    refused(lambda: Table(csv, "y", features=["a", "times"], weights="times"), "task.weights", "task.features")


# What is wrong becomes one line


@pytest.mark.parametrize(
    ("formula", "needle"),
    [
        ("y ~ a +", "Operator"), ("y ~ (a", "bracket"), ("a + b", "no target"), ("~ a", "no target"),
        ("y ~ a | b | z", "more than one bar"),
        ("y ~ a - 1", "bias=false"), ("y ~ 0 + a | z", "bias=false"), ("y ~ .", "formula"), ("", "formula"), ("y ~ a ~ b", "formula"),
        ("y ~ C(kind, 1, 2, 3, 4)", "formula"), ("y ~ a**b", "formula"),
    ],
)  # fmt: skip
def test_bad_formulas(csv, formula, needle):
    refused(lambda: Table(csv, formula=formula), "task.formula", "" if needle == "bracket" else needle)


def test_missing_columns_and_values(csv, tmp_path):
    refused(lambda: Table(csv, formula="y ~ aa"), "'aa'", "did you mean 'a'?", error=DataError)
    refused(lambda: Table(csv, formula="yy ~ a"), "'yy'", error=DataError)
    refused(lambda: Table(csv, formula="y ~ np.core"), "'np.core'", error=DataError)
    refused(lambda: Table(csv, formula="y ~ log(z)"), "log(z)", "nan", error=DataError)
    refused(lambda: Table(csv, formula="y ~ a + y"), "task.features", "task.target")
    refused(lambda: Table(csv, "y", formula="y ~ a"), "task.target beside task.formula")
    refused(lambda: Table(csv), "no target", "task.formula")
    frame = example()
    frame.loc[3, "a"] = np.nan
    frame.loc[4, "b"] = np.nan
    frame.to_csv(tmp_path / "holes.csv", index=False)
    refused(lambda: Table(str(tmp_path / "holes.csv"), formula="y ~ a"), "missing values", "'a'", error=DataError)
    assert sum(Table(str(tmp_path / "holes.csv"), formula="y ~ a", missing="drop").sizes.values()) == ROWS - 1


@pytest.mark.parametrize(
    "formula",
    [
        "y ~ __import__('os')", "y ~ a.mean()", "y ~ np.load('x')", "y ~ eval('1')", "y ~ {[c for c in a]}",
        "y ~ {(lambda: a)()}", "y ~ exec('a=1')", "y ~ a | {open('x').read()}", "open('x') ~ a", "y ~ {a ** 10 ** 9}",
        "y ~ {a[0]}", "y ~ C(kind, contr.__class__)", "y ~ {np.log.__globals__}", "y ~ {f'{a}'}", "y ~ lag(a)", "y ~ {a if a else b}",
    ],
)  # fmt: skip
def test_a_formula_runs_no_code_but_arithmetic(formula):
    """A configuration comes from anywhere: it is refused before anything of it is evaluated."""
    refused(lambda: Design(formula), "task.formula")


@pytest.mark.parametrize(
    "formula", ["y ~ {a ** 2 + 1}", "y ~ I(a / b)", "y ~ C(kind, contr.sum)", "y ~ bs(a, df=4) | np.abs(z)"]
)
def test_arithmetic_is_allowed(csv, formula):
    assert len(Table(csv, formula=formula).feature_names) >= 1


def test_the_words_of_a_shell_arrive_as_they_are(csv):
    formula = "y ~ a + C(kind) + a:b + poly(b, 2) | z"
    settings = compose(("task=table", f"task.path={csv}", f"task.formula={formula}")).config
    assert settings["task"]["formula"] == formula
    with pytest.raises(MoeError):
        compose(("task=table", f"task.path={csv}", "task.formular=y ~ a"))
