"""Routers and filters: conservation, capacity against a brute-force oracle, equivariance, usage."""

from __future__ import annotations

import math
from dataclasses import replace
from fractions import Fraction

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from moecli.compatibility import SMALL, build_small, small_router
from moecli.config import build, option_node, registry
from moecli.errors import UsageError
from moecli.experts.linear import Linear
from moecli.plan import Dense, Slots, Sparse
from moecli.routing import Capacity, Remove, Tokens, Usage, fair_share

EXPERTS, DIM, VOCAB = SMALL["num_experts"], SMALL["dim"], SMALL["vocab_size"]


def made(router: str, gate: str = "linear", **options):
    torch.manual_seed(0)
    return build_small({**option_node("router", router), **options}, option_node("gate", gate)).double()


def sequences(b: int, t: int, seed: int = 0) -> Tokens:
    draw = torch.Generator().manual_seed(seed)
    x = 3 * torch.randn(b, t, DIM, generator=draw, dtype=torch.float64)
    known = {"label": torch.randint(5, (b, t), generator=draw), "row": torch.arange(b) * t}
    return Tokens.sequences(x, torch.randint(VOCAB, (b, t), generator=draw), known)


def ragged(sizes: list[int], seed: int = 0) -> Tokens:
    draw = torch.Generator().manual_seed(seed)
    example = torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes))
    position = torch.cat([torch.arange(size) for size in sizes])
    n = len(example)
    x = 3 * torch.randn(n, DIM, generator=draw, dtype=torch.float64)
    known = {"label": torch.randint(5, (n,), generator=draw), "row": torch.arange(n) - position}
    return Tokens(x, example, position, example, torch.randint(VOCAB, (n, 2), generator=draw), known)


@pytest.mark.parametrize("router", registry()["router"])
@settings(max_examples=15, deadline=None)
@given(sizes=st.lists(st.integers(1, 9), min_size=1, max_size=4), seed=st.integers(0, 99))
def test_every_router_takes_ragged_groups(router, sizes, seed):
    """N = 13 in two groups broke the sketch: every router serves groups of any size, one token included."""
    tokens = ragged(sizes, seed)
    routing = made(router)(tokens)
    y = Linear(DIM, 3, EXPERTS).double().blend(routing.plan, tokens.x)
    assert y.shape == (sum(sizes), 3) and y.isfinite().all()
    assert torch.allclose(routing.probs.sum(-1), torch.ones(sum(sizes), dtype=torch.float64))


# experts a token asks for; None where that differs from token to token
ASKED = {name: 2 for name in ("top_k", "noisy_top_k", "sigmoid_bias", "group_limited", "hierarchical")} | {
    "dense": EXPERTS, "catch_up": EXPERTS, "random_second": None, "bernoulli": None, "top_p": None,
}  # fmt: skip


@pytest.mark.parametrize(
    "router", [name for name in registry()["router"] if name not in ("expert_choice", "soft_slots")]
)
@settings(max_examples=10, deadline=None)
@given(n=st.integers(1, 30), seed=st.integers(0, 99))
def test_edges_are_conserved_and_weights_sum_to_one(router, n, seed):
    built, tokens = made(router), sequences(1, n, seed)
    routing = built(tokens)
    k = ASKED.get(router, 1)
    if k is not None:
        assert int(routing.plan.groups.counts.sum()) == n * k
    total = routing.plan.weights.sum(-1)
    if built.claims(training=True).density:
        assert torch.allclose(total, torch.ones(n, dtype=torch.float64))
    elif router != "bernoulli":
        assert (total <= 1 + 1e-12).all()
    if isinstance(routing.plan, Sparse):
        assert routing.plan.groups.counts.dtype == torch.int64
        assert torch.equal(routing.plan.groups.counts, routing.plan.expert.bincount(minlength=EXPERTS))
        edges = len(routing.plan.token)
        joint = routing.plan.joint(torch.zeros(edges, dtype=torch.float64))  # raises where an edge repeats
        assert joint.isfinite().sum() == edges == routing.usage.ranks[0].sum()


