"""Forms of the layer: shared experts, experts without work, dropout in experts, finer experts, pyramids, routers' rates."""

import pytest
import torch

from moecli.config import compose
from moecli.errors import UsageError
from moecli.experts.feed_forward import FeedForward
from moecli.experts.identity import Identity
from moecli.experts.linear import Linear
from moecli.experts.zero import Zero
from moecli.gates.linear import Linear as LinearGate
from moecli.mixture import SHARED_MIXES, MixtureOfExperts
from moecli.plan import Dense
from moecli.routers.dense import Dense as DenseRouter
from moecli.routing import Tokens
from moecli.run import assemble
from moecli.training.gradient import by_rate

DIM, EXPERTS = 6, 4
SMALL = ["task=spirals", "task.rows=60", "num_experts=4", "expert.hidden=8"]


def layer(mix):
    torch.manual_seed(0)
    shared = SHARED_MIXES[mix](Linear(DIM, DIM, 2), DIM)
    return MixtureOfExperts(
        DenseRouter(lambda width: LinearGate(DIM, width), EXPERTS), Linear(DIM, DIM, EXPERTS), shared
    ).double()


@pytest.mark.parametrize("mix", SHARED_MIXES)
def test_shared_experts_come_together_as_their_formula_says(mix):
    built, x = layer(mix), torch.randn(9, DIM, dtype=torch.float64)
    y, routing = built(Tokens.items(x))
    alone = torch.einsum("nd,edy->ny", x, built.shared.experts.weight) + built.shared.experts.bias.sum(0)
    routed = built.experts.blend(routing.plan, x)
    if mix == "add":
        assert routing.shared is None
        expected = routed + alone
    else:
        g = torch.sigmoid(built.shared.gate(x))
        assert torch.equal(routing.shared, g[:, 0])
        expected = routed + g * alone if mix == "gate" else g * alone + (1 - g) * routed
    assert torch.allclose(y, expected, atol=1e-12) and not torch.allclose(y, routed, atol=1e-3)


def test_the_mix_is_a_softmax_of_two():
    """PR-MoE's coefficients softmax(a, b) are sigmoid(a - b) and its complement."""
    a, b = torch.randn(2, 5, dtype=torch.float64)
    assert torch.allclose(torch.stack([a, b]).softmax(0)[0], torch.sigmoid(a - b))


def test_a_budget_needs_a_learned_weight_and_pulls_it_there():
    with pytest.raises(UsageError, match=r"model.shared=1 model.shared_mix=mix"):
        assemble(compose([*SMALL, "auxiliary=[shared_budget]"]))
    words = [*SMALL, "model.shared=1", "model.shared_mix=mix", "auxiliary=[shared_budget]"]
    parts = assemble(compose([*words, "auxiliary.shared_budget.budget=0.3"]))
    batch = parts.task.train_batch(0, 40, 0)
    optimizer = torch.optim.Adam(parts.model.parameters(), 0.05)
    for _ in range(60):
        optimizer.zero_grad()
        values = parts.objective(parts.model(batch.x, batch.known), batch.target)
        values["shared_budget"].backward()
        optimizer.step()
    routed = 1 - next(iter(parts.model(batch.x).routings.values())).shared.mean()
    assert abs(float(routed) - 0.3) < 0.05


def test_experts_without_work_hand_through_or_answer_nothing():
    x = torch.randn(5, DIM)
    plan = Dense(torch.randn(5, EXPERTS).log_softmax(-1))
    assert torch.allclose(Identity(DIM, DIM, EXPERTS).blend(plan, x), x, atol=1e-6)
    assert not Zero(DIM, 3, EXPERTS).blend(plan, x).any() and Zero(DIM, 3, EXPERTS).flops() == 0
    with pytest.raises(UsageError, match="expert=identity"):
        Identity(DIM, 3, EXPERTS)


def test_experts_of_all_kinds_stand_side_by_side():
    words = [*SMALL[:3], "expert=several", "expert.kinds.linear=zero", "expert.kinds.feed_forward=identity"]
    parts = assemble(compose([*words, "router=dense", "model.head=true"]))
    batch = parts.task.train_batch(0, 8, 0)
    experts = parts.model.mixtures["layer0"].experts
    assert [type(kind) for kind in experts.kinds] == [Zero, Identity]
    output = parts.model(batch.x)
    half = next(iter(output.routings.values())).probs[:, 2:].sum(-1, keepdim=True)  # weight of the identities
    assert torch.allclose(output.prediction, parts.model.head(batch.x + half * batch.x), atol=1e-6)


def test_dropout_in_experts_is_of_training_alone():
    torch.manual_seed(0)
    experts = FeedForward(DIM, 3, 2, hidden=400, dropout=0.4)
    rows, plan = torch.randn(50, DIM), Dense(torch.zeros(50, 2))
    whole = experts.eval().blend(plan, rows)
    assert torch.equal(whole, experts.blend(plan, rows))
    some = torch.stack([experts.train().blend(plan, rows) for _ in range(200)])
    assert not torch.equal(some[0], whole)
    assert (some.mean(0) - whole).abs().max() < 6 * (some.std(0) / 200**0.5).max()  # unbiased


def test_finer_experts_cost_the_same():
    """Cut into 4, chosen 4 times as many (DeepSeekMoE): the experts' parameters and FLOPs stay what they were."""
    coarse = assemble(
        compose([*SMALL[:2], "num_experts=4", "router.k=1", "router.renormalize=false", "expert.hidden=32"])
    )
    fine = assemble(compose([*SMALL[:2], "num_experts=16", "router.k=4", "expert.hidden=8", "expert.bias=true"]))

    def weights(parts):
        experts = parts.model.mixtures["layer0"].experts
        return experts.up.weight.numel() + experts.down.weight.numel()

    rows = [parts.size.rows["layer0"] * parts.model.mixtures["layer0"].experts.flops() for parts in (coarse, fine)]
    assert weights(coarse) == weights(fine) and rows[0] == rows[1]


def test_a_pyramid_has_more_experts_in_later_layers():
    parts = assemble(compose([*SMALL, "model.depth=2", "+model.layers.layer1.num_experts=8"]))
    assert [layer.experts.num_experts for layer in parts.model.mixtures.values()] == [4, 8]


@pytest.mark.parametrize(("rate", "moved"), [(0.0, 0.0), (0.1, 0.1), (1.0, 1.0)])
def test_routers_learn_at_a_rate_of_their_own(rate, moved):
    parts = assemble(compose(SMALL))
    groups = by_rate(parts.model, rate)
    assert sum(len(group["params"]) for group in groups) == len(list(parts.model.parameters()))
    assert [group.get("rate", 1.0) for group in groups] == ([1.0] if rate == 1 else [1.0, moved])
    frozen = [not p.requires_grad for p in parts.model.mixtures["layer0"].router.parameters()]
    assert all(frozen) == (rate == 0)
