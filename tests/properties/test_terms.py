"""Auxiliary terms (P20-P24): closed forms, golden values, where gradients flow, and over what they average."""

from __future__ import annotations

import inspect
import math
from dataclasses import replace
from importlib import import_module
from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from moecli.config import option_node, registry
from moecli.losses.entropy import Entropy
from moecli.losses.group_balance import GroupBalance
from moecli.losses.group_traffic import GroupTraffic
from moecli.losses.importance import Importance
from moecli.losses.load import Load
from moecli.losses.mutual_information import MutualInformation
from moecli.losses.nll import NegativeLogLikelihood
from moecli.losses.objective import Objective
from moecli.losses.shared_budget import SharedBudget
from moecli.losses.sparsity import Sparsity
from moecli.losses.switch_balance import SwitchBalance
from moecli.losses.term import Balance, Term, cv_squared
from moecli.losses.variance import Variance
from moecli.losses.z_loss import ZLoss
from moecli.mixture import Output
from moecli.plan import Dense
from moecli.routing import GroupedRouting, NoisyRouting, Routing, Tokens
from tests.properties.cases import F64, SEEDS, SIZES, given_gates, picked, tokens, with_x

NONE = torch.zeros(0)
# every term about balance, and a router that gives what it needs
BALANCES: list[tuple[type[Balance], str, dict]] = [
    (SwitchBalance, "top_k", {}),
    (SwitchBalance, "noisy_top_k", {"k": 3}),
    (Importance, "top_k", {}),
    (Importance, "dense", {}),
    (Load, "noisy_top_k", {}),
    (Load, "hierarchical", {}),
    (MutualInformation, "top_k", {}),
    (Sparsity, "bernoulli", {}),
    (Variance, "bernoulli", {}),
    (GroupBalance, "group_limited", {}),
    (GroupTraffic, "group_limited", {}),
    (GroupBalance, "sigmoid_bias", {"groups": 4, "limit": 2, "k": 3}),
]
WITH_ROUTER = pytest.mark.parametrize(("term", "name", "options"), BALANCES)
E = 8


def routed(name: str, options: dict, t: Tokens) -> Routing:
    return given_gates(name, E, **options).eval()(t)


def value(term: Term, routing: Routing) -> Tensor:
    return term.value(routing, NONE)


def test_the_walk_finds_every_term():
    classes = [
        target.rpartition(".") for target in (option_node("auxiliary", n)["_target_"] for n in registry()["auxiliary"])
    ]
    found = [getattr(import_module(module), name) for module, _, name in classes]
    assert len(found) == 12
    assert {term for term in found if issubclass(term, Balance)} == {term for term, _, _ in BALANCES}


# -- closed forms ---------------------------------------------------------------------------------------------


def formula(term: type[Balance], routing: Routing) -> float:
    """Each term in plain loops over tokens and experts."""
    probs, n = routing.probs.tolist(), len(routing.probs)
    asked, weights = routing.asked.demand.tolist(), routing.asked.weights.tolist()
    mean = [sum(row[e] for row in probs) / n for e in range(E)]

    def cv2(table: list[list[float]]) -> float:
        sums = [sum(row[e] for row in table) for e in range(E)]
        middle = sum(sums) / E
        return sum((s - middle) ** 2 for s in sums) / E / middle**2

    if term is SwitchBalance:
        total = sum(map(sum, asked))
        return E * sum(sum(row[e] for row in asked) / total * mean[e] for e in range(E))
    if term is Importance:
        return cv2(weights)
    if term is Load:
        return cv2(routing.chance.tolist())
    if term is MutualInformation:
        joint = sum(p / n * math.log(p / mean[e]) for row in probs for e, p in enumerate(row) if p > 0)
        return -joint
    if term in (GroupBalance, GroupTraffic):
        return grouped(term, asked, mean, n, routing)
    chance = routing.chance.tolist()
    by_expert = [[row[e] for row in chance] for e in range(E)]
    if term is Variance:
        return -sum(sum((s - sum(c) / n) ** 2 for s in c) / n for c in by_expert) / E
    of_experts = sum((sum(c) / n - 0.25) ** 2 for c in by_expert) / E
    return of_experts + sum((sum(row) / E - 0.25) ** 2 for row in chance) / n