@settings(max_examples=30, deadline=None)
@given(n=st.integers(1, 20), seed=st.integers(0, 999))
def test_top_k_takes_the_k_largest(n, seed):
    router, tokens = made("top_k"), sequences(1, n, seed)
    chosen = router(tokens).plan.weights > 0
    logits = router.gate(tokens.x)
    best = logits.sort(descending=True).indices[:, :2]
    assert torch.equal(chosen, torch.zeros_like(chosen).scatter(1, best, True))


@settings(max_examples=40, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 12), min_size=1, max_size=3),
    factor=st.floats(0.1, 3.0),
    by=st.sampled_from(["position", "token", "weight"]),
    seed=st.integers(0, 999),
)
def test_capacity_against_a_brute_force_oracle(sizes, factor, by, seed):
    tokens = ragged(sizes, seed)
    router = made("top_k")
    plan = router(tokens).plan
    kept = Capacity(factor, factor, by)(plan, tokens, router.train())
    edges = list(
        zip(plan.token.tolist(), plan.expert.tolist(), plan.choice.tolist(), plan.log_weight.tolist(), strict=True)
    )
    heaviest = plan.weights.max(-1).values.tolist()
    order = {
        "position": lambda e: (e[2], e[0]),
        "token": lambda e: (e[0], e[2]),
        "weight": lambda e: (e[2], -heaviest[e[0]], e[0]),
    }[by]
    expected = set()
    for group in set(tokens.group.tolist()):
        inside = [edge for edge in edges if tokens.group[edge[0]] == group]
        limit = min(max(math.ceil(round(factor * len(inside) / EXPERTS, 9)), 1), sizes[group])
        for expert in range(EXPERTS):
            queue = sorted((edge for edge in inside if edge[1] == expert), key=order)
            expected |= {(token, expert) for token, _, _, _ in queue[:limit]}
    assert set(zip(kept.token.tolist(), kept.expert.tolist(), strict=True)) == expected
    assert (kept.expert.diff() >= 0).all()


@settings(max_examples=50, deadline=None)
@given(n=st.integers(1, 50), factor=st.floats(1e-3, 4))
def test_capacity_is_at_least_one_and_never_all_dropped(n, factor):
    """ceil, not floor: three tokens on eight experts at factor 1.25 once dropped them all."""
    tokens = sequences(1, n)
    router = made("top_k")
    kept = Capacity(factor, factor, "position")(router(tokens).plan, tokens, router)
    asked = made("top_k")(tokens).plan.groups.counts
    assert ((kept.groups.counts >= 1) | (asked == 0)).all()


def test_infinite_capacity_is_dropless_to_the_bit():
    tokens = sequences(2, 9)
    free, limited = made("top_k"), made("top_k", capacity_factor=math.inf)
    a, b = free(tokens).plan, limited(tokens).plan
    assert torch.equal(a.weights, b.weights) and limited.claims(True) == free.claims(True)
    assert not torch.equal(a.weights, made("top_k", capacity_factor=0.5)(tokens).plan.weights)


@pytest.mark.parametrize("router", ["dense", "top_k", "expert_choice", "soft_slots"])
def test_permuting_tokens_permutes_the_routing(router):
    tokens = sequences(1, 12)
    order = torch.randperm(12)
    other = Tokens(*(t[order] for t in (tokens.x, tokens.example, tokens.position, tokens.group, tokens.ids)))
    built = made(router)
    assert torch.allclose(built(tokens).plan.weights[order], built(other).plan.weights, atol=1e-12)


@pytest.mark.parametrize("router", ["dense", "top_k", "noisy_top_k", "expert_choice"])
def test_shifting_all_logits_changes_nothing(router):
    built, tokens = made(router).eval(), sequences(1, 10)
    before = built(tokens).plan.weights
    with torch.no_grad():
        built.gate.linear.bias += 100.0
    assert torch.allclose(built(tokens).plan.weights, before, atol=1e-10)
    with torch.no_grad():
        built.gate.linear.bias[0] += 1.0  # the control: one logit alone does
    assert not torch.allclose(built(tokens).plan.weights, before, atol=1e-3)


def test_expert_choice_takes_exactly_its_capacity():
    plan = made("expert_choice", capacity_factor=1.5)(ragged([8, 5])).plan
    assert plan.groups.counts.tolist() == [3 + 2] * EXPERTS  # ceil(1.5 * 8 / 4) and ceil(1.5 * 5 / 4)
    small = made("expert_choice", capacity_factor=100.0)(ragged([2, 1])).plan  # capacity is at most the group
    assert small.groups.counts.tolist() == [3] * EXPERTS


