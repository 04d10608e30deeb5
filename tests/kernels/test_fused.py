"""Every kernel equals the loop: outputs and all gradients, whatever the groups, once, twice and of each other."""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import pytest
import torch
from torch import Tensor

from moecli.experts.feed_forward import FeedForward
from moecli.experts.linear import Linear
from moecli.experts.matrices import MatrixExperts
from moecli.kernels import matmul
from moecli.kernels.choose import KERNELS, using
from moecli.plan import Dense, Sparse

DIM, HIDDEN, OUT, EXPERTS, TOKENS = 8, 16, 24, 5, 37
FAST = [kernel for kernel in KERNELS if kernel != "loop"]


def experts(kind: str, bias: bool = True, dtype: torch.dtype = torch.float64) -> MatrixExperts:
    torch.manual_seed(0)
    if kind == "linear":
        return Linear(DIM, OUT, EXPERTS, bias).to(dtype)
    if kind == "no output":
        return FeedForward(DIM, OUT, EXPERTS, activation="gelu", output=False, bias=bias).to(dtype)
    return FeedForward(DIM, OUT, EXPERTS, HIDDEN, kind, bias=bias).to(dtype)  # type: ignore[arg-type]


KINDS = ("linear", "no output", "relu", "gelu", "swiglu", "clamped_swiglu")


def ragged(groups: str) -> Sparse:
    """Plans of every shape that a router can make."""
    draw = torch.Generator().manual_seed(1)
    if groups == "one token":
        return chosen(torch.tensor([[3, 1]]))
    if groups == "all to one":
        return chosen(torch.full((TOKENS, 1), 2))
    table = torch.rand(TOKENS, EXPERTS, generator=draw)
    table[:, 4] = -1.0  # nobody asks the last expert
    plan = chosen(table.topk(2).indices)
    if groups == "dropped":  # some tokens keep one expert, some none
        return plan.keep(torch.rand(len(plan.token), generator=draw) < 0.5)
    if groups == "even":
        return replace(chosen(torch.arange(TOKENS * EXPERTS).view(TOKENS, EXPERTS) % EXPERTS), even=True)
    return plan


GROUPS = ("uneven", "dropped", "one token", "all to one", "even")


def chosen(expert: Tensor) -> Sparse:
    weight = torch.linspace(-3, 0.5, expert.numel(), dtype=torch.float64).view(expert.shape)
    return Sparse.from_choices(expert, weight, EXPERTS)


def derivatives(module: MatrixExperts, plan: Sparse, kernel: str, seam: str = "blend") -> list[Tensor]:
    """The answer, and its gradients with respect to x, the log-weights and every parameter."""
    dtype = next(module.parameters()).dtype
    draw = torch.Generator().manual_seed(2)
    x = torch.randn(plan.num_tokens, DIM, generator=draw, dtype=torch.float64).to(dtype).requires_grad_()
    log_weight = plan.log_weight.clone().requires_grad_()
    with using(kernel):
        y = getattr(module, seam)(replace(plan, log_weight=log_weight), x)
    d = torch.randn(y.shape, generator=draw, dtype=torch.float64).to(dtype)
    of = [x, *module.parameters(), *([log_weight] if seam == "blend" else [])]
    return [y.detach(), *torch.autograd.grad(y, of, d)]


def distance(found: list[Tensor], wanted: list[Tensor]) -> float:
    """The largest error of any tensor, relative to that tensor's size."""
    assert [t.shape for t in found] == [t.shape for t in wanted]
    pairs = zip(found, wanted, strict=True)
    return max(float((f.double() - w.double()).abs().max() / w.double().abs().max().clamp_min(1e-12)) for f, w in pairs)


@pytest.mark.parametrize("kernel", FAST)
@pytest.mark.parametrize("groups", GROUPS)
def test_outputs_and_gradients_are_those_of_the_loop(kernel, groups):
    dtype = torch.float32 if kernel == "grouped" else torch.float64
    plan, cases = ragged(groups), list(product(KINDS, (True, False), ("blend", "rows")))
    assert len(cases) == 24
    for kind, bias, seam in cases:
        wanted = derivatives(experts(kind, bias), plan, "loop", seam)
        found = derivatives(experts(kind, bias, dtype), plan, kernel, seam)
        assert distance(found, wanted) < (1e-12 if dtype == torch.float64 else 2e-5), (kind, bias, seam)


def test_the_measure_sees_a_wrong_gradient():
    plan = ragged("uneven")
    wanted = derivatives(experts("swiglu"), plan, "loop")
    other = derivatives(experts("swiglu"), replace(plan, log_weight=plan.log_weight * 1.001), "loop")
    assert distance(other, wanted) > 1e-5