def grouped(term: type[Balance], asked: list, mean: list, n: int, routing) -> float:
    groups, size = routing.num_groups, E // routing.num_groups
    out = 0.0
    for g in range(groups):
        inside = range(g * size, (g + 1) * size)
        belief = sum(mean[e] for e in inside)
        if term is GroupBalance:
            share = sum(row[e] for row in asked for e in inside) / sum(map(sum, asked))
            out += groups * share * belief
        else:
            share = sum(any(row[e] for e in inside) for row in asked) / n
            out += groups / routing.limit * share * belief
    return out


@WITH_ROUTER
@settings(max_examples=8, deadline=None)
@given(sizes=SIZES, seed=SEEDS)
def test_each_term_is_its_formula_over_batch_and_sequences(term, name, options, sizes, seed):
    t = tokens(sizes, seed)
    routing = routed(name, options, t)
    assert value(term(), routing).item() == pytest.approx(formula(term, routing), abs=1e-11, rel=1e-11)
    apart = [
        formula(term, routed(name, options, picked(t, (t.example == x).nonzero()[:, 0]))) for x in range(len(sizes))
    ]
    of_sequences = value(term(scope="sequence"), routing).item()
    assert of_sequences == pytest.approx(sum(apart) / len(sizes), abs=1e-11, rel=1e-11)
    assert "sequence" in term(scope="sequence").needs and "sequence" not in term().needs
    assert value(term(scope="global"), routing).item() == pytest.approx(formula(term, routing), abs=1e-11, rel=1e-11)


GATES = torch.tensor([[0.5, 0.4, 0.1], [0.3, 0.3, 0.4], [0.1, 0.2, 0.7], [0.8, 0.2, 0.0]], dtype=F64)


def golden(plan_weights: Tensor = GATES, **evidence) -> Routing:
    plan = Dense(plan_weights.log())
    zero = torch.zeros(len(plan_weights)).long()
    kind = NoisyRouting if "chance" in evidence else Routing
    return kind(plan, plan_weights, plan_weights.log(), asked=plan, example=zero, position=zero, **evidence)


def test_golden_values_of_v_moe():
    """vmoe/nn/routing_test.py: GShard's loss 9 (1.7 x 2 + 1.2 x 2) / 16 / 3 = 1.0875; CV^2 of (1.7, 1.1, 1.2); of its load."""
    assert value(SwitchBalance(choices="first"), golden()).item() == pytest.approx(1.0875, abs=1e-12)
    assert value(Importance(), golden()).item() == pytest.approx(0.03875, abs=1e-12)
    clean = torch.tensor([[0.9, 0.06, 0.04], [0.7, 0.18, 0.12], [0.85, 0.05, 0.1]], dtype=F64)
    noise = torch.tensor([[-0.037, 0.026, -0.018], [-0.074, 0.045, -0.015], [-0.067, -0.059, 0.073]], dtype=F64)
    bar = (clean + noise).topk(2).values[:, 1:]  # V-MoE's chance: of passing the k-th best of all, itself included
    chance = torch.special.ndtr((clean - bar) / 0.1)
    assert value(Load(), golden(chance, chance=chance)).item() == pytest.approx(0.48573864536489236, abs=1e-6)


@pytest.mark.parametrize("k", [1, 2, 4])
def test_uniform_use_is_exactly_one_and_collapse_the_number_of_experts(k):
    """P20, with the counts divided by k; the convention that does not gives k."""
    x = torch.zeros(E, 32, dtype=F64)
    for n in range(E):
        x[n, [(n + i) % E for i in range(k)]] = 1.0  # each expert in k of E tokens, belief even over the batch
    routing = routed("top_k", {"k": k, "renormalize": False}, with_x(tokens([E], 0), x))
    assert value(SwitchBalance(), routing).item() == pytest.approx(1.0, abs=1e-12)
    undivided = E * (routing.asked.demand.mean(0) * routing.probs.mean(0)).sum()
    assert undivided.item() == pytest.approx(k, abs=1e-12)
    assert value(Importance(), routing).item() == pytest.approx(0.0, abs=1e-12)
    collapsed = torch.zeros(5, 32, dtype=F64)
    collapsed[:, 3] = 200.0
    one = routed("top_k", {"k": 1, "renormalize": False}, with_x(tokens([5], 0), collapsed))
    assert value(SwitchBalance(), one).item() == pytest.approx(E, abs=1e-12)
    assert value(SwitchBalance(choices="first"), one).item() == pytest.approx(E, abs=1e-12)
    assert value(Importance(), one).item() == pytest.approx(E - 1, abs=1e-12)
    assert value(MutualInformation(), one).item() == pytest.approx(0.0, abs=1e-12)