def test_soft_slots_sum_to_one_both_ways():
    tokens = ragged([6, 3])
    plan = made("soft_slots", slots=2)(tokens).plan
    assert isinstance(plan, Slots)
    per_group = torch.zeros(2, EXPERTS, 2, dtype=torch.float64).index_add(0, tokens.group, plan.into)
    assert torch.allclose(per_group, torch.ones_like(per_group))
    assert torch.allclose(plan.out.sum((1, 2)), torch.ones(9, dtype=torch.float64))


def test_hash_ignores_what_tokens_hold_and_is_the_same_in_every_process():
    router, tokens = made("hash"), sequences(2, 6)
    other = Tokens(-tokens.x, tokens.example, tokens.position, tokens.group, tokens.ids)
    assert torch.equal(router(tokens).plan.expert, router(other).plan.expert)
    assert sorted(router.table[0].bincount().tolist()) == [12, 12, 13, 13]  # 50 ids on 4 experts
    layered = build({**option_node("router", "hash")}, **{**SMALL, "layer": 1})
    assert not torch.equal(layered.table, router.table)
    with pytest.raises(ValueError, match="token ids"):
        router(Tokens.items(tokens.x))


def test_noise_is_off_in_evaluation_and_never_changes_buffers():
    router, tokens = made("noisy_top_k"), sequences(1, 30)
    router.train()
    assert not torch.equal(router(tokens).logits, router(tokens).logits)
    router.eval()
    assert torch.equal(router(tokens).logits, router(tokens).logits)


def test_noisy_top_k_of_all_experts_has_certain_choices():
    router = made("noisy_top_k", k=EXPERTS)
    assert (router(sequences(1, 5)).chance == 1).all()


def test_chance_is_the_probability_under_fresh_noise():
    """Shazeer et al. (2017), eq. 8, against 4,000 draws of each expert's own noise: within 4 sigma."""
    router, tokens, draws = made("noisy_top_k"), sequences(1, 6), 4_000
    routing = router(tokens)
    clean = router.gate(tokens.x)
    std = torch.nn.functional.softplus(router.choose.noise(tokens.x)) + 1e-2
    hits = torch.zeros_like(clean)
    for expert in range(EXPERTS):
        fresh = routing.logits.repeat(draws, 1, 1)
        fresh[..., expert] = clean[:, expert] + std[:, expert] * torch.randn(draws, 6, dtype=torch.float64)
        hits[:, expert] = (fresh.argsort(descending=True)[..., :2] == expert).any(-1).double().mean(0)
    error = (routing.chance * (1 - routing.chance) / draws).sqrt().clamp_min(1e-3)
    assert ((hits - routing.chance).abs() < 4 * error + 1e-3).all()


def test_refusals_of_k():
    for options, needle in (({"k": 1}, "never learns"), ({"k": 9}, "only 4 experts")):
        with pytest.raises(UsageError, match=needle):
            made("top_k", **options)
    with pytest.raises(UsageError, match="no task gradient"):
        made("noisy_top_k", k=1)


def test_top_1_renormalised_would_not_train_the_gate():
    """The reason for the refusal: the weight is the constant 1."""
    router = made("top_k", k=1, renormalize=False)
    tokens = sequences(1, 20)
    for renormalise, trains in ((True, False), (False, True)):
        logits = router.gate(tokens.x)
        top, expert = logits.topk(1)
        weight = top - (top if renormalise else logits).logsumexp(-1, keepdim=True)
        y = Linear(DIM, 1, EXPERTS).double().blend(Sparse.from_choices(expert, weight, EXPERTS), tokens.x)
        grad = torch.autograd.grad(y.sum(), router.gate.linear.weight)[0].abs().max()
        assert (grad > 1e-6) == trains and (trains or grad < 1e-10)


# -- usage -----------------------------------------------------------------------------------------


