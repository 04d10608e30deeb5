"""What must not matter: the order of tokens, the names of experts, the rest of the batch (P7-P11, P16)."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from torch import Tensor

from moecli.experts.linear import Linear
from moecli.plan import Sparse
from moecli.routing import Router
from tests.properties.cases import (
    F64,
    FORMS,
    GATELESS,
    NAMES,
    ROUTERS,
    SEEDS,
    SIZES,
    given_gates,
    picked,
    tokens,
    with_x,
)

EVERY_FORM = pytest.mark.parametrize(("name", "e", "options"), FORMS, ids=NAMES)


def blended(router: Router, t, e: int) -> Tensor:
    torch.manual_seed(7)
    return Linear(t.x.shape[1], 3, e).double().blend(router(t).plan, t.x)


@EVERY_FORM
@settings(max_examples=6, deadline=None)
@given(sizes=SIZES, seed=SEEDS)
def test_permuting_tokens_permutes_what_they_get(name, e, options, sizes, seed):
    """P9 in evaluation, of weights and outputs."""
    router, t = given_gates(name, e, **options).eval(), tokens(sizes, seed)
    order = torch.randperm(len(t.x), generator=torch.Generator().manual_seed(seed))
    assert torch.allclose(router(picked(t, order)).plan.weights, router(t).plan.weights[order], atol=1e-12)
    assert torch.allclose(blended(router, picked(t, order), e), blended(router, t, e)[order], atol=1e-11)


@pytest.mark.parametrize("name", ["dense", "expert_choice", "sinkhorn", "soft_slots"])
def test_permuting_tokens_in_training(name):
    router, t = given_gates(name, 4).train(), tokens([9, 4], 5)
    order = torch.randperm(13, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(router(picked(t, order)).plan.weights, router(t).plan.weights[order], atol=1e-9)


def test_with_a_capacity_the_order_of_tokens_is_their_priority():
    """The control of P9: who comes first is served."""
    router, t = given_gates("top_k", 4, capacity_factor=0.5), tokens([12], 0)
    order = torch.arange(12).flip(0)
    assert not torch.allclose(router(picked(t, order)).plan.weights, router(t).plan.weights[order], atol=1e-3)


@EVERY_FORM
@settings(max_examples=6, deadline=None)
@given(sizes=SIZES, seed=SEEDS)
def test_the_rest_of_the_batch_matters_only_where_it_is_said_to(name, e, options, sizes, seed):
    """P10: each token alone gets what it got among others, or with its whole group where groups compete."""
    router, t = given_gates(name, e, **options).eval(), tokens(sizes, seed)
    whole = router(t).plan.weights
    unit = torch.arange(len(t.x)) if router.claims(False).independent else t.group
    if not router.claims(False).independent and options.get("group", "auto") != "auto":
        return  # its groups span examples
    if name == "hash":
        unit = t.group  # a bigram looks one token back, inside its sequence
    for own in unit.unique():
        inside = (unit == own).nonzero()[:, 0]
        assert torch.allclose(router(picked(t, inside)).plan.weights, whole[inside], atol=1e-12)


def test_where_tokens_compete_the_rest_of_the_batch_does_matter():
    """The control of P10."""
    t = tokens([9], 0)
    for name, training in (("expert_choice", False), ("soft_slots", False), ("balanced_assignment", True), ("sinkhorn", True)):  # fmt: skip
        router = given_gates(name, 4).train(training)
        alone = torch.cat([blended(router, picked(t, torch.tensor([n])), 4) for n in range(9)])
        assert not torch.allclose(alone, blended(router, t, 4), atol=1e-3), name


# -- relabelling -------------------------------------------------------------------------------------


def relabelled(name: str, e: int, options: dict[str, Any]) -> tuple[list[int], list[int]]:
    """(order of the experts, order of the columns of x): the same model under other names."""
    groups = {"group_limited": 4, "sigmoid_bias": 1, "hierarchical": 2}.get(name, e)
    groups = options.get("groups", groups)
    size = e // groups
    of_groups = [(3 * g + 1) % groups if groups % 3 else (groups - 1 - g) for g in range(groups)]
    order = [g * size + i for g in of_groups for i in reversed(range(size))]
    widths = {"noisy_top_k": [order, order], "hierarchical": [of_groups, of_groups, order, order]}.get(name, [order])
    if name == "soft_slots":
        widths = [[i * options["slots"] + p for i in order for p in range(options["slots"])]]
    columns, start = [], 0
    for width in widths:
        columns += [start + column for column in width]
        start += len(width)
    return order, columns


RELABELLED = [(form, name) for form, name in zip(FORMS, NAMES, strict=True) if form[0] not in GATELESS]


@pytest.mark.parametrize("form", [form for form, _ in RELABELLED], ids=[name for _, name in RELABELLED])
@settings(max_examples=6, deadline=None)
@given(sizes=SIZES, seed=SEEDS)
def test_experts_have_no_names(form, sizes, seed):
    """P11: permuting the gate's columns (groups whole, and experts in them) permutes the weights."""
    name, e, options = form
    order, columns = relabelled(name, e, options)
    assert sorted(order) == list(range(e)) and (e == 1 or order != list(range(e)))
    t = tokens(sizes, seed)
    moved = t.x.clone()
    moved[:, : len(columns)] = t.x[:, columns]
    one, other = given_gates(name, e, **options).eval(), given_gates(name, e, **options).eval()
    if name == "sigmoid_bias":
        one.bias.copy_(torch.linspace(-0.2, 0.3, e))
        other.bias.copy_(one.bias[order])
    weights, again = one(t).plan.weights, other(with_x(t, moved)).plan.weights
    assert torch.allclose(again, weights[:, order], atol=1e-12)
    assert torch.allclose(other(with_x(t, moved)).probs, one(t).probs[:, order], atol=1e-12)


