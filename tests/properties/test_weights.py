"""Weights, beliefs and edges of every router (P1-P4, P12, P30, P31, P33), against its formula in plain loops."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from torch import Tensor

from moecli.errors import UsageError
from moecli.plan import Slots, Sparse
from moecli.routing import GroupedRouting, Router, Tokens
from tests.properties.cases import (
    DIM,
    F64,
    FORMS,
    NAMES,
    ROUTERS,
    SEEDS,
    SIZES,
    given_gates,
    state_of,
    tokens,
    with_x,
)
from tests.properties.references import REFERENCES, places

BOTH_MODES = pytest.mark.parametrize("training", [True, False])
EVERY_FORM = pytest.mark.parametrize(("name", "e", "options"), FORMS, ids=NAMES)
# the others' formulas are in test_transport (balanced_assignment), test_tables (replay) and below (soft_slots)
CHECKED = [(form, name) for form, name in zip(FORMS, NAMES, strict=True) if form[0] in REFERENCES]


def test_the_walk_finds_every_router():
    assert {name for name, _, _ in FORMS} == set(ROUTERS) and len(ROUTERS) >= 20
    assert set(ROUTERS) - set(REFERENCES) == {"balanced_assignment", "replay", "soft_slots"}
    assert len(CHECKED) >= 41


def facts(router: Router, name: str, e: int) -> dict:
    """What a reference must be told of the router's state."""
    if name == "hash":
        return {"tables": router.table}
    if name == "sigmoid_bias":
        router.bias.copy_(torch.linspace(-0.3, 0.3, e)[torch.arange(e) * 3 % e])
        return {"bias": router.bias}
    return {}


def gradient(table: Tensor, direction: Tensor, x: Tensor) -> Tensor:
    if not table.requires_grad:
        return torch.zeros_like(x)
    grad = torch.autograd.grad((table * direction).sum(), x, allow_unused=True, retain_graph=True)[0]
    return torch.zeros_like(x) if grad is None else grad


@BOTH_MODES
@pytest.mark.parametrize("form", [form for form, _ in CHECKED], ids=[name for _, name in CHECKED])
@settings(max_examples=8, deadline=None)
@given(sizes=SIZES, seed=SEEDS)
def test_weights_belief_and_their_gradients_are_those_of_the_formula(form, training, sizes, seed):
    name, e, options = form
    router = given_gates(name, e, **options).train(training)
    seen = {**{k: v for k, v in options.items() if k != "hashes"}, **facts(router, name, e)}
    t = tokens([*sizes, 2], seed)  # of one token alone Sinkhorn's plan is uniform, a tie
    x = t.x.requires_grad_()
    torch.manual_seed(seed)
    routing = router(t)
    torch.manual_seed(seed)
    expected = REFERENCES[name](t, e, training, **seen)
    direction = torch.randn(len(x), e, dtype=F64)
    for found, wanted in zip((routing.plan.weights, routing.probs), expected, strict=True):
        assert torch.allclose(found, wanted, atol=1e-11, rtol=1e-11)
        ours, theirs = gradient(found, direction, x), gradient(wanted, direction, x)
        assert torch.allclose(ours, theirs, atol=1e-10, rtol=1e-9)


@pytest.mark.parametrize("group", ["auto", "position", "batch"])
@settings(max_examples=15, deadline=None)
@given(sizes=SIZES, seed=SEEDS)
def test_soft_slots_are_two_softmaxes(group, sizes, seed):
    """P27: over a group's tokens for what enters a slot, over all slots for what leaves."""
    e, slots = 3, 2
    t = tokens(sizes, seed)
    plan = given_gates("soft_slots", e, slots=slots, group=group)(t).plan
    logits = t.x[:, : e * slots].view(-1, e, slots)
    odds = logits.exp()
    key = {"auto": t.group, "position": t.position, "batch": torch.zeros_like(t.group)}[group]
    into = torch.stack([odds[n] / odds[key == key[n]].sum(0) for n in range(len(odds))])
    assert torch.allclose(plan.into, into, atol=1e-12)
    assert torch.allclose(plan.out, odds / odds.sum((1, 2), keepdim=True), atol=1e-12)
    x = torch.randn(len(t.x), 4, dtype=F64)
    for g, own in enumerate(key.unique().tolist()):  # a slot is an average of its own group's tokens
        inside = key == own
        averages = torch.einsum("nep,nd->epd", into[inside], x[inside])
        assert torch.allclose(plan.dispatch(x).view(e, -1, slots, 4)[:, g], averages, atol=1e-12)
    assert plan.groups.counts.tolist() == [len(key.unique()) * slots] * e


