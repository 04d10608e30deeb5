"""An expert ahead of the others waits in training, and only then."""

from __future__ import annotations

import pytest
import torch

from moecli.experts.linear import Linear as LinearExperts
from moecli.gates.linear import Linear
from moecli.mixture import MixtureOfExperts
from moecli.routers.catch_up import CatchUp
from moecli.routers.dense import Dense
from moecli.routing import Tokens

E, D = 4, 3


def router(**options) -> CatchUp:
    torch.manual_seed(0)
    return CatchUp(lambda n: Linear(D, n), E, **options)


def tokens(n: int = 64) -> Tokens:
    return Tokens.items(torch.randn(n, D, generator=torch.Generator().manual_seed(1)))


def biased(**options) -> CatchUp:
    """One whose gate gives nearly everything to expert 0."""
    built = router(**options)
    with torch.no_grad():
        built.gate.linear.bias[0] = 20.0
    return built


def test_whoever_is_ahead_waits_and_the_others_share():
    built = router(margin=5.0)
    dense = built(tokens()).plan.weights
    built.total = torch.tensor([20.0, 0.0, 10.0, 0.0])  # mean 7.5: expert 0 is 12.5 ahead, expert 2 only 2.5
    assert built.waiting().tolist() == [True, False, False, False]
    held = built(tokens()).plan.weights
    assert (held[:, 0] == 0).all()
    torch.testing.assert_close(held[:, 1:], dense[:, 1:] / dense[:, 1:].sum(-1, keepdim=True))
    torch.testing.assert_close(built.eval()(tokens()).plan.weights, dense)


def test_no_one_is_ahead_at_first_and_it_is_dense():
    built = router()
    same = Dense(lambda n: built.gate, E)
    torch.testing.assert_close(built(tokens()).plan.weights, same(tokens()).plan.weights)


@pytest.mark.parametrize(("steps", "share"), [(None, 0.25), (1, 1.0)])
def test_totals_stay_within_the_margin_and_a_batch(steps, share):
    built = biased(margin=8.0, steps=steps)
    for _ in range(100):
        built.after_step(built(tokens()).usage)
    ahead = built.total.max() - built.total.mean()
    assert bool(ahead <= 8 + 64) == (steps is None)  # held to the end, or only for the first step
    assert built.total.sum() == pytest.approx(6400, rel=1e-4)
    assert float(built.total[0] / built.total.sum()) == pytest.approx(share, abs=0.02)


def test_no_gradient_is_lost_to_an_absent_expert():
    built = router(margin=0.0)
    built.total = torch.tensor([9.0, 0.0, 0.0, 0.0])
    layer = MixtureOfExperts(built, LinearExperts(D, 2, E))
    layer(tokens())[0].square().sum().backward()
    gradient = built.gate.linear.weight.grad
    assert gradient.isfinite().all() and (gradient[0] == 0).all() and (gradient[1:] != 0).any()