def test_groups_in_uniform_use_give_exactly_one_and_collapse_their_number():
    x = torch.zeros(4, 32, dtype=F64)
    for n in range(4):  # token n: groups n and n + 1, one expert of each
        x[n, [2 * n, (2 * n + 2) % E]] = 1.0
    routing = routed("group_limited", {"groups": 4, "limit": 2, "k": 2}, with_x(tokens([4], 0), x))
    assert value(GroupBalance(), routing).item() == pytest.approx(1.0, abs=1e-12)
    assert value(GroupTraffic(), routing).item() == pytest.approx(1.0, abs=1e-12)
    x = torch.zeros(4, 32, dtype=F64)
    x[:, [6, 7]] = 200.0
    one = routed("group_limited", {"groups": 4, "limit": 2, "k": 2}, with_x(tokens([4], 0), x))
    assert value(GroupBalance(), one).item() == pytest.approx(4.0, abs=1e-12)
    assert value(GroupTraffic(), one).item() == pytest.approx(2.0, abs=1e-12)  # one group of the two it may reach


@settings(max_examples=25, deadline=None)
@given(sizes=SIZES, seed=SEEDS)
def test_bounds(sizes, seed):
    """P21: where f = P the loss is at least 1 (Cauchy-Schwarz) and at most E; the others lie where they must."""
    t = tokens(sizes, seed)
    dense = routed("dense", {}, t)
    assert 1 - 1e-12 <= value(SwitchBalance(), dense).item() <= E
    assert -math.log(E) - 1e-12 <= value(MutualInformation(), dense).item() <= 1e-12
    assert 0 <= value(Importance(), dense).item() <= E - 1
    coins = routed("bernoulli", {}, t)
    assert -0.25 <= value(Variance(), coins).item() <= 0 and 0 <= value(Sparsity(), coins).item() <= 2


@pytest.mark.parametrize("target", [0.1, 0.5])
def test_sparsity_has_its_target(target):
    """All coins at the target are what is wanted: zero, with no gradient."""
    logit = math.log(target / (1 - target))
    x = torch.full((6, 32), logit, dtype=F64, requires_grad=True)
    found = value(Sparsity(target=target), routed("bernoulli", {}, with_x(tokens([6], 0), x)))
    assert found.item() == pytest.approx(0.0, abs=1e-15)
    assert torch.autograd.grad(found, x)[0].abs().max() < 1e-12
    assert value(Sparsity(), routed("bernoulli", {}, with_x(tokens([6], 0), x))).item() == pytest.approx(
        2 * (target - 0.25) ** 2
    )


@settings(max_examples=25, deadline=None)
@given(shared=st.lists(st.floats(0, 1), min_size=1, max_size=9), budget=st.floats(0, 0.99))
def test_the_shared_budget_is_about_the_routed_share(shared, budget):
    routing = Routing(Dense(torch.zeros(1, 1)), torch.ones(1, 1), shared=torch.tensor(shared, dtype=F64))
    expected = abs(1 - sum(shared) / len(shared) - budget)
    assert SharedBudget(budget=budget).value(routing, NONE).item() == pytest.approx(expected, abs=1e-12)


@settings(max_examples=25, deadline=None)
@given(sizes=SIZES, seed=SEEDS)
def test_z_loss_and_entropy(sizes, seed):
    """P24, finite at +-1e4."""
    t = tokens(sizes, seed)
    routing = routed("dense", {}, t)
    logits = t.x[:, :E].tolist()
    z = sum(math.log(sum(math.exp(v) for v in row)) ** 2 for row in logits) / len(logits)
    assert value(ZLoss(), routing).item() == pytest.approx(z, rel=1e-12)
    h = -sum(p * math.log(p) for row in routing.probs.tolist() for p in row) / len(logits)
    assert value(Entropy(), routing).item() == pytest.approx(h, rel=1e-10)
    far = routed("dense", {}, with_x(t, 1e4 * t.x.sign()))
    assert value(ZLoss(), far).isfinite() and value(Entropy(), far).isfinite()


# -- where gradients flow -----------------------------------------------------------------------------------------


