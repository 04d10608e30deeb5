"""Auxiliary terms against closed forms, their golden values and their gradients."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from moecli.config import compose
from moecli.errors import UsageError
from moecli.losses.entropy import Entropy
from moecli.losses.importance import Importance
from moecli.losses.load import Load
from moecli.losses.nll import NegativeLogLikelihood
from moecli.losses.objective import Objective
from moecli.losses.switch_balance import SwitchBalance
from moecli.losses.term import cv_squared
from moecli.losses.z_loss import ZLoss
from moecli.mixture import Output
from moecli.plan import Dense, Sparse
from moecli.routing import NoisyRouting, Routing
from moecli.run import assemble

NONE = torch.zeros(0)


def routed(logits: torch.Tensor, k: int = 1, example: torch.Tensor | None = None) -> Routing:
    top, expert = logits.topk(k)
    plan = Sparse.from_choices(expert, top - logits.logsumexp(-1, keepdim=True), logits.shape[1])
    example = torch.zeros(len(logits), dtype=torch.int64) if example is None else example
    return Routing(plan, logits.softmax(-1), logits, asked=plan, example=example, position=example)


def even(n: int, e: int) -> torch.Tensor:
    """Tokens whose first choices go round, with equal belief but for a hair."""
    return 1e-9 * torch.eye(e, dtype=torch.float64).repeat(n // e, 1)


@pytest.mark.parametrize("k", [1, 2, 4])
def test_switch_balance_of_uniform_use_is_exactly_one_for_any_k(k):
    logits = even(32, 8)
    for shift in range(1, k):
        logits = logits + 0.5e-9 * even(32, 8).roll(shift, 1) / 1e-9
    assert SwitchBalance().value(routed(logits, k), NONE).item() == pytest.approx(1.0, abs=1e-8)


def test_switch_balance_of_full_collapse_is_the_number_of_experts():
    logits = torch.zeros(20, 8, dtype=torch.float64)
    logits[:, 3] = 50.0
    assert SwitchBalance().value(routed(logits), NONE).item() == pytest.approx(8.0, abs=1e-12)


def test_one_is_no_minimum_for_hard_counts():
    """51 tokens with belief (.51, .49) and 49 with (.01, .99): 2 (.51 x .265 + .49 x .735) = 0.9906."""
    probs = torch.tensor([[0.51, 0.49]] * 51 + [[0.01, 0.99]] * 49, dtype=torch.float64)
    value = SwitchBalance().value(routed(probs.log()), NONE).item()
    assert value == pytest.approx(
        2 * (0.51 * (51 * 0.51 + 0.49) / 100 + 0.49 * (51 * 0.49 + 49 * 0.99) / 100), abs=1e-12
    )
    assert value < 1


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000), st.integers(2, 6))
def test_switch_balance_of_a_dense_plan_is_at_least_one(seed, e):
    """Where f = P, Cauchy-Schwarz gives E sum f P >= 1."""
    logits = torch.randn(12, e, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    plan = Dense(logits.log_softmax(-1))
    routing = Routing(plan, plan.weights, logits, asked=plan, example=torch.zeros(12).long(), position=torch.arange(12))
    assert 1 - 1e-12 <= SwitchBalance().value(routing, NONE).item() <= e


def test_switch_balance_gradient_flows_through_belief_alone_and_balances():
    torch.manual_seed(0)
    logits = torch.randn(64, 4, dtype=torch.float64) + torch.tensor([2.0, 0, 0, 0])
    logits.requires_grad_()
    term = SwitchBalance()
    before = term.value(routed(logits), NONE).item()
    for _ in range(50):
        (grad,) = torch.autograd.grad(term.value(routed(logits), NONE), logits)
        assert grad.isfinite().all()
        logits = (logits - 5.0 * grad).detach().requires_grad_()
    assert term.value(routed(logits), NONE).item() < before
    share = torch.full((4,), 0.25, dtype=torch.float64)
    probs = logits.softmax(-1)
    expected = torch.autograd.grad(4 * (share * probs.mean(0)).sum(), logits)[0]
    assert expected.abs().max() < 1e-12  # uniform counts push nowhere


def test_importance_equals_its_formula():
    """Two tokens on experts 0 and 1 with weights .6 and .4: sums (.6, .4, 0), mean 1/3, CV^2 = 0.56."""
    plan = Sparse.from_choices(torch.tensor([[0], [1]]), torch.tensor([[0.6], [0.4]], dtype=torch.float64).log(), 3)
    routing = Routing(
        plan, torch.full((2, 3), 1 / 3), asked=plan, example=torch.zeros(2).long(), position=torch.arange(2)
    )
    expected = ((0.6 - 1 / 3) ** 2 + (0.4 - 1 / 3) ** 2 + (1 / 3) ** 2) / 3 / (1 / 9)
    assert Importance().value(routing, NONE).item() == pytest.approx(expected, abs=1e-12)


def test_cv_squared_has_a_finite_gradient_at_perfect_balance():
    values = torch.ones(1, 5, dtype=torch.float64, requires_grad=True)
    (grad,) = torch.autograd.grad(cv_squared(values), values)
    assert (grad == 0).all()
    naive = torch.ones(5, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.grad(naive.var().sqrt() / naive.mean(), naive)[0].isnan().any()  # what it must not be


def test_load_reads_the_chance_of_being_chosen():
    chance = torch.tensor([[1.0, 0.0], [0.5, 0.5]], dtype=torch.float64)
    plan = Dense(torch.zeros(2, 2, dtype=torch.float64))
    routing = NoisyRouting(
        plan, chance, chance, chance=chance, asked=plan, example=torch.zeros(2).long(), position=torch.arange(2)
    )
    assert Load().value(routing, NONE).item() == pytest.approx(0.25, abs=1e-12)  # sums 1.5 and .5: var .25, mean 1


def test_z_loss_and_entropy_closed_forms():
    logits = torch.zeros(5, 4, dtype=torch.float64)
    assert ZLoss().value(routed(logits), NONE).item() == pytest.approx(torch.tensor(4.0).double().log().item() ** 2)
    assert Entropy().value(routed(logits), NONE).item() == pytest.approx(torch.tensor(4.0).double().log().item())
    extreme = torch.tensor([[1e4, -1e4, 0.0]], dtype=torch.float64)
    assert ZLoss().value(routed(extreme), NONE).isfinite() and Entropy().value(routed(extreme), NONE).item() == 0


def test_scope_of_a_sequence_averages_each_example_apart():
    """Two sequences that each collapse, on different experts: balanced over the batch, not within."""
    logits = torch.zeros(8, 2, dtype=torch.float64)
    logits[:4, 0] = logits[4:, 1] = 50.0
    routing = routed(logits, example=torch.arange(2).repeat_interleave(4))
    assert SwitchBalance(scope="batch").value(routing, NONE).item() == pytest.approx(1.0)
    assert SwitchBalance(scope="sequence").value(routing, NONE).item() == pytest.approx(2.0)
    assert "sequence" in SwitchBalance(scope="sequence").needs and "sequence" not in SwitchBalance().needs


def test_the_objective_reports_terms_unweighted_and_averages_over_layers():
    collapsed, fair = torch.zeros(8, 4, dtype=torch.float64), even(8, 4)
    collapsed[:, 0] = 50.0
    output = Output(torch.zeros(8, 1, dtype=torch.float64), {"a": routed(collapsed), "b": routed(fair)})
    output.routings["a"].example.copy_(torch.arange(8))
    losses = Objective(NegativeLogLikelihood(), {"balance": SwitchBalance(weight=0.1)})(
        output, torch.ones(8, 1).double()
    )
    assert losses["loss"].item() == pytest.approx(0.5)
    assert losses["balance"].item() == pytest.approx((4 + 1) / 2, abs=1e-6)
    assert losses["total"].item() == pytest.approx(0.5 + 0.1 * 2.5, abs=1e-6)


def test_a_term_sees_the_loss_of_each_token_s_example():
    """Two sequences of three tokens: patches of one image share its loss."""

    class Spy(ZLoss):
        def value(self, routing, example_loss):
            self.seen = example_loss
            return example_loss.sum()

    spy = Spy()
    routing = routed(torch.randn(6, 3), example=torch.tensor([0, 0, 0, 1, 1, 1]))
    output = Output(torch.zeros(2, 1), {"a": routing})
    Objective(NegativeLogLikelihood(), {"spy": spy})(output, torch.tensor([[1.0], [2.0]]))
    assert spy.seen.tolist() == [0.5] * 3 + [2.0] * 3


def test_nll_per_example():
    nll = NegativeLogLikelihood()
    logits, target = torch.randn(3, 5, 4), torch.randint(4, (3, 5))
    expected = torch.nn.functional.cross_entropy(logits.transpose(1, 2), target, reduction="none").mean(1)
    assert torch.allclose(nll(logits, target), expected)
    assert torch.allclose(
        nll(logits[:, 0], target[:, 0]), torch.nn.functional.cross_entropy(logits[:, 0], target[:, 0], reduction="none")
    )
    assert torch.allclose(nll(torch.zeros(2, 3), torch.ones(2, 3)), torch.full((2,), 1.5))


@pytest.mark.parametrize(
    ("term", "router", "why"),
    [("variance", "top_k", "on or off"), ("sparsity", "top_k", "on or off"), ("load", "top_k", "noise"),
     ("reinforce", "top_k", "draw"), ("switch_balance", "hash", "gate"), ("group_traffic", "top_k", "group")],
)  # fmt: skip
def test_a_term_whose_evidence_no_router_has_is_refused(term, router, why):
    task = ["task=languages", "model=transformer"] if router == "hash" else ["task=spirals"]
    with pytest.raises(UsageError, match=why):
        assemble(compose([*task, f"router={router}", f"auxiliary=[{term}]"]))
