"""Edge filters on every router that takes them (P4-P6): who is served, against a brute-force oracle, and what is counted."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from moecli.plan import Dense, Slots, Sparse
from moecli.routing import Capacity, Mask, Remove, Router, Tokens, fair_share, lot
from tests.properties.cases import F64, FORMS, NAMES, ROUTERS, SEEDS, SIZES, given_gates, picked, tokens
from tests.properties.references import places

TAKES_NONE = {"expert_choice", "soft_slots"}
FILTERED = [(form, name) for form, name in zip(FORMS, NAMES, strict=True) if form[0] not in TAKES_NONE]
EVERY_FORM = pytest.mark.parametrize("form", [form for form, _ in FILTERED], ids=[name for _, name in FILTERED])
TENTHS = st.integers(1, 40).map(lambda tenth: tenth / 10)
Edge = tuple[int, int, int, float]  # token, expert, choice, log-weight


def edges_of(plan: Sparse) -> list[Edge]:
    columns = (plan.token, plan.expert, plan.choice, plan.log_weight)
    return list(zip(*(column.tolist() for column in columns), strict=True))


def priority(asked: list[Edge], by: str) -> Callable[[Edge], tuple]:
    """Who goes first; by weight, first choices of the tokens with the heaviest one, as V-MoE does."""
    heaviest = {token: max(edge[3] for edge in asked if edge[0] == token) for token in {edge[0] for edge in asked}}
    return {
        "position": lambda edge: (edge[2], edge[0]),
        "token": lambda edge: (edge[0], edge[2]),
        "weight": lambda edge: (edge[2], -heaviest[edge[0]], edge[0]),
    }[by]


def limits(asked: Sparse, t: Tokens, router: Router, factor: float) -> dict[int, int]:
    """Of each group: what one expert may serve of it."""
    found = {}
    for group in set(t.group.tolist()):
        size = int((t.group == group).sum())
        work = sum(int(t.group[token]) == group for token in asked.token.tolist())
        if router.steady:  # a token counts with all its choices
            work = max(work, size * router.choices)
        found[group] = min(places(work, factor, asked.num_experts), size)
    return found


def oracle(asked: Sparse, t: Tokens, router: Router, factor: float, by: str) -> set[tuple[int, int]]:
    served, order = set(), priority(edges_of(asked), by)
    for group, limit in limits(asked, t, router, factor).items():
        inside = [edge for edge in edges_of(asked) if int(t.group[edge[0]]) == group]
        for expert in range(asked.num_experts):
            queue = sorted((edge for edge in inside if edge[1] == expert), key=order)
            served |= {edge[:2] for edge in queue[:limit]}
    return served


def test_the_walk_finds_every_router():
    assert {form[0] for form, _ in FILTERED} == set(ROUTERS) - TAKES_NONE and len(FILTERED) >= 40


@EVERY_FORM
@settings(max_examples=9, deadline=None)
@given(
    sizes=SIZES, seed=SEEDS, factor=TENTHS, by=st.sampled_from(["position", "token", "weight"]), training=st.booleans()
)
def test_who_is_served_is_what_the_oracle_says(form, sizes, seed, factor, by, training):
    name, e, options = form
    router = given_gates(name, e, **options, capacity_factor=factor, capacity_by=by).train(training)
    t = tokens(sizes, seed)
    routing = router(t)
    asked, plan = routing.asked.edges(), routing.plan
    served = oracle(asked, t, router, factor, by)
    assert {edge[:2] for edge in edges_of(plan)} == served
    assert set(edges_of(plan)) <= set(edges_of(asked))  # who is served keeps weight and rank
    assert (plan.expert.diff() >= 0).all() and not plan.groups.even
    dropped = torch.tensor([[(n, i) not in served for i in range(e)] for n in range(len(t.x))])
    assert (plan.weights[dropped] == 0).all()
    assert torch.equal(plan.weights[~dropped], asked.weights[~dropped])
    check_counts(routing, e)


def check_counts(routing, e: int) -> None:
    """Drops by rank of choice, against brute force; a dense plan counts mass."""
    usage = routing.usage
    if isinstance(routing.asked, Dense):
        assert torch.allclose(usage.asked, routing.asked.weights.sum(0)) and (usage.ranks[0] == 0).all()
    for row, plan in enumerate((routing.asked, routing.plan)):
        if isinstance(plan, Sparse):
            ranks = [sum(min(edge[2], e - 1) == rank for edge in edges_of(plan)) for rank in range(e)]
            assert usage.ranks[row].tolist() == ranks
    asked, served = usage.asked.double().sum(), usage.served.double().sum()
    assert usage.dropped == pytest.approx(float(1 - served / asked) if asked else 0.0, abs=1e-6)


@pytest.mark.parametrize("k", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("by", ["position", "token", "weight"])
@settings(max_examples=8, deadline=None)
@given(sizes=SIZES, seed=SEEDS, factor=TENTHS)
def test_top_k_with_a_limit_for_each_k(k, by, sizes, seed, factor):
    router = given_gates("top_k", 5, k=k, renormalize=False, capacity_factor=factor, capacity_by=by)
    t = tokens(sizes, seed)
    routing = router(t)
    assert {edge[:2] for edge in edges_of(routing.plan)} == oracle(routing.asked, t, router, factor, by)
    drops = (routing.usage.ranks[0] - routing.usage.ranks[1]).tolist()
    kept = set(edges_of(routing.plan))
    expected = [sum(edge[2] == rank and edge not in kept for edge in edges_of(routing.asked)) for rank in range(5)]
    assert drops == expected


@EVERY_FORM
@settings(max_examples=4, deadline=None)
@given(sizes=SIZES, seed=SEEDS, factor=TENTHS)
def test_a_random_order_fills_each_queue_to_its_limit(form, sizes, seed, factor):
    name, e, options = form
    router, t = given_gates(name, e, **options, capacity_factor=factor, capacity_by="random"), tokens(sizes, seed)
    routing = router(t)
    asked, kept = edges_of(routing.asked.edges()), edges_of(routing.plan)
    for group, limit in limits(routing.asked.edges(), t, router, factor).items():
        for expert in range(e):
            wanted, got = (sum(x[1] == expert and int(t.group[x[0]]) == group for x in part) for part in (asked, kept))
            assert got == min(wanted, limit)


def test_a_random_order_favours_nobody_and_is_one_draw_in_evaluation():
    """Eight tokens want one expert, which serves two of each group of eight: each is served in a quarter of draws."""
    router = given_gates("argmax", 4, capacity_factor=1.0, capacity_by="random")
    t = tokens([8], 0)
    t.x[:, 0] = 50.0
    torch.manual_seed(0)
    draws = 1_500
    share = sum(router(t).plan.demand[:, 0] for _ in range(draws)) / draws
    assert ((share - 0.25).abs() < 4 * (0.25 * 0.75 / draws) ** 0.5).all()
    router.eval()
    assert torch.equal(router(t).plan.token, router(t).plan.token)
    assert torch.equal(lot(9, False), torch.randperm(9, generator=torch.Generator().manual_seed(9)))
    before = torch.get_rng_state()
    router(t)
    assert torch.equal(torch.get_rng_state(), before)


@EVERY_FORM
def test_no_limit_is_dropless_to_the_bit(form):
    """P6; and a factor of one tenth is not (the control), yet never below one token an expert."""
    name, e, options = form
    t, plans = tokens([9, 4], 1), {}
    for factor in (None, math.inf, 0.1):
        torch.manual_seed(0)
        plans[factor] = given_gates(name, e, **options, capacity_factor=factor)(t).plan
    assert torch.equal(plans[None].weights, plans[math.inf].weights)
    assert not torch.equal(plans[None].weights, plans[0.1].weights)
    asked, served = plans[None].edges(), plans[0.1]
    for group in (0, 1):
        of_asked, of_served = ({x[1] for x in edges_of(p) if int(t.group[x[0]]) == group} for p in (asked, served))
        assert of_asked == of_served
    assert int(served.groups.counts.max()) <= 2 * max(1, math.ceil(0.1 * 9 * e / e))


def test_training_and_evaluation_have_factors_apart():
    t = tokens([12], 0)

    def dropped(training: bool, **factors) -> bool:
        return given_gates("top_k", 4, **factors).train(training)(t).usage.dropped > 0

    assert dropped(True, capacity_factor=0.5) and dropped(False, capacity_factor=0.5)
    assert not dropped(True, eval_capacity_factor=0.5) and dropped(False, eval_capacity_factor=0.5)
    assert dropped(True, capacity_factor=0.5, eval_capacity_factor=math.inf)
    assert not dropped(False, capacity_factor=0.5, eval_capacity_factor=math.inf)
    assert (
        given_gates("top_k", 4).filters == ()
        and len(given_gates("top_k", 4, capacity_factor=1.0, mask=0.1).filters) == 2
    )


def test_a_fair_share_is_rounded_up_but_not_by_rounding_errors():
    """GShard's capacity for two of E experts is 2 N / E; 0.1 + 0.2 makes no extra place."""
    work = torch.tensor([2 * 64, 10, 3, 0])
    assert fair_share(work, 1.0, 8).tolist() == [16, 2, 1, 1]
    assert fair_share(torch.tensor([10]), 0.1 + 0.2, 1).tolist() == [3]
    assert fair_share(torch.tensor([10]), 0.3 + 1e-6, 1).tolist() == [4]
    assert fair_share(torch.tensor([5]), 99.0, 4).tolist() == [5]


