"""Weighted least squares: equal to the textbook's, and steady where the textbook's breaks."""

from __future__ import annotations

import pytest
import torch

from moecli.experts.constant import Constant
from moecli.experts.least_squares import normal_equations, products
from moecli.experts.linear import Linear
from moecli.gates.logit import products as products_of_the_gate
from moecli.plan import Dense

F64 = torch.float64
ROWS, DIM, OUT, EXPERTS = 60, 5, 2, 3


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def problem(shared: bool = False):
    x = torch.randn(ROWS, DIM, dtype=F64)
    w = torch.rand(ROWS, EXPERTS, 1 if shared else OUT, dtype=F64)
    return x, torch.randn(ROWS, EXPERTS, OUT, dtype=F64), w


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shared", [True, False])
def test_linear_experts_take_the_textbooks_solution(bias, shared):
    (x, z, w), work = problem(shared), Linear(DIM, OUT, EXPERTS, bias).double()
    work.fit(x, z, w)
    work.fit(x, z, w)  # the ridge of 1e-10 holds on to the first
    one = torch.cat([x, torch.ones(ROWS, 1, dtype=F64)], -1) if bias else x
    for e in range(EXPERTS):
        for y in range(OUT):
            root = w[:, e, y % w.shape[-1]].sqrt()
            beta = torch.linalg.lstsq(root[:, None] * one, (root * z[:, e, y])[:, None]).solution[:, 0]
            assert torch.allclose(work.weight[e, :, y], beta[:DIM], atol=1e-12)
            plain = torch.linalg.lstsq(one, z[:, e, y, None]).solution[:DIM, 0]
            assert not torch.allclose(beta[:DIM], plain, atol=1e-3)  # the control: weights matter


def test_constants_take_the_weighted_mean():
    (x, z, w), work = problem(), Constant(DIM, OUT, EXPERTS).double()
    work.fit(x, z, w)
    assert torch.allclose(work.bias, (w * z).sum(0) / w.sum(0), atol=1e-9)
    assert not torch.allclose(work.bias, z.mean(0), atol=1e-3)  # the control


def test_equations_are_sums_of_products_and_add_up():
    x, z, w = problem()
    found = normal_equations(x, z, w)
    assert torch.allclose(found.gram, torch.einsum("nd,ney,nf->eydf", x, w, x))
    assert torch.allclose(found.cross, torch.einsum("nd,ney->eyd", x, w * z))
    parts = [normal_equations(*(t[rows] for t in (x, z, w))) for rows in (slice(0, 7), slice(7, None))]
    assert torch.allclose((parts[0] + parts[1]).gram, found.gram)
    assert torch.allclose((found * 0.5).cross, found.cross / 2)


def test_large_tables_are_cut_and_sum_to_the_same(monkeypatch):
    x, z, w = (t.repeat(20, *[1] * (t.ndim - 1)) for t in problem())
    whole = normal_equations(x, z, w)
    monkeypatch.setattr("moecli.experts.least_squares.AT_ONCE", 1)
    assert torch.allclose(normal_equations(x, z, w).gram, whole.gram)


def test_what_the_data_leave_open_stays():
    """An expert without rows, a column of zeros and a column twice over: nothing moves that need not, nothing breaks."""
    (x, z, w), work = problem(), Linear(DIM, OUT, EXPERTS).double()
    w[:, 1] = 0
    x[:, 0], x[:, 3] = 0, x[:, 2]
    before = work.weight.clone()
    work.fit(x, z, w)
    assert torch.equal(work.weight[1], before[1])
    assert torch.allclose(work.weight[:, 0], before[:, 0], atol=1e-12)
    assert torch.allclose(work.weight[:, 2] - work.weight[:, 3], before[:, 2] - before[:, 3], atol=1e-3)
    assert not torch.allclose(work.weight[0, 2], before[0, 2], atol=1e-3)  # the control: the fit did move


def test_columns_of_very_different_size_and_far_means_are_fitted():
    """A date near 1.7e9 with a spread of 1e6 beside a column of 1e-6: residuals as good as the centred problem's."""
    x = torch.randn(500, 2, dtype=F64) * torch.tensor([1e6, 1e-6], dtype=F64) + torch.tensor([1.7e9, 0], dtype=F64)
    truth = 1 + (x[:, 0] - 1.7e9) / 1e6 + x[:, 1] * 1e6
    work = Linear(2, 1, 1).double()
    for _ in range(3):
        work.fit(x, truth[:, None, None], torch.ones(500, 1, 1, dtype=F64))
    error = (x @ work.weight[0, :, 0] + work.bias[0, 0] - truth).abs().max()
    assert float(error) < 1e-3 < float(truth.std())


def test_products_are_in_the_order_of_triu_indices():
    x = torch.randn(DIM, ROWS, dtype=F64)
    i, j = torch.triu_indices(DIM, DIM)
    assert torch.equal(products(x), x[i] * x[j])
    assert torch.equal(products_of_the_gate(x), x[i] * x[j])
    assert not torch.equal(products(x), x[j.flip(0)] * x[i.flip(0)])  # the control


@pytest.mark.parametrize("bias", [True, False])
def test_all_experts_of_all_rows_in_one_product_equal_expert_after_expert(bias):
    x, work = torch.randn(ROWS, DIM, dtype=F64, requires_grad=True), Linear(DIM, OUT, EXPERTS, bias).double()
    plan = Dense(torch.zeros(ROWS, EXPERTS, dtype=F64))
    ways = work.rows(plan, x), work(plan.dispatch(x), plan.groups)  # (E N, Y)
    assert torch.allclose(*ways, atol=1e-13)
    assert not torch.allclose(ways[0], ways[1].roll(ROWS, 0), atol=1e-3)  # the control: experts differ
    cotangent, leaves = torch.randn(EXPERTS * ROWS, OUT, dtype=F64), [x, *work.parameters()]
    pairs = zip(*(torch.autograd.grad((way * cotangent).sum(), leaves) for way in ways), strict=True)
    assert all(torch.allclose(a, b, atol=1e-12) for a, b in pairs)