# -- limits that are another model ---------------------------------------------------------------------

ALL = [
    ("top_k", 5, {"k": 5}),
    ("top_k", 5, {"k": 5, "renormalize": False}),
    ("noisy_top_k", 4, {"k": 4}),
    ("sinkhorn", 4, {"k": 4}),
    ("group_limited", 6, {"groups": 3, "limit": 3, "k": 6}),
    ("group_limited", 6, {"groups": 2, "limit": 2, "k": 6, "renormalize": True}),
    ("random_second", 2, {}),
    ("expert_choice", 4, {"capacity_factor": 4.0}),
    ("expert_choice", 4, {"capacity_factor": 99.0}),
    ("top_p", 3, {"p": 1 - 1e-15}),
    ("sigmoid_bias", 4, {"k": 4}),
    ("hierarchical", 6, {"groups": 3, "k_groups": 3, "k": 2}),
]


@pytest.mark.parametrize(("name", "e", "options"), ALL)
@settings(max_examples=8, deadline=None)
@given(sizes=SIZES, seed=SEEDS)
def test_all_experts_are_the_dense_mixture(name, e, options, sizes, seed):
    """P7: outputs and gradients of sum_e p_e f_e, p the router's own belief; balanced, and a density."""
    router, t = given_gates(name, e, **options).eval(), tokens(sizes, seed)
    assert (router.claims(False).density and router.claims(False).balanced) or name in ("top_p", "random_second")
    if name not in ("sigmoid_bias", "hierarchical"):  # whose beliefs are other than one softmax
        assert torch.allclose(router(t).probs, given_gates("dense", e)(t).plan.weights, atol=1e-12)
    x = t.x.requires_grad_()
    torch.manual_seed(7)
    work = Linear(x.shape[1], 3, e).double()
    routing = router(t)
    dense = torch.einsum("ne,nd,edy->ny", routing.probs, x, work.weight) + routing.probs @ work.bias
    ours = work.blend(routing.plan, x)
    assert torch.allclose(ours, dense, atol=1e-11)
    direction = torch.randn_like(ours)
    for wrt in (x, work.weight, work.bias):
        mine, theirs = (torch.autograd.grad((y * direction).sum(), wrt, retain_graph=True)[0] for y in (ours, dense))
        assert torch.allclose(mine, theirs, atol=1e-10)


@pytest.mark.parametrize("name", sorted(set(ROUTERS) - {"random_second"}))
def test_one_expert_is_that_expert(name):
    """P8 for every router, weights other than one named; two experts are not (the control)."""
    options = {key: 1 for key in ("k", "groups", "limit", "slots") if key in given_gates_options(name)}
    router, t = given_gates(name, 1, **options).train(), tokens([4, 3], 0)
    own = t.x[:, :1].sigmoid()
    torch.manual_seed(3)
    plan = router(t).plan
    expected = {"balanced_assignment": own}.get(name, torch.ones(7, 1, dtype=F64))
    if name == "bernoulli":
        torch.manual_seed(3)
        expected = (torch.rand_like(own) < own).double()
    assert torch.allclose(plan.weights, expected, atol=1e-12)
    if name == "soft_slots":
        return  # its one slot is an average, checked in test_weights
    work = Linear(t.x.shape[1], 3, 1).double()
    y, alone = work.blend(plan, t.x), expected * (t.x @ work.weight[0] + work.bias[0])
    assert torch.allclose(y, alone, atol=1e-12)
    ours, theirs = (torch.autograd.grad(z.square().sum(), work.weight)[0] for z in (y, alone))
    assert torch.allclose(ours, theirs, atol=1e-11)


def given_gates_options(name: str) -> dict[str, Any]:
    from moecli.config import option_node

    return option_node("router", name)


# -- who is not chosen ---------------------------------------------------------------------------------

SPARSE = [form for form in FORMS if form[0] not in ("dense", "catch_up", "soft_slots")]


@pytest.mark.parametrize(("name", "e", "options"), SPARSE)
@settings(max_examples=5, deadline=None)
@given(seed=SEEDS)
def test_an_expert_that_nobody_chose_learns_exactly_nothing(name, e, options, seed):
    """P16: zero, not small and not NaN; whoever was chosen does learn."""
    router, t = given_gates(name, e, **options).train(), tokens([2], seed)
    work = Linear(t.x.shape[1], 3, e).double()
    plan = router(t).plan
    assert isinstance(plan, Sparse)
    work.blend(plan, t.x).square().sum().backward()
    learned = work.weight.grad.abs().amax((1, 2))
    asked = plan.groups.counts > 0
    assert (learned[~asked] == 0).all() and (learned[asked] > 0).all()
