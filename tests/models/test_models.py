"""Models: shapes, twins at equal FLOPs, per-layer parts, and no layer sharing weights with another."""

from __future__ import annotations

import pytest
import torch

from moecli.config import compose
from moecli.errors import UsageError
from moecli.mixture import Alone
from moecli.models.attention import rotate
from moecli.models.size import measure
from moecli.run import assemble


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    file = tmp_path_factory.mktemp("text") / "a.txt"
    file.write_text("the cat sat on the mat and saw the rat; " * 80)
    return [
        f"task.path={file}",
        "task.context=16",
        "model.dim=16",
        "expert.hidden=8",
        "num_experts=4",
        "trainer.batch_size=4",
    ]


def built(*words: str):
    return assemble(compose(list(words)))


@pytest.mark.parametrize("twin", ["false", "true"])
@pytest.mark.parametrize(
    "words",
    [
        ["task=spirals"],
        ["task=piecewise"],
        ["task=spirals", "model=density"],
        ["task=regions", "model.shared=1", "model=layer"],
    ],
)
def test_models_of_whole_examples(words, twin):
    parts = built(*words, f"model.twin={twin}", "num_experts=4")
    batch = parts.task.train_batch(0, 32, 0)
    losses = parts.objective(parts.model(batch.x), batch.target)
    losses["total"].backward()
    assert losses["total"].isfinite() and all(
        p.grad is None or p.grad.isfinite().all() for p in parts.model.parameters()
    )
    assert all(isinstance(layer.router, Alone) == (twin == "true") for layer in parts.model.mixtures.values())


@pytest.mark.parametrize(
    "words",
    [
        ["task=digits"],
        ["task=digits", "router=dense"],
        ["task=digits", "router=expert_choice"],
        ["task=digits", "router=soft_slots"],
        ["task=digits", "router.capacity_factor=0.5"],
        ["task=digits", "expert.activation=swiglu"],
        ["task=digits", "model.shared=2"],
        ["task=piecewise", "expert=linear"],
    ],
)
def test_the_twin_has_the_active_flops_of_the_mixture(words):
    mixture, twin = built(*words), built(*words, "model.twin=true")
    assert twin.size.flops == pytest.approx(mixture.size.flops, rel=0.02, abs=12)
    assert twin.size.active == twin.size.total


def test_active_parameters_are_those_a_token_touches():
    parts = built("task=digits", "num_experts=8", "router.k=2")
    layer = parts.model.mixtures["layer0"]
    of_experts = sum(p.numel() for p in layer.experts.parameters())
    others = sum(p.numel() for p in parts.model.parameters()) - of_experts
    assert parts.size.total == of_experts + others and parts.size.active == others + of_experts * 2 // 8
    assert parts.size.rows == {"layer0": 2.0}


def test_no_two_layers_share_weights():
    parts = built("task=spirals", "model.depth=3", "model.head=true")
    pointers = [p.data_ptr() for p in parts.model.parameters()]
    assert len(parts.model.mixtures) == 3 and len(set(pointers)) == len(pointers)
    routers = [layer.router for layer in parts.model.mixtures.values()]
    assert not torch.equal(routers[0].gate.linear.weight, routers[1].gate.linear.weight)


def test_a_layer_may_have_other_parts(text):
    words = ["task=text", *text, "model.depth=2", "model.every=1"]
    parts = built(*words, "+model.layers.block1.router=hash", "+model.layers.block0.num_experts=2")
    assert parts.objective.idle == {"switch_balance": {"block1"}}  # hash has no gate to balance
    with pytest.raises(UsageError, match="whole number"):
        built(*words, "+model.layers.block1.num_experts=abc")
    names = {name: type(layer.router).__name__ for name, layer in parts.model.mixtures.items()}
    assert names == {"block0": "TopK", "block1": "Hash"}
    assert parts.model.mixtures["block0"].experts.num_experts == 2
    with pytest.raises(UsageError, match=r"block9.*This model has: block0, block1"):
        built(*words, "+model.layers.block9.router=hash")
    with pytest.raises(UsageError, match=r"block1.*future"):
        built(*words, "+model.layers.block1.router=expert_choice", "auxiliary=[]")


def test_a_leak_is_let_through_only_when_allowed(text):
    words = ["task=text", *text, "router=expert_choice"]
    with pytest.raises(UsageError, match="a token sees the future"):
        built(*words)
    assert built(*words, "model.allow_leak=true").model.allow_leak


def test_the_transformer_is_causal_and_reads_positions(text):
    parts = built("task=text", *text, "model.depth=2", "model.every=2")
    assert list(parts.model.mixtures) == ["block1"]
    model = parts.model.eval().double()
    ids = parts.task.train_batch(0, 2, 0).x
    changed = ids.clone()
    changed[:, 10:] = (changed[:, 10:] + 1) % parts.task.vocab_size
    with torch.no_grad():
        a, b = model(ids).prediction, model(changed).prediction
    assert torch.allclose(a[:, :10], b[:, :10], atol=1e-12) and not torch.allclose(a[:, 10:], b[:, 10:], atol=1e-3)
    assert a.shape == (2, 16, parts.task.vocab_size)


def test_rotary_attention_depends_on_distance_alone():
    q, k = torch.randn(2, 1, 1, 8, dtype=torch.float64).unbind()
    a, b = (rotate(v.expand(1, 1, 10, 8)) for v in (q, k))  # the same vector at every place
    scores = [(a[0, 0, i] @ b[0, 0, i + 3]).item() for i in (0, 2, 6)]
    assert scores[0] == pytest.approx(scores[1]) == pytest.approx(scores[2])
    assert scores[0] != pytest.approx((a[0, 0, 0] @ b[0, 0, 4]).item())


def test_refusals_of_sizes(text):
    with pytest.raises(UsageError, match="even share"):
        built("task=text", *text, "model.dim=20", "model.heads=4")
    with pytest.raises(UsageError, match="Lower model"):
        built("task=text", *text, "model.every=9")


def test_measuring_changes_nothing(text):
    parts = built("task=text", *text)
    before = {n: p.clone() for n, p in parts.model.state_dict().items()}
    parts.model.train()
    measure(parts.model, parts.task.train_batch(0, 2, 0).x)
    assert parts.model.training and all(torch.equal(before[n], p) for n, p in parts.model.state_dict().items())