def test_usage_adds_up_over_micro_batches():
    router, tokens = made("top_k"), sequences(4, 5)
    whole = router(tokens).usage
    halves = [
        Tokens(*(t[part] for t in (tokens.x, tokens.example, tokens.position, tokens.group, tokens.ids)))
        for part in (slice(0, 10), slice(10, 20))
    ]
    total: Usage = router(halves[0]).usage + router(halves[1]).usage
    assert torch.equal(whole.asked, total.asked) and torch.allclose(whole.mass, total.mass) and total.tokens == 20
    assert whole.asked.dtype == torch.int64 and int(whole.asked.sum()) == 40


def test_a_collapsed_dense_or_slot_gate_is_seen():
    for router in ("dense", "soft_slots"):
        built = made(router, **({"slots": 1} if router == "soft_slots" else {}))
        with torch.no_grad():
            built.gate.linear.bias[2] += 1e4
        load = built(sequences(2, 8)).usage.load
        assert load[2] > 0.999
        healthy = made(router, **({"slots": 1} if router == "soft_slots" else {}))(sequences(2, 8)).usage.load
        assert healthy.max() < 0.9


def test_drops_are_counted():
    usage = made("top_k", capacity_factor=0.5)(sequences(3, 8)).usage
    assert int(usage.asked.sum()) == 48 and usage.dropped == pytest.approx(1 - int(usage.served.sum()) / 48)
    assert usage.dropped > 0.3


# -- precision and extremes --------------------------------------------------------------------------


@pytest.mark.parametrize("router", [name for name in registry()["router"] if name != "hash"])
@pytest.mark.parametrize("scale", [1e-4, 1e4])
def test_extreme_logits_stay_finite(router, scale):
    tokens = sequences(2, 7)
    tokens = replace(tokens, x=tokens.x * scale)
    routing = made(router)(tokens)
    assert routing.plan.weights.isfinite().all() and routing.usage.entropy.isfinite()


def test_routers_compute_in_float32_under_autocast():
    router = made("top_k").float()
    tokens = sequences(1, 6)
    tokens = Tokens(tokens.x.bfloat16(), tokens.example, tokens.position, tokens.group)
    with torch.autocast("cpu", torch.bfloat16):
        assert router(tokens).logits.dtype == torch.float32
    assert router.bfloat16()(tokens).logits.dtype == torch.float32


def test_remove_is_a_filter():
    router, tokens = made("dense"), sequences(1, 5)
    router.filters = (Remove(1),)
    plan = router(tokens).plan
    assert (plan.weights[:, 1] == 0).all() and torch.allclose(plan.weights.sum(-1), torch.ones(5, dtype=torch.float64))


def test_reading_back_is_possible_from_the_routing_before():
    """A router that looks back: it sends each token where the layer before sent it."""

    class Again(nn.Module):
        def forward(self, tokens: Tokens) -> Dense:
            return Dense(tokens.previous.plan.weights.clamp_min(1e-9).log().log_softmax(-1))

    tokens = sequences(1, 5)
    first = made("dense")(tokens)
    again = Again()(Tokens(tokens.x, tokens.example, tokens.position, tokens.group, previous=first))
    assert torch.allclose(again.weights, first.plan.weights, atol=1e-8)


def test_prepare_and_after_step_are_no_ops_by_default():
    router = small_router("top_k")
    before = {name: value.clone() for name, value in router.state_dict().items()}
    tokens = sequences(1, 4)
    router.prepare(tokens)
    router.after_step(router.double()(tokens).usage)
    assert all(torch.equal(before[n], v.float()) for n, v in router.state_dict().items())


@settings(max_examples=200, deadline=None)
@given(size=st.integers(1, 200), tenths=st.integers(1, 60), num_experts=st.integers(1, 16))
def test_the_fair_share_is_that_of_exact_fractions(size, tenths, num_experts):
    """25 tokens on 3 experts at factor 1.2 are 10, where float32 said 11."""
    exact = math.ceil(min(Fraction(tenths, 10), num_experts) * size / num_experts)
    assert int(fair_share(torch.tensor([size]), tenths / 10, num_experts)) == max(exact, 1)


def test_drops_of_a_dense_router_are_counted_in_one_unit():
    """Half the capacity of each expert: half of the mass at most is served, and never more than was asked."""
    usage = made("dense", capacity_factor=0.5)(sequences(1, 8)).usage
    assert 0.2 < usage.dropped < 0.8 and usage.asked.sum().item() == pytest.approx(8)