def test_one_slot_of_one_expert_is_the_mean_of_the_tokens():
    t = tokens([6], 0)
    t = with_x(t, torch.cat([torch.zeros(6, 1, dtype=F64), t.x[:, 1:]], -1))  # no preference at all
    plan = given_gates("soft_slots", 1, slots=1)(t).plan
    assert torch.allclose(plan.combine(plan.dispatch(t.x)), t.x.mean(0).expand_as(t.x), atol=1e-12)


@EVERY_FORM
@BOTH_MODES
@settings(max_examples=4, deadline=None)
@given(sizes=SIZES, seed=SEEDS)
def test_edges_beliefs_and_usage_add_up(name, e, options, training, sizes, seed):
    """P1, P4: beliefs and weights are no less than 0, edges unique and sorted, and what is counted is what is there."""
    router, t = given_gates(name, e, **options).train(training), tokens(sizes, seed)
    routing = router(t)
    plan, usage, n = routing.plan, routing.usage, sum(sizes)
    assert routing.probs.shape == (n, e) and (routing.probs >= 0).all() and (plan.weights >= 0).all()
    assert torch.allclose(routing.probs.sum(-1), torch.ones(n, dtype=F64), atol=1e-12)
    total = plan.weights.sum(-1)
    if router.claims(training).density:
        assert torch.allclose(total, torch.ones(n, dtype=F64), atol=1e-12)
    assert (total <= max(options.get("scale", 1.0), options.get("hashes", 1), e) + 1e-12).all()
    first = torch.tensor([int((routing.probs.argmax(-1) == i).sum()) for i in range(e)])
    assert torch.equal(usage.first, first) and usage.tokens == n
    assert torch.allclose(usage.mass, plan.weights.sum(0))
    logs = torch.where(routing.probs > 0, routing.probs, 1.0).log()
    assert torch.allclose(usage.entropy, -(routing.probs * logs).sum())
    assert torch.equal(routing.example, t.example) and torch.equal(routing.position, t.position)
    if isinstance(plan, Sparse):
        check_edges(plan, usage, n, e)
    else:
        assert usage.ranks.shape == (2, e) and (usage.ranks == 0).all() and torch.equal(usage.served, usage.mass)


def check_edges(plan: Sparse, usage, n: int, e: int) -> None:
    edges = list(zip(plan.token.tolist(), plan.expert.tolist(), strict=True))
    assert len(set(edges)) == len(edges) and (plan.expert.diff() >= 0).all()
    assert plan.num_tokens == n and plan.num_experts == e and usage.asked.dtype == torch.int64
    counts = [sum(expert == i for _, expert in edges) for i in range(e)]
    assert usage.asked.tolist() == usage.served.tolist() == plan.groups.counts.tolist() == counts
    ranks = [sum(min(choice, e - 1) == i for choice in plan.choice.tolist()) for i in range(e)]
    assert usage.ranks.tolist() == [ranks, ranks] and usage.dropped == 0
    if len(edges):
        assert torch.allclose(usage.load, torch.tensor(counts).float() / len(edges))


RANKED = [
    (form, name) for form, name in zip(FORMS, NAMES, strict=True) if form[0] not in ("soft_slots", "dense", "catch_up")
]


@pytest.mark.parametrize("form", [form for form, _ in RANKED], ids=[name for _, name in RANKED])
@settings(max_examples=4, deadline=None)
@given(sizes=SIZES, seed=SEEDS)
def test_choices_are_ranked_without_gaps_and_best_first(form, sizes, seed):
    """P3: a token's choices are 0, 1, ..., in the order of their weight (an expert's picks, for expert choice)."""
    name, e, options = form
    plan = given_gates(name, e, **options).eval()(tokens(sizes, seed)).plan
    owner = plan.expert if name == "expert_choice" else plan.token
    for own in owner.unique():
        inside = owner == own
        order = plan.choice[inside].argsort()
        if name != "expert_choice" or options.get("group") == "batch":
            assert plan.choice[inside].sort().values.tolist() == list(range(int(inside.sum())))
        if name not in ("hierarchical", "sigmoid_bias", "expert_choice"):  # in order of groups, or of biased scores
            assert (plan.log_weight[inside][order].diff() <= 1e-12).all()


SOFTMAX = [form for form in FORMS if form[0] not in ("bernoulli", "sigmoid_bias", "balanced_assignment", "hash", "oracle",
                                                     "replay", "hierarchical", "noisy_top_k", "soft_slots")]  # fmt: skip


