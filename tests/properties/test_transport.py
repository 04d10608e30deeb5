"""Balanced choices (P26, P29): Sinkhorn's marginals, BASE against scipy's assignment, expert choice and its cap."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from moecli.routers.balanced_assignment import assign, places
from moecli.routers.expert_choice import capped
from moecli.routers.sinkhorn import transport
from tests.properties.cases import F64, SEEDS, given_gates, tokens, with_x
from tests.properties.references import transported


def values(n: int, e: int, seed: int, spread: float = 3.0) -> Tensor:
    return spread * torch.randn(n, e, dtype=F64, generator=torch.Generator().manual_seed(seed))


def total(value: Tensor, expert: Tensor) -> float:
    return float(value.gather(1, expert[:, None]).sum())


def hungarian(value: Tensor) -> float:
    """The greatest total of an assignment to ``places`` of each expert, by scipy."""
    columns = torch.arange(value.shape[1]).repeat_interleave(places(value)).numpy()
    table = value.numpy()[:, columns]
    rows, places_of = linear_sum_assignment(table, maximize=True)
    assert len(rows) == len(value)
    return float(table[rows, places_of].sum())


@settings(max_examples=60, deadline=None)
@given(n=st.integers(1, 24), e=st.integers(1, 6), seed=SEEDS, spread=st.sampled_from([1e-3, 1.0, 1e3]))
def test_the_auction_is_within_its_precision_of_the_best(n, e, seed, spread):
    value = values(n, e, seed, spread)
    expert = assign(value)
    counts = expert.bincount(minlength=e)
    assert expert.shape == (n,) and expert.dtype == torch.int64
    assert counts.max() - counts.min() <= 1 and torch.equal(counts, places(value))
    slack = 1e-3 * float(value.max() - value.min())
    assert hungarian(value) - slack - 1e-9 <= total(value, expert) <= hungarian(value) + 1e-9 * spread


@settings(max_examples=30, deadline=None)
@given(n=st.integers(2, 16), e=st.integers(2, 5), seed=SEEDS)
def test_at_a_fine_precision_the_auction_is_the_assignment(n, e, seed):
    value = values(n, e, seed)
    assert total(value, assign(value, 1e-9)) == pytest.approx(hungarian(value), abs=1e-7)


def test_the_auction_s_precision_is_what_it_is_asked_for():
    """Coarser is worse somewhere, so the bound above is no accident of an exact method."""
    lost = {precision: 0.0 for precision in (0.5, 1e-6)}
    for seed in range(60):
        value = values(20, 4, seed)
        for precision in lost:
            lost[precision] = max(lost[precision], hungarian(value) - total(value, assign(value, precision)))
    assert lost[0.5] > 1e-3 > 1e-4 > lost[1e-6]


@settings(max_examples=30, deadline=None)
@given(n=st.integers(0, 20), e=st.integers(1, 6), seed=SEEDS)
def test_places_differ_by_at_most_one_and_go_to_the_wanted(n, e, seed):
    value = values(n, e, seed)
    found = places(value) if n else torch.zeros(e).long()
    wanted = [int((value.argmax(-1) == i).sum()) if n else 0 for i in range(e)]
    extra = sorted(range(e), key=lambda i: -wanted[i])[: n % e]
    assert found.tolist() == [n // e + (i in extra) for i in range(e)]


@pytest.mark.parametrize("value", [torch.zeros(7, 3), torch.ones(4, 4), torch.eye(3), torch.full((5, 2), -1e30)])
def test_the_auction_ends_where_all_are_tied(value):
    counts = assign(value.double()).bincount(minlength=value.shape[1])
    assert counts.max() - counts.min() <= 1


def test_the_auction_of_nothing_and_of_one_expert():
    assert assign(torch.zeros(0, 3)).tolist() == [] and assign(torch.randn(4, 1)).tolist() == [0] * 4
    assert sorted(assign(values(2, 5, 0)).tolist()) == sorted(values(2, 5, 0).argmax(-1).tolist())


def test_the_best_assignment_is_found_where_greed_fails():
    """Both tokens like expert 0; the first loses more by leaving it: 9 + 5 > 8 + 1."""
    assert assign(torch.tensor([[9.0, 1.0], [8.0, 5.0]])).tolist() == [0, 1]


@settings(max_examples=15, deadline=None)
@given(n=st.integers(1, 14), seed=SEEDS)
def test_base_weighs_by_the_sigmoid_and_evaluates_greedily(n, seed):
    router, t = given_gates("balanced_assignment", 4), tokens([n], seed)
    x = t.x.requires_grad_()
    for training in (True, False):
        routing = router.train(training)(t)
        expert = assign(x.detach()[:, :4]) if training else x[:, :4].argmax(-1)
        mask = torch.nn.functional.one_hot(expert, 4)
        wanted = mask / (1 + (-x[:, :4]).exp())
        assert torch.allclose(routing.plan.weights, wanted, atol=1e-12)
        assert torch.allclose(routing.probs, x[:, :4].softmax(-1)) and routing.logits is not None
        direction = values(n, 4, seed)
        ours, theirs = (
            torch.autograd.grad((w * direction).sum(), x, retain_graph=True)[0] for w in (routing.plan.weights, wanted)
        )
        assert torch.allclose(ours, theirs, atol=1e-12)


# -- Sinkhorn --------------------------------------------------------------------------------------------


@settings(max_examples=30, deadline=None)
@given(n=st.integers(1, 20), e=st.integers(1, 6), seed=SEEDS)
def test_sinkhorn_has_the_marginals(n, e, seed):
    """Rows of 1 to rounding, columns of N / E in the limit; and the plan is that of plain scaling."""
    logits = values(n, e, seed, 1.0)
    plan = transport(logits, 300).exp()
    assert torch.allclose(plan.sum(1), torch.ones(n, dtype=F64), atol=1e-12)
    assert torch.allclose(plan.sum(0), torch.full((e,), n / e, dtype=F64), atol=1e-6)
    for iterations in (1, 2, 7):
        assert torch.allclose(transport(logits, iterations).exp(), transported(logits, iterations), atol=1e-9)
    ratio = transport(logits, 50) - logits  # P = diag(u) K diag(v): of rank one in the logarithm
    assert torch.allclose(ratio - ratio[:1] - ratio[:, :1] + ratio[:1, :1], torch.zeros_like(ratio), atol=1e-9)


def test_a_cold_plan_of_transport_is_the_assignment():
    value = values(8, 4, 3)
    cold = transport(value / 0.02, 4_000).argmax(-1)
    assert total(value, cold) == pytest.approx(hungarian(value), abs=1e-9)
    assert cold.bincount(minlength=4).tolist() == [2, 2, 2, 2]
    assert value.argmax(-1).bincount(minlength=4).tolist() != [2, 2, 2, 2]  # the control


# -- expert choice ------------------------------------------------------------------------------------------


@settings(max_examples=25, deadline=None)
@given(sizes=st.lists(st.integers(1, 9), min_size=1, max_size=4), factor=st.integers(1, 60), seed=SEEDS)
def test_each_expert_takes_exactly_its_capacity_in_each_group(sizes, factor, seed):
    """P26: E times the capacity in all, whatever the sizes of groups; the weights are beliefs."""
    t = tokens(sizes, seed)
    routing = given_gates("expert_choice", 4, capacity_factor=factor / 10)(t)
    capacity = [min(size, max(1, -(-factor * size // 40))) for size in sizes]
    for group, expected in enumerate(capacity):
        assert (routing.plan.demand[t.group == group].sum(0) == expected).all()
    assert routing.plan.groups.even and routing.plan.groups.counts.tolist() == [sum(capacity)] * 4
    taken = routing.plan.demand > 0
    assert torch.allclose(routing.plan.weights[taken], routing.probs[taken], atol=1e-12)


def naive(liking: np.ndarray, capacity: int, cap: int) -> np.ndarray:
    """The relaxed program of Zhou et al. (2022), section 3.2, by a general solver."""
    from scipy.optimize import minimize

    n, e = liking.shape

    def loss(a: np.ndarray) -> float:
        a = np.clip(a.reshape(n, e), 1e-12, 1)
        return float(-(a * liking).sum() + 0.2 * (a * np.log(a)).sum())

    constraints = [
        {"type": "eq", "fun": lambda a: a.reshape(n, e).sum(0) - capacity},
        {"type": "ineq", "fun": lambda a: cap - a.reshape(n, e).sum(1)},
    ]
    start = np.full(n * e, capacity / n)
    found = minimize(loss, start, bounds=[(0, 1)] * (n * e), constraints=constraints, method="SLSQP")
    assert found.success
    return found.x.reshape(n, e)


@pytest.mark.parametrize(("seed", "capacity", "cap"), [(0, 2, 2), (1, 2, 2), (2, 2, 2), (0, 1, 1), (1, 3, 2)])
def test_the_capped_plan_solves_its_program(seed, capacity, cap):
    """At a temperature of 0.2 the optimum is smooth: Dykstra's projections and a general solver agree."""
    liking = values(1, 5 * 3, seed, 1.0).view(1, 5, 3).softmax(-1)
    plan = capped(liking, torch.tensor([capacity]), cap, temperature=0.2, rounds=3_000).exp()[0]
    assert torch.allclose(plan.sum(0), torch.full((3,), float(capacity), dtype=F64), atol=1e-4)
    assert (plan.sum(1) <= cap + 1e-4).all() and (plan <= 1 + 1e-4).all() and (plan >= 0).all()
    assert np.allclose(plan.numpy(), naive(liking[0].numpy(), capacity, cap), atol=5e-3)


