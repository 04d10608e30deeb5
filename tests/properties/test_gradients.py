"""Derivatives of every router (P13, P14, P17, P22): right where they are smooth, absent where they should be."""

from __future__ import annotations

import pytest
import torch
from hypothesis import assume, given, settings
from torch import Tensor

from moecli.config import registry
from moecli.experts.linear import Linear
from tests.properties.cases import F64, FORMS, GATELESS, NAMES, SEEDS, given_gates, learned, tokens, with_x

GAP = 1e-3  # no two logits are nearer, so that a step of 1e-6 flips no choice
SIZES = [2, 1]
SMOOTH = [
    (form, name) for form, name in zip(FORMS, NAMES, strict=True) if form[0] not in GATELESS | {"straight_through"}
]


def apart(x: Tensor) -> bool:
    """Whether all entries of the columns that gates read differ by the gap, within rows and within columns."""
    rows, columns = x.sort(-1).values.diff(dim=-1), x.sort(0).values.diff(dim=0)
    return float(torch.cat([rows.flatten(), columns.flatten()]).min()) > GAP


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("form", [form for form, _ in SMOOTH], ids=[name for _, name in SMOOTH])
@settings(max_examples=1, deadline=None)
@given(seed=SEEDS)
def test_gradcheck_of_every_router(form, training, seed):
    """P13: x reaches the output through every logit and through the experts; the noise is the same at each call."""
    name, e, options = form
    router, t = given_gates(name, e, **options).train(training), tokens(SIZES, seed)
    taken = t.x[:, : 2 * e + 6].requires_grad_()
    rest = t.x[:, 2 * e + 6 :].detach()
    assume(apart(taken.detach()[:, :e]))
    torch.manual_seed(0)
    work = Linear(3, 2, e).double()

    def layer(taken: Tensor) -> Tensor:
        torch.manual_seed(seed)
        plan = router(with_x(t, torch.cat([taken, rest], -1))).plan
        return work.blend(plan, taken[:, :3])

    assert torch.autograd.gradcheck(layer, (taken,), eps=1e-6, atol=1e-7, rtol=1e-5, fast_mode=True)


@pytest.mark.parametrize("name", ["top_k", "noisy_top_k", "hierarchical", "sigmoid_bias", "soft_slots", "top_p"])
def test_gradcheck_of_the_gate_s_own_parameters(name):
    t = tokens(SIZES, 3, dim=3)
    router = learned(name, 4, dim=3, **({"slots": 1} if name == "soft_slots" else {}))
    torch.manual_seed(0)
    work = Linear(3, 2, 4).double()

    def layer(*_: Tensor) -> Tensor:
        torch.manual_seed(5)
        return work.blend(router(t).plan, t.x)

    assert torch.autograd.gradcheck(layer, tuple(router.parameters()), eps=1e-6, atol=1e-7, rtol=1e-5)


@pytest.mark.parametrize("gate", [gate for gate in registry()["gate"] if gate != "tdnn"])  # which reads frames
def test_second_derivatives_of_the_dense_mixture(gate):
    """P14, for every gate: what Newton steps and Fisher matrices need."""
    t = tokens([2], 1, dim=2, spread=0.7)
    router = learned("dense", 3, gate=gate, dim=2)
    torch.manual_seed(0)
    work = Linear(2, 1, 3).double()

    def layer(x: Tensor) -> Tensor:
        return work.blend(router(with_x(t, x)).plan, x)

    x = t.x.requires_grad_()
    assert torch.autograd.gradcheck(layer, (x,), atol=1e-7)
    assert torch.autograd.gradgradcheck(layer, (x,), atol=1e-6)


def test_straight_through_is_no_derivative():
    """Forward a constant, backward p's gradient: gradcheck must fail, and what is sent back is known."""
    router, t = given_gates("straight_through", 4), tokens([3], 0)
    x = t.x.requires_grad_()
    assert not torch.autograd.gradcheck(lambda x: router(with_x(t, x)).plan.weights, (x,), raise_exception=False)
    value = torch.randn(3, 4, dtype=F64)
    chosen = x.detach()[:, :4].argmax(-1)
    sent = torch.autograd.grad((router(t).plan.weights * value).sum(), x)[0][:, :4]
    probs = x.detach()[:, :4].softmax(-1)
    of_chosen = probs.gather(1, chosen[:, None])
    expected = of_chosen * value.gather(1, chosen[:, None]) * (torch.nn.functional.one_hot(chosen, 4) - probs)
    assert torch.allclose(sent, expected, atol=1e-12)


SILENT = {"argmax", "bernoulli", "sampled"}  # their weights are constants: a term teaches them, or nobody


@pytest.mark.parametrize("form", [form for form, _ in SMOOTH], ids=[name for _, name in SMOOTH])
def test_whether_the_task_reaches_the_gate_is_what_is_claimed(form):
    """P17 as a table: constant weights carry no gradient at all, all others one that is felt."""
    name, e, options = form
    router, t = given_gates(name, e, **options).train(), tokens([5, 4], 2)
    weights = router(with_x(t, t.x.requires_grad_())).plan.weights
    felt = 0.0
    if weights.requires_grad:
        direction = torch.randn(weights.shape, dtype=F64, generator=torch.Generator().manual_seed(0))
        felt = float(torch.autograd.grad((weights * direction).sum(), t.x)[0].abs().max())
    claimed = router.claims(True).trains_gate or name == "dense"  # which claims by its gate's parameters: here are none
    assert (felt > 1e-6) == claimed == (name not in SILENT)


def test_one_renormalised_choice_trains_no_gate():
    """P17: the weight is the constant 1, so the gradient is zero to rounding; un-normalised it is not."""
    t = tokens([9], 0)
    x = t.x.requires_grad_()
    for renormalize in (True, False):
        router = given_gates("sigmoid_bias", 4, k=1, renormalize=renormalize)
        y = Linear(x.shape[1], 1, 4).double().blend(router(t).plan, x.detach())
        felt = torch.autograd.grad(y.sum(), x)[0].abs().max()
        assert (felt < 1e-10) == renormalize and router.claims(True).trains_gate != renormalize
        assert router.graded != renormalize


@pytest.mark.parametrize("name", ["random_second", "balanced_assignment", "sinkhorn", "top_p", "expert_choice"])
def test_a_choice_carries_no_gradient_of_its_own(name):
    """What is chosen depends on the logits, and only the weights of the chosen send gradients back."""
    router, t = given_gates(name, 4).train(), tokens([6], 4)
    routing = router(with_x(t, t.x.requires_grad_()))
    grad = torch.autograd.grad(routing.plan.weights.sum(), t.x)[0]
    assert grad.isfinite().all() and not routing.plan.demand.requires_grad
    if name == "balanced_assignment":  # a sigmoid reads its own logit alone
        assert torch.equal(grad[:, :4] != 0, routing.plan.weights > 0)