@settings(max_examples=10, deadline=None)
@given(sizes=SIZES, seed=SEEDS)
def test_the_gradient_flows_through_the_belief_alone(sizes, seed):
    """P22: counts are constants, also the soft ones of a dense plan."""
    t = tokens(sizes, seed)
    x = t.x.requires_grad_()
    for name, term in (("top_k", SwitchBalance()), ("dense", SwitchBalance()), ("group_limited", GroupBalance()),
                       ("dense", SwitchBalance(choices="first"))):  # fmt: skip
        routing = routed(name, {}, t)
        asked = routing.asked.demand.detach().mean(0)
        if term.__dict__.get("choices") == "first":
            asked = F.one_hot(routing.probs.argmax(-1), E).double().mean(0)
        share, belief = asked / asked.sum(), routing.probs.mean(0)
        if isinstance(term, GroupBalance):
            share, belief = share.view(4, 2).sum(-1), belief.view(4, 2).sum(-1)
        expected = torch.autograd.grad(len(share) * (share * belief).sum(), x, retain_graph=True)[0]
        assert torch.allclose(torch.autograd.grad(value(term, routing), x)[0], expected, atol=1e-12)


@WITH_ROUTER
def test_gradients_are_derivatives_with_the_counts_held(term, name, options):
    """Every term by finite differences; at the gate's own logits, spread so that no choice flips."""
    t = tokens([3, 2], 5)
    held = t.x[:, 4:].clone()

    def loss(x: Tensor) -> Tensor:
        return value(term(), routed(name, options, with_x(t, torch.cat([x, held], -1))))

    assert torch.autograd.gradcheck(loss, (t.x[:, :4].clone().requires_grad_(),), eps=1e-6, atol=1e-8)


@pytest.mark.parametrize(("term", "name"), [(SwitchBalance, "top_k"), (Importance, "top_k"), (MutualInformation, "top_k"),
                                            (Load, "noisy_top_k"), (GroupBalance, "group_limited")])  # fmt: skip
def test_descending_a_balance_term_balances(term, name):
    """P22, in 20 of 20 seeds: the largest load of experts (or of groups) falls in 12 steps from a skewed start."""
    for seed in range(20):
        t = tokens([40], seed)
        x = t.x.clone()
        x[:, :E] += torch.linspace(2, -2, E, dtype=F64)
        before = worst(term, routed(name, {}, with_x(t, x)))
        shift = torch.zeros(32, dtype=F64, requires_grad=True)  # a bias is all it may learn
        for _ in range(12):
            found = value(term(), routed(name, {}, with_x(t, x + shift)))
            (grad,) = torch.autograd.grad(found, shift)
            shift = (shift - 0.5 * grad / grad[:E].norm()).detach().requires_grad_()
        assert worst(term, routed(name, {}, with_x(t, x + shift))) < before


def worst(term: type[Balance], routing: Routing) -> float:
    load = routing.usage.asked.double()
    load = load.view(4, 2).sum(-1) if term is GroupBalance else load
    return float(load.max() / load.mean())


def test_balance_has_a_gradient_where_all_are_equal_and_where_nobody_is_asked():
    x = torch.ones(1, 5, dtype=F64, requires_grad=True)
    assert torch.autograd.grad(cv_squared(x), x)[0].eq(0).all()
    assert cv_squared(torch.zeros(2, 3)).item() == 0.0
    assert cv_squared(torch.tensor([[1.0, 3.0], [1.0, 1.0]])).item() == pytest.approx(0.125)  # (1 / 4 + 0) / 2


# -- over what terms average --------------------------------------------------------------------------------------


@WITH_ROUTER
@settings(max_examples=5, deadline=None)
@given(sizes=SIZES, seed=SEEDS)
def test_only_the_multiset_of_tokens_matters(term, name, options, sizes, seed):
    """P23: doubling or permuting the batch changes nothing; a padding token would (the control)."""
    t = tokens([*sizes, 2], seed)
    n = len(t.x)
    once = value(term(), routed(name, options, t)).item()
    twice = picked(t, torch.arange(n).repeat(2))
    assert value(term(), routed(name, options, twice)).item() == pytest.approx(once, abs=1e-11)
    order = torch.randperm(n, generator=torch.Generator().manual_seed(seed))
    for scope in ("batch", "sequence"):
        same = [value(term(scope=scope), routed(name, options, u)).item() for u in (t, picked(t, order))]
        assert same[0] == pytest.approx(same[1], abs=1e-11)
    padded = picked(t, torch.cat([torch.arange(n), torch.zeros(3 * n).long()]))
    assert abs(value(term(), routed(name, options, padded)).item() - once) > 1e-7