# -- masking and removing --------------------------------------------------------------------------


@pytest.mark.parametrize("p", [0.2, 0.7])
def test_a_masked_token_loses_all_its_experts_with_that_chance(p):
    router, t = given_gates("top_k", 4, mask=p), tokens([2_000], 0)
    torch.manual_seed(0)
    routing = router(t)
    left = routing.plan.demand.sum(-1)
    assert set(left.unique().tolist()) == {0.0, 2.0}
    share = float((left == 0).double().mean())
    assert abs(share - p) < 4 * (p * (1 - p) / 2_000) ** 0.5
    assert routing.usage.dropped == pytest.approx(share, abs=1e-6)
    kept = left > 0
    assert torch.equal(routing.plan.weights[kept], routing.asked.weights[kept])
    assert torch.equal(router.eval()(t).plan.weights, routing.asked.weights)


def test_filters_apply_in_order_and_every_plan_lets_one_expert_go():
    t = tokens([6, 5], 0)
    for name in ("dense", "top_k", "soft_slots", "expert_choice"):
        router = given_gates(name, 4)
        whole = router(t).plan
        router.filters = (Remove(2),)
        left = router(t).plan
        assert (left.weights[:, 2] == 0).all() and (whole.weights[:, 2] > 0).any()
        served = left.weights.sum(-1) > 0
        assert torch.allclose(left.weights.sum(-1)[served], whole.weights.sum(-1)[served], atol=1e-12)
        others = [0, 1, 3]
        ratio = left.weights[served][:, others] / left.weights[served].sum(-1, keepdim=True)
        before = whole.weights[served][:, others] / whole.weights[served][:, others].sum(-1, keepdim=True)
        assert torch.allclose(ratio, before, atol=1e-12)
        if isinstance(left, Slots):
            assert torch.equal(left.into, whole.into)


