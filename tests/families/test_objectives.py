"""Objectives beside the likelihood: identities between them."""

from __future__ import annotations

import pytest
import torch

from moecli.compatibility import SMALL, build_small
from moecli.config import build, option_node, registry
from moecli.experts.linear import Linear
from moecli.losses.blend_error import BlendError
from moecli.losses.expected_error import ExpectedError
from moecli.losses.joint_nll import JointNegativeLogLikelihood
from moecli.losses.nll import NegativeLogLikelihood
from moecli.mixture import MixtureDensity
from moecli.routing import Tokens

F64 = torch.float64
DIM, EXPERTS, ROWS = SMALL["dim"], SMALL["num_experts"], 7


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def mixture(family: str = "gaussian", gate: str = "linear", router: str = "dense", out: int = 2):
    built = build_small(option_node("router", router), option_node("gate", gate)).double()
    own = build(option_node("family", family), out=out, num_experts=EXPERTS)
    x = torch.randn(ROWS, DIM, dtype=F64)
    return MixtureDensity(built, Linear(DIM, out, EXPERTS), own).double()(Tokens.items(x)), x


def test_all_objectives_are_known():
    assert {"nll", "joint_nll", "blend_error", "expected_error"} <= set(registry()["objective"])


@pytest.mark.parametrize("router", ["dense", "top_k"])
@pytest.mark.parametrize("family", ["gaussian", "categorical"])
def test_expected_error_exceeds_the_blends_by_the_experts_disagreement(family, router):
    """sum g |y - f|^2 = |y - sum g f|^2 + sum g |f - sum g f|^2 (Krogh & Vedelsby's ambiguity)."""
    found, _ = mixture(family, router=router)
    y = torch.randn(ROWS, 2, dtype=F64) if family == "gaussian" else torch.randint(2, (ROWS,))
    plan = found.routing.plan
    apart = plan.combine((found.row_mean - plan.dispatch(found.mean)).square().sum(-1, keepdim=True))[:, 0]
    assert torch.allclose(ExpectedError()(found, y), BlendError()(found, y) + apart)
    assert bool((apart > 1e-6).all())  # the control


def test_gradients_say_who_is_blamed():
    """Blend: -2 g_e (y - sum g f), one error for all.  Expected: -2 g_e (y - f_e), each its own (Jacobs et al., 1991)."""
    found, _ = mixture()
    y = torch.randn(ROWS, 2, dtype=F64)
    g = found.routing.plan.weights.T[..., None]
    for objective, error in (
        (BlendError(), (y - found.mean).expand(EXPERTS, -1, -1)),
        (ExpectedError(), y - found.row_mean.view(EXPERTS, ROWS, 2)),
    ):
        (gradient,) = torch.autograd.grad(objective(found, y).sum(), found.row_mean, retain_graph=True)
        assert torch.allclose(gradient.view_as(error), -2 * g * error)
        assert not torch.allclose(gradient.view_as(error), -2 * error, atol=1e-3)  # the control


@pytest.mark.parametrize(("gate", "models_x"), [("linear", False), ("gaussian", True)])
def test_joint_likelihood_adds_that_of_the_inputs(gate, models_x):
    found, _ = mixture(gate=gate)
    y = torch.randn(ROWS, 2, dtype=F64)
    gap = NegativeLogLikelihood()(found, y) - JointNegativeLogLikelihood()(found, y)
    assert torch.allclose(gap, found.log_marginal)
    assert bool((gap.abs() > 1e-3).all()) == models_x


def test_predictions_that_are_no_density_have_a_blend_error_too():
    y = torch.randn(5, 2)
    assert torch.allclose(BlendError()(y + 2, y), torch.full((5,), 8.0))
    logits, target = torch.zeros(3, 4, 2), torch.zeros(3, 4, dtype=torch.int64)  # sequences: half in each class
    assert torch.allclose(BlendError()(logits, target), torch.full((3,), 0.5))