@pytest.mark.parametrize(("cap", "factor", "size"), [(1, 1.0, 8), (2, 2.0, 12)])
def test_a_cap_bounds_how_many_experts_take_a_token(cap, factor, size):
    """Of places that are as scarce as they can be: nobody is over the cap once the projections have converged."""
    free = kept = converged = 0
    for seed in range(8):
        t = tokens([size], seed)
        plain = given_gates("expert_choice", 4, capacity_factor=factor)(t)
        router = given_gates("expert_choice", 4, capacity_factor=factor, cap=cap)
        capacity = int(plain.plan.groups.counts[0])
        exact = capped(plain.probs[None], torch.tensor([capacity]), cap, temperature=0.01, rounds=3_000)[0]
        picks = torch.zeros(size, 4).scatter(0, exact.topk(capacity, dim=0).indices, 1.0)
        free, kept = free + over(plain.plan.demand, cap), kept + over(router(t).plan.demand, cap)
        converged += over(picks, cap)
        assert router(t).plan.groups.counts.tolist() == [capacity] * 4
    assert converged <= 1 and kept < free and free >= 10


def over(demand: Tensor, cap: int) -> int:
    """Tokens that more experts take than the cap allows."""
    return int((demand.sum(-1) > cap).sum())


def test_a_cap_of_all_experts_changes_nothing():
    t = tokens([7, 4], 3)
    t = with_x(t, t.x / 4)
    free = given_gates("expert_choice", 4)(t).plan.weights
    assert torch.allclose(given_gates("expert_choice", 4, cap=4)(t).plan.weights, free, atol=1e-12)