# -- what a filter does to claims --------------------------------------------------------------------

CLAIMS = [
    # router, options, (density, balanced, causal, independent) in training, the same in evaluation
    ("top_k", {"k": 1, "renormalize": False, "capacity_factor": 0.6}, (0, 0, 1, 0), (0, 0, 1, 0)),
    ("top_k", {"capacity_factor": 0.6}, (0, 0, 0, 0), (0, 0, 0, 0)),
    ("top_k", {"capacity_factor": 0.6, "capacity_by": "token"}, (0, 0, 1, 0), (0, 0, 1, 0)),
    ("top_k", {"capacity_factor": 0.6, "capacity_by": "weight"}, (0, 0, 0, 0), (0, 0, 0, 0)),
    ("top_k", {"k": 1, "renormalize": False, "capacity_factor": 0.6, "capacity_by": "weight"}, (0, 0, 0, 0), (0, 0, 0, 0)),
    ("top_k", {"eval_capacity_factor": 0.6}, (1, 0, 1, 1), (0, 0, 0, 0)),
    ("top_k", {"capacity_factor": math.inf}, (1, 0, 1, 1), (1, 0, 1, 1)),
    ("top_k", {"mask": 0.5}, (0, 0, 1, 1), (1, 0, 1, 1)),
    ("top_k", {"k": 4, "mask": 0.5}, (0, 0, 1, 1), (1, 1, 1, 1)),
    ("argmax", {"capacity_factor": 0.6, "capacity_by": "weight"}, (0, 0, 1, 0), (0, 0, 1, 0)),
    ("argmax", {"capacity_factor": 0.6, "capacity_by": "random"}, (0, 0, 0, 0), (0, 0, 0, 0)),
    ("top_p", {"renormalize": True, "capacity_factor": 0.6, "capacity_by": "token"}, (0, 0, 0, 0), (0, 0, 0, 0)),
    ("dense", {"capacity_factor": 0.6}, (0, 1, 1, 1), (0, 1, 1, 1)),
    ("dense", {"mask": 0.5}, (0, 1, 1, 1), (1, 1, 1, 1)),
    ("dense", {"capacity_factor": 0.6, "capacity_by": "weight"}, (0, 1, 0, 0), (0, 1, 0, 0)),
    ("hash", {"capacity_factor": 0.6}, (0, 0, 1, 0), (0, 0, 1, 0)),
    ("hash", {"by": "position", "capacity_factor": 0.6, "capacity_by": "random"}, (0, 0, 1, 1), (0, 0, 1, 1)),
]  # fmt: skip


