"""Gate and experts that read different columns: equal to what they are without the others, and one line where wrong."""

from __future__ import annotations

import pandas
import pytest
import torch

import moecli
from moecli.analysis.matrix import gate_refusal
from moecli.compatibility import SMALL
from moecli.config import build, compose, option_node, registry
from moecli.errors import UsageError
from moecli.experts.experts import Experts
from moecli.gates.gate import Gate
from moecli.plan import Dense, Groups
from moecli.run import assemble, load, predictions
from moecli.training.em import em_step

COLUMNS = [6, 1, 3]
F64 = torch.float64
SIZES = {**SMALL, "out": 2}


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def pair(group: str, option: str):
    """The part over COLUMNS of eight features, and the same part over three features."""
    node = option_node(group, option)
    some = build({**node, "columns": COLUMNS}, **SIZES).double().eval()
    alone = build(node, **{**SIZES, "dim": 3}).double().eval()
    inner = some.gate if group == "gate" else some.experts
    alone.load_state_dict(inner.state_dict())
    return some, alone


def items(thing: Gate | Experts, n: int = 30) -> torch.Tensor:
    shape = (n, 9, 8) if "item rank 2" in thing.needs else (n, 8)
    return torch.randn(*shape, dtype=F64)


def elsewhere(x: torch.Tensor) -> torch.Tensor:
    """x with everything changed but COLUMNS."""
    changed = torch.randn_like(x)
    changed[..., COLUMNS] = x[..., COLUMNS]
    return changed


@pytest.mark.parametrize("option", registry()["gate"])
def test_a_gate_sees_its_columns_and_nothing_else(option):
    some, alone = pair("gate", option)
    assert (some.needs, some.gives, some.blind) == (alone.needs, alone.gives, alone.blind)
    x, resp = items(some), torch.rand(30, 4, dtype=F64)
    for _ in range(2):
        for seen in (x, elsewhere(x)):
            for ours, theirs in (
                (some, alone),
                (some.log_joint, alone.log_joint),
                (some.log_marginal, alone.log_marginal),
            ):
                assert torch.equal(ours(seen), theirs(x[..., COLUMNS]))
        some.fit(x, resp), alone.fit(x[..., COLUMNS], resp)
    assert some.blind or not torch.allclose(some(torch.randn_like(x)), some(x), atol=1e-3)


@pytest.mark.parametrize(
    "option", sorted(registry()["expert"].keys() - {"sklearn", "identity", "zero"})
)  # tests/experts has the first
def test_experts_see_their_columns_and_nothing_else(option):
    some, alone = pair("expert", option)
    assert (some.needs, some.gives, some.num_experts) == (alone.needs, alone.gives, 4)
    x = items(some)
    plan = Dense(torch.randn(30, 4, dtype=F64).log_softmax(-1))
    for seen in (x, elsewhere(x)):
        assert torch.allclose(some.blend(plan, seen), alone.blend(plan, x[..., COLUMNS]), atol=1e-12)
        assert torch.equal(some.rows(plan, seen), alone.rows(plan, x[..., COLUMNS]))
        assert torch.allclose(some(plan.dispatch(seen), plan.groups), some.rows(plan, x), atol=1e-12)
    assert some.flops() == alone.flops()
    twin = some.twin(1e4).double()
    one = Groups(torch.tensor([30]), even=True)
    assert torch.equal(twin(x, one), twin(elsewhere(x), one))
    if "expert fit" in some.gives:
        z, w = torch.randn(30, 4, 2, dtype=F64), torch.rand(30, 4, 1, dtype=F64)
        some.fit(x, z, w), alone.fit(x[..., COLUMNS], z, w)
        assert torch.equal(some.rows(plan, x), alone.rows(plan, x[..., COLUMNS]))
    constant = option == "constant"
    assert constant or not torch.allclose(some.rows(plan, torch.randn_like(x)), some.rows(plan, x), atol=1e-3)


def test_parts_within_parts_read_columns_of_what_their_owner_reads():
    node = {**option_node("gate", "tree"), "columns": [5, 2]}
    node["node"] = {**node["node"], "columns": ["b"]}
    gate = build(node, **SIZES, feature_names=["", "", "b", "", "", "a", "", ""]).double()
    x = torch.randn(5, 8, dtype=F64)
    changed = torch.randn_like(x)
    assert not torch.equal(gate(x), gate(changed))
    changed[:, 2] = x[:, 2]
    assert torch.equal(gate(x), gate(changed))