@pytest.mark.parametrize(("name", "e", "options"), SOFTMAX)
@settings(max_examples=5, deadline=None)
@given(sizes=SIZES, seed=SEEDS)
def test_a_constant_added_to_all_logits_of_a_softmax_changes_nothing(name, e, options, sizes, seed):
    """P12, in evaluation; one logit alone does (the control)."""
    router, t = given_gates(name, e, **options).eval(), tokens(sizes, seed)
    before = router(t).probs
    assert torch.allclose(router(with_x(t, t.x + 7.5)).probs, before, atol=1e-12)
    assert torch.allclose(router(with_x(t, t.x + 7.5)).plan.weights, router(t).plan.weights, atol=1e-12)
    one = torch.zeros(DIM, dtype=F64)
    one[0] = 7.5
    assert not torch.allclose(router(with_x(t, t.x + one)).probs, before, atol=1e-3)


@pytest.mark.parametrize("name", ["bernoulli", "sigmoid_bias", "balanced_assignment"])
def test_sigmoid_gates_do_see_a_constant(name):
    router, t = given_gates(name, 4).eval(), tokens([9], 0)
    moved = router(with_x(t, t.x + 2.0)).plan.weights
    assert not torch.allclose(moved, router(t).plan.weights, atol=1e-3)


@EVERY_FORM
def test_evaluation_is_deterministic_and_nothing_it_does_stays(name, e, options):
    """P31: the same bits twice, no generator moved, no buffer changed."""
    router, t = given_gates(name, e, **options).eval(), tokens([5, 3, 6], 3)
    state, noise = state_of(router), torch.get_rng_state()
    first, second = router(t), router(t)
    assert torch.equal(first.plan.weights, second.plan.weights) and torch.equal(first.probs, second.probs)
    assert torch.equal(torch.get_rng_state(), noise)
    assert all(torch.equal(value, state[key]) for key, value in router.state_dict().items())


@EVERY_FORM
@BOTH_MODES
def test_belief_and_weights_are_float32_under_autocast_and_the_same(name, e, options, training):
    """P33: whatever the autocast and the dtype of x, a router computes in float32 or better."""
    router, t = given_gates(name, e, **options).train(training), tokens([5, 4], 1)
    answers = []
    for enabled in (True, False):
        torch.manual_seed(0)
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            answers.append(router(with_x(t, t.x.bfloat16())))
    for one in answers:
        assert one.probs.dtype == one.plan.weights.dtype == torch.float32
        assert one.logits is None or one.logits.dtype == torch.float32
    assert torch.equal(answers[0].plan.weights, answers[1].plan.weights)


@settings(max_examples=15, deadline=None)
@given(sizes=SIZES, seed=SEEDS)
def test_experts_come_from_the_chosen_groups_alone(sizes, seed):
    """P30, of both routers that limit groups, and against a router without the limit."""
    for name, best_of in (("group_limited", 1), ("sigmoid_bias", 2)):
        t = tokens(sizes, seed)
        routing = given_gates(name, 8, groups=4, limit=2, k=3)(t)
        assert isinstance(routing, GroupedRouting) and (routing.num_groups, routing.limit) == (4, 2)
        reached = routing.plan.demand.view(-1, 4, 2).amax(-1)
        assert (reached.sum(-1) <= 2).all() and (routing.plan.demand.sum(-1) == 3).all()
        score = t.x[:, :8].sigmoid().view(-1, 4, 2)
        strength = score.topk(best_of, -1).values.sum(-1)
        weakest = strength.masked_fill(reached == 0, math.inf).amin(-1)
        assert ((reached.sum(-1) < 2) | (weakest >= strength.topk(2).values[:, -1])).all()


@pytest.mark.parametrize(
    ("name", "e", "options", "needle"),
    [
        ("top_k", 4, {"k": 5}, "only 4 experts"),
        ("top_k", 4, {"k": 1}, "never learns"),
        ("noisy_top_k", 4, {"k": 1}, "no task gradient"),
        ("noisy_top_k", 4, {"k": 5}, "only 4 experts"),
        ("group_limited", 8, {"k": 1, "renormalize": True}, "never learns"),
        ("group_limited", 6, {"groups": 4}, "equal groups"),
        ("group_limited", 8, {"groups": 4, "limit": 5}, "equal groups"),
        ("group_limited", 8, {"groups": 4, "limit": 2, "k": 5}, "hold 4 experts"),
        ("sigmoid_bias", 8, {"groups": 3}, "equal groups"),
        ("hierarchical", 8, {"groups": 3}, "equal groups"),
        ("hierarchical", 8, {"groups": 4, "k": 3}, "equal groups"),
        ("hierarchical", 8, {"groups": 4, "k_groups": 5}, "equal groups"),
        ("hierarchical", 8, {"k": 1}, "no gradient reaches the gates"),
        ("random_second", 1, {}, "only 1 experts"),
        ("sinkhorn", 2, {"k": 3}, "only 2 experts"),
        ("replay", 2, {"k": 3}, "only 2 experts"),
        ("hash", 5, {"hashes": 2}, "do not divide"),
    ],
)
def test_what_cannot_be_is_refused(name, e, options, needle):
    """Also P17: one renormalised choice has the constant weight 1, and no gate would learn."""
    with pytest.raises(UsageError, match=needle):
        given_gates(name, e, **options)