@pytest.mark.parametrize(("name", "options", "training", "evaluation"), CLAIMS)
def test_what_a_filter_leaves_of_the_claims(name, options, training, evaluation):
    """The contract test proves claims by perturbation; this is the table, so that both must move together."""
    router = given_gates(name, 4, **options)
    for mode, expected in ((True, training), (False, evaluation)):
        claims = router.claims(mode)
        found = (claims.density, claims.balanced, claims.causal, claims.independent)
        assert found == tuple(bool(x) for x in expected)


def test_a_filter_that_is_off_leaves_the_plan_itself():
    router, t = given_gates("top_k", 4), tokens([5], 0)
    plan = router(t).plan
    assert Capacity(None, None, "position")(plan, t, router) is plan
    assert Mask(0.5)(plan, t, router.eval()) is plan
    assert Mask(0.5).narrow(router.claims(False), router, False) == router.claims(False)
    assert Remove(0).narrow(router.claims(False), router, False) == router.claims(False)


@settings(max_examples=20, deadline=None)
@given(sizes=SIZES, seed=SEEDS)
def test_usage_adds_up_over_any_parts(sizes, seed):
    router, t = given_gates("top_k", 4), tokens(sizes, seed)
    cut = sum(sizes) // 2
    whole, first, second = (
        router(picked(t, torch.arange(*part))).usage for part in ((0, sum(sizes)), (0, cut), (cut, sum(sizes)))
    )
    both = first + second
    for name in ("asked", "served", "ranks", "first", "mass", "entropy"):
        assert torch.allclose(getattr(both, name).to(F64), getattr(whole, name).to(F64)), name
    assert both.tokens == whole.tokens == sum(sizes)
