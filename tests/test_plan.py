"""Plans: two linear maps, checked against explicit matrices, and the reductions over their edges."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from moecli.plan import Batched, Dense, Slots, Sparse

torch.set_default_dtype(torch.float32)
shapes = st.tuples(st.integers(1, 20), st.integers(1, 6), st.integers(1, 6), st.integers(0, 10_000))


def random_plans(n: int, e: int, k: int, seed: int) -> dict:
    draw = torch.Generator().manual_seed(seed)
    logits = torch.randn(n, e, generator=draw, dtype=torch.float64)
    top, expert = logits.topk(min(k, e))
    slots = torch.randn(n, e, 2, generator=draw, dtype=torch.float64)
    batched = Batched.by(torch.randint(3, (n,), generator=draw))
    into = batched.unpad(batched.pad(slots.flatten(1), float("-inf")).softmax(1)).view_as(slots)
    return {
        "dense": Dense(logits.log_softmax(-1)),
        "sparse": Sparse.from_choices(expert, top.log_softmax(-1), e),
        "slots": Slots(into, slots.flatten(1).softmax(-1).view_as(slots), batched),
    }


def matrix(apply, size: int) -> torch.Tensor:
    """The matrix of a linear map, column by column."""
    return apply(torch.eye(size, dtype=torch.float64))


@settings(max_examples=40, deadline=None)
@given(shapes)
def test_dispatch_and_combine_are_linear_maps_with_weights_on_the_way(shape):
    n, e, k, seed = shape
    for name, plan in random_plans(n, e, k, seed).items():
        rows = int(plan.groups.counts.sum())
        into, out = matrix(plan.dispatch, n), matrix(plan.combine, rows)  # (R, N), (N, R)
        x = torch.randn(n, 3, 2, dtype=torch.float64)
        assert torch.allclose(plan.dispatch(x), torch.einsum("rn,nab->rab", into, x)), name
        y = torch.randn(rows, 3, 2, dtype=torch.float64)
        assert torch.allclose(plan.combine(y), torch.einsum("nr,rab->nab", out, y)), name
        by_expert = torch.stack([part.sum(0) for part in plan.groups.split(out.T)], 1)  # (N, E)
        assert torch.allclose(by_expert, plan.weights), name
        assert torch.allclose(plan.weights.sum(-1), torch.ones(n, dtype=torch.float64)), name


@settings(max_examples=40, deadline=None)
@given(shapes, st.integers(0, 6), st.integers(0, 6))
def test_narrow_parts_add_up_to_the_whole(shape, a, b):
    n, e, k, seed = shape
    cut = min(a, b, e)
    for name, plan in random_plans(n, e, k, seed).items():
        work = torch.randn(e, 3, dtype=torch.float64)
        x = torch.randn(n, 3, dtype=torch.float64)

        def blend(part, first, work=work, x=x):
            rows = part.dispatch(x)
            return part.combine(rows * part.groups.spread(work[first : first + len(part.groups.counts)], len(rows)))

        parts = [blend(plan.narrow(lo, hi), lo) for lo, hi in ((0, cut), (cut, e)) if hi > lo]
        assert torch.allclose(sum(parts), blend(plan, 0)), name


@settings(max_examples=40, deadline=None)
@given(shapes)
def test_without_takes_one_expert_out_and_keeps_the_sum(shape):
    n, e, k, seed = shape
    for name, plan in random_plans(n, max(e, 2), k, seed).items():
        left = plan.without(0)
        assert (left.weights[:, 0] == 0).all(), name
        served = left.weights.sum(-1) > 0
        assert torch.allclose(left.weights.sum(-1)[served], plan.weights.sum(-1)[served]), name


def test_mixture_reductions_agree_with_brute_force():
    plan = random_plans(7, 4, 2, 0)["sparse"]
    log_rows = torch.randn(len(plan.token), dtype=torch.float64)
    total = torch.zeros(7, dtype=torch.float64)
    for token, weight, row in zip(plan.token, plan.log_weight, log_rows, strict=True):
        total[token] += (weight + row).exp()
    assert torch.allclose(plan.log_mix(log_rows), total.log())
    dense = Dense(torch.randn(7, 4, dtype=torch.float64).log_softmax(-1))
    rows = torch.randn(28, dtype=torch.float64)
    assert torch.allclose(dense.log_mix(rows), dense.edges().log_mix(rows))


def test_repeated_edges_are_refused_where_one_would_be_lost():
    plan = Sparse.from_choices(torch.tensor([[1, 1]]), torch.zeros(1, 2), 3)
    with pytest.raises(ValueError, match="unique"):
        plan.joint(torch.zeros(2))


def test_even_does_not_survive_dropping():
    plan = Sparse(*(torch.arange(4) % 2, torch.tensor([0, 0, 1, 1])), torch.zeros(4), torch.zeros(4).long(), 2, 2, True)
    assert plan.groups.even and not plan.keep(torch.tensor([0, 2, 3])).groups.even


def test_first_choices_come_before_second_ones():
    expert = torch.tensor([[0, 1], [1, 0], [0, 1]])
    plan = Sparse.from_choices(expert, torch.zeros(3, 2), 2)
    assert plan.token.tolist() == [0, 2, 1, 1, 0, 2]  # expert 0: first choices of 0 and 2, second of 1
    assert plan.choice.tolist() == [0, 0, 1, 0, 1, 1]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 4), min_size=1, max_size=20))
def test_ragged_groups_pad_and_unpad(group):
    group = torch.tensor(group)
    batched = Batched.by(group)
    x = torch.randn(len(group), 3)
    padded = batched.pad(x)
    assert torch.equal(batched.unpad(padded), x)
    for place, members in enumerate(batched.index):
        inside = members[members < len(group)]
        assert len(inside) == batched.size[place] and len(group[inside].unique()) == 1
        assert torch.equal(padded[place, : len(inside)], x[inside])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_combine_keeps_the_dtype_of_the_rows(dtype):
    for plan in random_plans(6, 3, 2, 1).values():
        rows = torch.randn(int(plan.groups.counts.sum()), 4).to(dtype)
        assert plan.combine(rows).dtype == dtype and plan.dispatch(torch.randn(6, 4).to(dtype)).dtype == dtype