@pytest.mark.parametrize(
    ("name", "e", "options"),
    [
        ("top_k", 4, {"k": 4}),
        ("top_k", 1, {"k": 1}),
        ("noisy_top_k", 1, {"k": 1}),
        ("group_limited", 8, {"groups": 4, "limit": 4, "k": 8}),
        ("group_limited", 8, {"groups": 4, "limit": 2, "k": 4}),
        ("group_limited", 1, {"groups": 1, "limit": 1, "k": 1, "renormalize": True}),
        ("hierarchical", 8, {"groups": 4, "k_groups": 4, "k": 2}),
        ("hierarchical", 1, {"groups": 1, "k": 1}),
        ("random_second", 2, {}),
        ("sinkhorn", 2, {"k": 2}),
        ("sigmoid_bias", 2, {"k": 1}),
    ],
)
def test_the_largest_that_can_be_is_not(name, e, options):
    routing = given_gates(name, e, **options).eval()(tokens([3, 2], 0))
    assert (routing.plan.demand.sum(-1) == options.get("k", 2) * options.get("k_groups", 1)).all()


@settings(max_examples=40, deadline=None)
@given(seed=SEEDS)
def test_a_nucleus_is_sufficient_and_no_smaller_one_is(seed):
    """top_p against every subset of experts, by size."""
    t = tokens([3], seed)
    router = given_gates("top_p", 4, p=0.7)
    routing = router(t)
    for n in range(3):
        chosen = routing.plan.weights[n] > 0
        inside = routing.probs[n][chosen]
        assert inside.sum() >= 0.7 > inside.sum() - inside.min()
        assert routing.probs[n][~chosen].max() <= inside.min() if (~chosen).any() else len(inside) == 4


def test_a_belief_of_exactly_p_is_enough():
    t = with_x(tokens([1], 0), torch.zeros(1, DIM, dtype=F64))
    assert int((given_gates("top_p", 4, p=0.5)(t).plan.weights > 0).sum()) == 2  # 1/4 + 1/4
    certain = torch.zeros(1, DIM, dtype=F64)
    certain[0, 1:] = -2_000.0  # beliefs (1, 0, 0, 0): an expert of no belief is never asked
    assert given_gates("top_p", 4, p=0.999)(with_x(t, certain)).plan.expert.tolist() == [0]


def test_all_of_the_belief_is_without_those_who_have_none():
    """Ten tenths in float64 add up to less than one, so even the one expert of no belief seems to be needed."""
    believed = torch.zeros(1, 11, dtype=F64)
    believed[0, 3] = -2_000.0
    t = with_x(tokens([1], 0, dim=11), believed)
    assert given_gates("top_p", 11, p=1.0)(t).plan.expert.tolist() == [0, 1, 2, 4, 5, 6, 7, 8, 9, 10]


def test_places_are_those_of_fractions():
    assert (places(25, 1.2, 3), places(3, 0.1, 8), places(4, 9.0, 2)) == (10, 1, 4)


def test_slots_have_no_likelihood():
    assert isinstance(given_gates("soft_slots", 2, slots=1)(tokens([3], 0)).plan, Slots)
    assert not hasattr(Slots, "log_mix") and not hasattr(Slots, "joint")


def test_a_router_that_looks_back():
    """Each token goes where the layer before sent it: ``tokens.previous`` is that layer's routing."""

    class Again(Router):
        def route(self, tokens: Tokens):
            from moecli.routing import Routing

            before = tokens.previous
            return Routing(before.plan, before.probs, before.logits)

    t = tokens([4, 3], 0)
    first = given_gates("top_k", 4)(t)
    later = Tokens(-t.x, t.example, t.position, t.group, previous=first)
    assert torch.equal(Again()(later).plan.weights, first.plan.weights)
    assert not torch.equal(given_gates("top_k", 4)(later).plan.weights, first.plan.weights)  # the control