@pytest.mark.parametrize(("dtype", "exact"), [(torch.float32, 2e-5), (torch.bfloat16, 0.05)])
@pytest.mark.parametrize("kernel", FAST)
def test_float32_stays_exact_and_bfloat16_near(kernel, dtype, exact):
    for groups in ("uneven", "dropped", "all to one"):
        plan = ragged(groups)
        wanted = derivatives(experts("swiglu"), plan, "loop")
        assert distance(derivatives(experts("swiglu", dtype=dtype), plan, kernel), wanted) < exact, groups


@pytest.mark.skipif(not matmul._is_exact(), reason="this build of torch has no exact oneDNN product")
@pytest.mark.parametrize("groups", GROUPS)
def test_oneDNN_multiplies_as_exactly(groups, monkeypatch):
    calls = []
    linear = matmul._linear
    monkeypatch.setattr(matmul, "onednn_from", lambda: 0)  # as on a processor where it is always the faster one
    monkeypatch.setattr(matmul, "WIDE", 1)
    monkeypatch.setattr(matmul, "_linear", lambda *given: calls.append(given) or linear(*given))
    plan = ragged(groups)
    for kind, bias in product(KINDS, (True, False)):
        wanted = derivatives(experts(kind, bias), plan, "loop")
        assert distance(derivatives(experts(kind, bias, torch.float32), plan, "each"), wanted) < 2e-5, (kind, bias)
    assert calls


@pytest.mark.parametrize("kernel", ["padded", "each"])
@pytest.mark.parametrize("kind", ["swiglu", "clamped_swiglu", "gelu", "linear"])
def test_derivatives_and_their_derivatives_are_those_of_finite_differences(kernel, kind):
    module, plan = experts(kind), ragged("dropped")
    x = torch.randn(TOKENS, DIM, dtype=torch.float64, requires_grad=True)
    log_weight = plan.log_weight.clone().requires_grad_()

    def serve(x: Tensor, log_weight: Tensor, *_: Tensor) -> Tensor:
        with using(kernel):
            return module.blend(replace(plan, log_weight=log_weight), x)

    inputs = (x, log_weight, *module.parameters())
    assert torch.autograd.gradcheck(serve, inputs, fast_mode=True)
    assert torch.autograd.gradgradcheck(serve, inputs, fast_mode=True)


@pytest.mark.parametrize("kernel", FAST)
def test_going_backward_twice_gives_the_same_gradients(kernel):
    module, plan = experts("swiglu", dtype=torch.float32), ragged("uneven")
    x = torch.randn(TOKENS, DIM, requires_grad=True)
    with using(kernel):
        y = module.blend(plan, x)
    of = [x, *module.parameters()]
    first = torch.autograd.grad(y.square().sum(), of, retain_graph=True)
    second = torch.autograd.grad(y.square().sum(), of)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize("kernel", FAST)
def test_what_needs_no_gradient_gets_none(kernel):
    module, plan = experts("swiglu", dtype=torch.float32), ragged("uneven")
    module.up.requires_grad_(False)  # type: ignore[union-attr]
    x = torch.randn(TOKENS, DIM)
    with using(kernel):
        module.blend(plan, x).sum().backward()
    assert x.grad is None
    assert {name for name, p in module.named_parameters() if p.grad is None} == {"up.weight", "up.bias"}


def test_of_the_hidden_layer_only_what_the_derivative_needs_is_kept():
    """The loop keeps gathered rows, hidden units before and after the activation, and every expert's answer."""
    plan = ragged("uneven")
    kept = {}
    for kernel in ("loop", "each"):
        module = experts("swiglu", bias=False, dtype=torch.float32)
        own = {p.data_ptr() for p in module.parameters()}
        seen: dict[int, int] = {}
        pack = lambda t: seen.__setitem__(t.data_ptr(), t.nbytes) or t  # noqa: E731, B023
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t), using(kernel):
            module.blend(plan, torch.randn(TOKENS, DIM, requires_grad=True))
        kept[kernel] = sum(size for pointer, size in seen.items() if pointer not in own)
    assert kept["each"] < kept["loop"]


def test_a_dense_plan_reads_x_once_and_is_the_sparse_one_with_every_edge():
    for kind in KINDS:
        module, dense = experts(kind), Dense(torch.randn(TOKENS, EXPERTS, dtype=torch.float64).log_softmax(-1))
        x = torch.randn(TOKENS, DIM, dtype=torch.float64)
        torch.testing.assert_close(module.blend(dense, x), module.blend(dense.edges(), x))
        torch.testing.assert_close(module.rows(dense, x), module(dense.dispatch(x), dense.groups))