def parts_of(t: Tokens, cuts: list[int]) -> list[Tokens]:
    """Micro-batches, whose examples count from zero."""
    bounds = [0, *cuts, len(t.x)]
    parts = [picked(t, torch.arange(a, b)) for a, b in pairwise(bounds)]
    return [replace(part, example=part.example - part.example[0]) for part in parts]


def output_of(name: str, options: dict, t: Tokens) -> Output:
    """Of two layers; the prediction is a column of x."""
    return Output(t.x[:, :1], {"a": routed(name, options, t), "b": routed(name, options, with_x(t, t.x / 3))})


def descended(objective: Objective, name: str, options: dict, parts: list[Tokens]) -> tuple[float, Tensor]:
    """Summed totals and the gradient (N, D), as the trainer takes them."""
    whole: dict = {}
    for part in parts if len(parts) > 1 else []:
        for key, evidence in objective.totals(output_of(name, options, part)).items():
            whole[key] = whole[key] + evidence if key in whole else evidence
    n = sum(len(part.x) for part in parts)
    total, grads = 0.0, []
    for part in parts:
        x = part.x.detach().requires_grad_()
        target = torch.zeros(len(x), 1, dtype=F64)
        found = objective(output_of(name, options, with_x(part, x)), target, share=len(x) / n, whole=whole or None)[
            "total"
        ]
        total += found.item()
        grads.append(torch.autograd.grad(found, x)[0])
    return total, torch.cat(grads)


@WITH_ROUTER
@pytest.mark.parametrize("cuts", [[6], [2, 4, 9], list(range(1, 12))])
def test_micro_batches_equal_one_batch_where_the_scope_is_global(term, name, options, cuts):
    """To 1e-12, totals and gradients; over the batch alone they differ (the control)."""
    t = tokens([1] * 12, 3)
    for scope in ("global", "batch"):
        objective = Objective(NegativeLogLikelihood(), {"term": term(weight=0.7, scope=scope)})
        (one, grad), (many, summed) = (descended(objective, name, options, parts_of(t, c)) for c in ([], cuts))
        same = bool((summed - grad).abs().max() < 1e-12) and abs(many - one) < 1e-12
        assert same == (scope == "global")


def test_the_objective_weighs_terms_averages_layers_and_leaves_idle_ones_out():
    t = tokens([1] * 5, 1)
    layers = {"a": routed("top_k", {}, t), "b": routed("dense", {}, t)}
    terms = {"balance": SwitchBalance(weight=0.5), "z": ZLoss(weight=2.0), "off": Entropy(weight=3.0)}
    idle = {"balance": frozenset({"b"}), "off": frozenset({"a", "b"})}
    found = Objective(NegativeLogLikelihood(), terms, idle)(Output(t.x[:, :1], layers), torch.zeros(5, 1, dtype=F64))
    balance = value(SwitchBalance(), layers["a"])
    z = (value(ZLoss(), layers["a"]) + value(ZLoss(), layers["b"])) / 2
    task = 0.5 * t.x[:, 0].square().mean()
    assert set(found) == {"loss", "balance", "z", "total"}
    assert torch.allclose(found["loss"], task) and torch.allclose(found["balance"], balance)
    assert torch.allclose(found["z"], z) and torch.allclose(found["total"], task + 0.5 * balance + 2 * z)
    third = Objective(NegativeLogLikelihood(), terms, idle)(
        Output(t.x[:, :1], layers), torch.zeros(5, 1, dtype=F64), share=0.25
    )
    assert torch.allclose(third["total"], found["total"] / 4) and torch.allclose(third["z"], z)


def test_defaults_are_what_the_files_say():
    """The weights and options of each term's constructor are those that its YAML shows."""
    for name in registry()["auxiliary"]:
        node = option_node("auxiliary", name)
        module, _, cls = node["_target_"].rpartition(".")
        signature = inspect.signature(getattr(import_module(module), cls).__init__).parameters
        shown = {key: node[key] for key in node if not key.startswith("_")}
        assert shown == {key: p.default for key, p in signature.items() if key != "self"}, name


def test_a_grouped_routing_knows_its_groups():
    assert (GroupedRouting.num_groups, GroupedRouting.limit) == (1, 1)
