"""Around the router: bias that balances without a loss (P25), shared experts (P32), micro-batches of a training step."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from moecli.config import compose
from moecli.experts.linear import Linear
from moecli.mixture import SHARED_MIXES, MixtureOfExperts
from moecli.routing import Usage
from moecli.run import assemble
from moecli.training.gradient import Gradient, Loop
from tests.properties.cases import DIM, F64, SEEDS, SIZES, given_gates, state_of, tokens

# -- P25 -------------------------------------------------------------------------------------------------------


def use_of(asked: list[int]) -> Usage:
    count = torch.tensor(asked)
    none = torch.zeros_like(count)
    return Usage(count, count, torch.stack([count, count]), none, none.double(), torch.zeros(()), 1)


@settings(max_examples=40, deadline=None)
@given(asked=st.lists(st.integers(0, 9), min_size=2, max_size=8), rate=st.floats(0.001, 1.0))
def test_the_bias_moves_by_its_rate_towards_the_less_asked(asked, rate):
    router = given_gates("sigmoid_bias", len(asked), k=1, rate=rate)
    start = torch.linspace(-1, 1, len(asked), dtype=F64)
    router.bias.copy_(start)
    router.after_step(use_of(asked))
    mean = sum(asked) / len(asked)
    steps = torch.tensor([(mean > a) - (mean < a) for a in asked])
    assert torch.allclose(router.bias, start + rate * steps.double(), atol=1e-12)


@settings(max_examples=20, deadline=None)
@given(sizes=SIZES, seed=SEEDS)
def test_the_bias_steers_the_choice_and_never_the_weight(sizes, seed):
    """With a bias that forbids expert 0 the weights are those of a router that has none of it."""
    router, t = given_gates("sigmoid_bias", 4), tokens(sizes, seed)
    plain = router(t)
    router.bias[0] -= 10.0
    steered = router(t)
    assert (steered.plan.weights[:, 0] == 0).all() and torch.equal(steered.probs, plain.probs)
    score = t.x[:, 1:4].sigmoid()
    two = score.topk(2).values
    assert torch.allclose(steered.plan.weights.amax(-1), two[:, 0] / two.sum(-1), atol=1e-12)


def test_the_bias_balances_and_is_frozen_in_evaluation():
    router, t = given_gates("sigmoid_bias", 4, rate=0.02), tokens([60], 0)
    t.x[:, :4] = 0.3 * t.x[:, :4] + torch.tensor([1.0, 0.5, -0.5, -1.0], dtype=F64)
    before = router(t).usage.load.max()
    for _ in range(60):
        router.after_step(router(t).usage)
    assert before > 0.4 and router(t).usage.load.max() < 0.3
    state = state_of(router)
    router.eval()(t)
    assert torch.equal(router.bias, state["bias"])
    idle = given_gates("sigmoid_bias", 4, rate=0.0)
    idle.after_step(use_of([9, 0, 0, 0]))
    assert (idle.bias == 0).all()


# -- P32 -------------------------------------------------------------------------------------------------------


def shared_layer(mix: str, router: str = "top_k") -> MixtureOfExperts:
    torch.manual_seed(0)
    shared = SHARED_MIXES[mix](Linear(DIM, 3, 2), DIM)
    return MixtureOfExperts(given_gates(router, 4), Linear(DIM, 3, 4), shared).double()


@pytest.mark.parametrize("mix", ["add", "gate", "mix"])
@settings(max_examples=10, deadline=None)
@given(sizes=SIZES, seed=SEEDS)
def test_shared_experts_join_the_routed_ones_by_their_formula(mix, sizes, seed):
    layer, t = shared_layer(mix), tokens(sizes, seed)
    y, routing = layer(t)
    experts = layer.shared.experts
    alone = torch.einsum("nd,edy->ny", t.x, experts.weight) + experts.bias.sum(0)
    routed = layer.experts.blend(layer.router(t).plan, t.x)
    if mix == "add":
        weight, expected = None, routed + alone
    else:
        gate = layer.shared.gate
        weight = torch.sigmoid(t.x @ gate.weight[0] + (0.0 if gate.bias is None else gate.bias))
        expected = routed + weight[:, None] * alone
        if mix == "mix":
            expected = (1 - weight[:, None]) * routed + weight[:, None] * alone
        assert torch.allclose(routing.shared, weight, atol=1e-12)
    assert torch.allclose(y, expected, atol=1e-11) and (routing.shared is None) == (weight is None)


@pytest.mark.parametrize("mix", ["add", "gate", "mix"])
def test_without_routed_weights_only_the_shared_experts_answer(mix):
    """No coin is on: y is the shared experts', by their weight."""
    layer, t = shared_layer(mix, "bernoulli"), tokens([4, 3], 0)
    t.x[:, :4] = -90.0
    y, routing = layer.eval()(t)
    assert len(routing.plan.token) == 0
    weight = 1.0 if routing.shared is None else routing.shared[:, None]
    assert torch.allclose(y, weight * layer.shared.alone(t.x), atol=1e-12)
    t.x[:, :4] = 90.0
    assert not torch.allclose(layer(t)[0], weight * layer.shared.alone(t.x), atol=1e-3)  # the control


# -- the trainer -------------------------------------------------------------------------------------------------


def step(scope: str, micro: int) -> tuple[dict[str, Tensor], list[Tensor]]:
    """The losses and gradients of one training step, in float64."""
    words = ["task=spirals", "task.rows=100", "model=layer", "router=top_k", "auxiliary=[importance]",
             f"auxiliary.importance.scope={scope}", "auxiliary.importance.weight=30"]  # fmt: skip
    torch.manual_seed(0)
    parts = assemble(compose(words))
    batch = parts.task.train_batch(0, 20, 0)
    batch = replace(batch, x=batch.x.double())
    loop = object.__new__(Loop)
    loop.plan, loop.stateful = Gradient(micro_batches=micro), {}
    loop.job = SimpleNamespace(model=parts.model.double(), objective=parts.objective, device=torch.device("cpu"))
    losses, _ = loop._descend(batch, False)
    return losses, [p.grad for p in parts.model.parameters() if p.grad is not None]


def test_a_step_in_micro_batches_is_the_step_of_one_batch():
    """Of a term that balances over all of them, to 1e-12; one that balances each alone descends elsewhere."""
    for scope in ("global", "batch"):
        (whole, one), (parts, many) = step(scope, 1), step(scope, 3)
        same = all(torch.allclose(a, b, atol=1e-12) for a, b in zip(one, many, strict=True))
        assert same == (scope == "global") and len(one) > 3
        assert torch.allclose(parts["loss"], whole["loss"], atol=1e-12)
        assert torch.allclose(parts["total"], whole["total"], atol=1e-10) == (scope == "global")