@pytest.mark.parametrize("gate", [g for g in registry()["gate"] if g != "tdnn"])
@pytest.mark.parametrize("trainer", ["em", "gradient"])
def test_every_gate_trains_on_its_columns(gate, trainer):
    """Both trainers: the gate moves with column 0 alone, the experts with column 1 alone."""
    assert gate_refusal("dense", gate) is None
    words = ["model=density", "router=dense", "expert=linear", "num_experts=3", f"gate={gate}", f"trainer={trainer}"]
    parts = assemble(compose(["task=regions", "task.rows=300", *words, "gate.columns=[0]", "expert.columns=[y]"]))
    batch = parts.task.train_batch(0, 200, 0)
    layer = parts.model.layer0
    if trainer == "em":
        values = [em_step(layer, batch.x, batch.target).joint_nll for _ in range(3)]
        assert values[2] <= values[1] <= values[0]
    else:
        parts.objective(parts.model(batch.x), batch.target)["total"].backward()
        assert all(p.grad is not None for p in layer.experts.parameters())
    other = batch.x.clone()
    other[:, 1] += 1
    assert torch.equal(layer.router.gate(batch.x), layer.router.gate(other))
    answer, moved = (parts.model.experts_alone(x) for x in (batch.x, other))
    assert not torch.equal(answer, moved)
    other = batch.x.clone()
    other[:, 0] += 1
    assert torch.equal(answer, parts.model.experts_alone(other))


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("gate.columns=[0,2]", r"gate.columns=\[0,2\]: no feature 2. Choose from 0 to 1, or by name: x, y"),
        ("gate.columns=[xx]", r"no feature xx. Did you mean x\?"),
        ("expert.columns=[-1]", r"expert.columns=\[-1\]: no feature -1"),
        ("expert.columns=[1.5]", "no feature 1.5"),
        ("gate.columns=[]", "no feature none"),
        ("gate.column=[0]", r"no such key. Did you mean gate.columns\?"),
        ("router.columns=[0]", "no such key"),
    ],
)
def test_a_wrong_column_is_one_line(word, said):
    with pytest.raises(UsageError, match=said) as caught:
        assemble(compose(["task=regions", word]))
    assert "\n" not in str(caught.value)


def test_columns_are_kept_as_they_were_named():
    config = compose(["task=regions", "gate.columns=[x, 1]", "expert.columns=y"]).config
    assert config["gate"]["columns"] == ["x", 1] and config["expert"]["columns"] == "y"
    assert compose(["task=regions"]).config["gate"]["columns"] is None


def test_a_run_on_some_columns_is_drawn_loaded_and_predicts(tmp_path):
    table = pandas.DataFrame({"sepal length": torch.randn(120).tolist(), "b": torch.randn(120).tolist()})
    table["y"] = (table.b > 0) * 2.0 + table["sepal length"]
    table.to_csv(tmp_path / "a.csv", index=False)
    run = moecli.train(
        "task=table", f"task.path={tmp_path / 'a.csv'}", "task.target=y", "model=density", "router=dense", "num_experts=2",
        "expert=linear", "trainer=em", "trainer.steps=5", "gate.columns=[b]", "expert.columns=[sepal length]",
        runs=tmp_path / "runs",
    )  # fmt: skip
    assert run.info["config"]["gate.columns"] == ["b"]
    assert any((run.path / "plots").iterdir()) and "the picture" not in (run.path / "log.txt").read_text()
    loaded = load(run.path)
    answers = predictions(loaded, tmp_path / "a.csv")
    assert len(answers) == 120 and answers.filter(like="prediction").notna().all(axis=None)
    table["b"] = 0.0
    table["sepal length"] = 1.0
    table.to_csv(tmp_path / "b.csv", index=False)
    flat = predictions(loaded, tmp_path / "b.csv").filter(like="prediction")
    assert flat.nunique().eq(1).all() and answers.filter(like="prediction").nunique().gt(1).all()


def test_columns_of_a_part_that_reads_none_are_refused():
    with pytest.raises(UsageError, match="columns"):
        build({**option_node("router", "hash"), "columns": [0]}, **SIZES)
