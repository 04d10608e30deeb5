"""Each family as a distribution, and what its M-step does: identities against textbooks, in float64."""

from __future__ import annotations

import math

import pytest
import torch
from torch.distributions import Categorical as CategoricalDistribution
from torch.distributions import MultivariateNormal

from moecli.config import build, option_node, registry
from moecli.families.family import Family
from moecli.families.gaussian import Gaussian
from moecli.families.shape import solve_shape
from moecli.families.student_t import StudentT
from moecli.plan import Groups

F64 = torch.float64
EXPERTS, ROWS, OUT = 3, 40, 2
CASES = [
    *((name, {}) for name in registry()["family"]),
    *(("gaussian", {"covariance": covariance}) for covariance in ("fixed", "isotropic", "full")),
]


def test_the_walk_finds_every_family():
    assert len(CASES) == 10 and {name for name, _ in CASES} == set(registry()["family"])


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def family(name: str, experts: int = EXPERTS, out: int = OUT, **options):
    built = build({**option_node("family", name), **options}, out=out, num_experts=experts).double()
    with torch.no_grad():
        for parameter in built.parameters():
            parameter += 0.3 * torch.randn_like(parameter)
    return built


def targets(name: str, rows: int = ROWS, out: int = OUT) -> torch.Tensor:
    if name == "categorical":
        return torch.randint(out, (rows,))
    values = torch.randn(rows, out, dtype=F64)
    return {"logistic": (values > 0).double(), "poisson": values.abs().mul(3).floor(), "gamma": values.exp()}.get(
        name, values
    )


def location(rows: int = ROWS, out: int = OUT) -> torch.Tensor:
    return torch.randn(rows, EXPERTS, out, dtype=F64)


@pytest.mark.parametrize(("name", "options"), CASES)
def test_w_times_z_minus_loc_is_the_gradient(name, options):
    """Of log p, up to the curvature's unit, which may differ between experts and targets but not between rows.

    Laplace and Student's t climb from a minoriser that touches log p at loc, so theirs is the gradient too.
    """
    if options.get("covariance") == "full":
        pytest.skip("its targets share one least squares problem; the gradient mixes them by the inverse covariance")
    built, loc, y = family(name, **options), location().requires_grad_(), targets(name)
    (gradient,) = torch.autograd.grad(built.log_prob(loc, y).sum(), loc)
    z, w = built.working(loc.detach(), y)
    ratio = w * (z - loc.detach()) / gradient
    assert torch.allclose(ratio, ratio[:1].expand_as(ratio), rtol=1e-9)
    assert bool((ratio > 0).all())
    assert not torch.allclose(gradient, gradient[:1].expand_as(gradient), rtol=1e-2)  # the control


@pytest.mark.parametrize(("name", "options"), CASES)
def test_adopting_never_lowers_the_likelihood_and_a_second_time_hardly_moves(name, options):
    built, loc, y = family(name, **options), location(), targets(name)
    resp = torch.rand(ROWS, EXPERTS, dtype=F64)
    values = []
    for _ in range(3):
        values.append((resp * built.log_prob(loc, y)).sum().item())
        built.fit(loc, y, resp)
    assert values[0] <= values[1] + 1e-10 and values[1] <= values[2] + 1e-10
    if name not in ("student_t", "logistic", "categorical", "poisson") and options.get("covariance") != "fixed":
        assert values[0] < values[1] - 1e-3  # the control: it did something
        assert values[2] == pytest.approx(values[1], abs=1e-8)  # closed forms are there at once


@pytest.mark.parametrize(("name", "options"), CASES)
def test_an_empty_expert_keeps_its_parameters(name, options):
    built, resp = family(name, **options), torch.rand(ROWS, EXPERTS, dtype=F64)
    resp[:, 1] = 0
    before = {n: p.detach().clone() for n, p in built.named_parameters()}
    built.fit(location(), targets(name), resp)
    for n, parameter in built.named_parameters():
        assert torch.equal(parameter[1], before[n][1]), n
        assert parameter.isfinite().all()
        assert not torch.equal(parameter[0], before[n][0])  # the control


@pytest.mark.parametrize(("name", "options"), CASES)
def test_sums_over_pieces_are_sums_over_all(name, options):
    built, loc, y, resp = family(name, **options), location(), targets(name), torch.rand(ROWS, EXPERTS, dtype=F64)
    whole = built.statistics(loc, y, resp)
    halves = [built.statistics(loc[part], y[part], resp[part]) for part in (slice(0, 13), slice(13, None))]
    assert all(torch.allclose(whole[n], halves[0][n] + halves[1][n]) for n in whole)
    assert all(not torch.allclose(whole[n], halves[0][n]) for n in whole)  # the control


@pytest.mark.parametrize(("name", "options"), CASES)
def test_rows_and_tables_agree_and_the_mean_is_the_distributions(name, options):
    built, loc, y = family(name, **options), location(), targets(name)
    rows = loc.transpose(0, 1).flatten(0, 1)
    groups = Groups(torch.full((EXPERTS,), ROWS), even=True)
    ragged = Groups(torch.full((EXPERTS,), ROWS))
    found = built(rows, groups)
    repeated = y.repeat(EXPERTS, *[1] * (y.ndim - 1))
    assert torch.allclose(found.log_prob(repeated).view(EXPERTS, ROWS).T, built.log_prob(loc, y))
    assert torch.allclose(built(rows, ragged).log_prob(repeated), found.log_prob(repeated))
    if name == "categorical":
        assert torch.allclose(built.mean(rows, groups), found.probs)
    elif name != "student_t":  # whose mean is its centre, also where it has none
        assert torch.allclose(built.mean(rows, groups), found.mean)
    assert built.alone()(rows, Groups(torch.tensor([EXPERTS * ROWS]), even=True)).log_prob(repeated).isfinite().all()


@pytest.mark.parametrize("name", ["gaussian", "laplace", "student_t", "gamma", "poisson"])
def test_densities_integrate_to_one(name):
    built, loc = family(name, out=1), torch.tensor([[[0.3], [-0.4], [1.0]]], dtype=F64)
    if name == "poisson":
        grid, width = torch.arange(0, 60, dtype=F64)[:, None], 1.0
    elif name == "gamma":
        grid, width = (torch.arange(200_000, dtype=F64)[:, None] + 0.5) * 1e-3, 1e-3  # ragged at zero
    else:
        grid, width = (torch.arange(400_000, dtype=F64)[:, None] - 200_000) * 1e-2, 1e-2
    total = built.log_prob(loc.expand(len(grid), -1, -1), grid).exp().sum(0) * width
    assert torch.allclose(total, torch.ones(EXPERTS, dtype=F64), atol=6e-3)


def test_full_covariance_is_the_multivariate_normal_and_its_fit_the_weighted_covariance():
    built, loc, y = family("gaussian", covariance="full"), location(), targets("gaussian")
    expected = MultivariateNormal(loc, scale_tril=built.factor).log_prob(y[:, None])
    assert torch.allclose(built.log_prob(loc, y), expected)
    resp = torch.rand(ROWS, EXPERTS, dtype=F64)
    built.fit(loc, y, resp)
    error = y[:, None] - loc
    covariance = torch.einsum("ne,ney,nez->eyz", resp / resp.sum(0), error, error)
    assert torch.allclose(built.factor @ built.factor.mT, covariance)
    assert torch.allclose(built.scale.square(), covariance.diagonal(dim1=-2, dim2=-1))
    assert covariance[:, 0, 1].abs().min() > 1e-3  # the control: there is something off the diagonal


@pytest.mark.parametrize("covariance", ["isotropic", "diagonal", "full"])
def test_no_direction_is_narrower_than_the_floor(covariance):
    built = Gaussian(2, 1, covariance, min_scale=0.1).double()
    line = torch.linspace(-1, 1, 20, dtype=F64)
    y = torch.stack([line, line], -1) * (1 if covariance == "full" else 1e-4)
    built.fit(torch.zeros(20, 1, 2, dtype=F64), y, torch.ones(20, 1, dtype=F64))
    assert torch.linalg.svdvals(built.factor.detach()).min().item() == pytest.approx(0.1)
    assert built.cornered().tolist() == [True]
    built.fit(torch.zeros(20, 1, 2, dtype=F64), torch.randn(20, 2, dtype=F64), torch.ones(20, 1, dtype=F64))
    assert built.cornered().tolist() == [False]


def test_shapes_solve_their_equation():
    x = torch.logspace(-2, 4, 30, dtype=F64)
    assert torch.allclose(solve_shape(x.log() - x.digamma(), 1e-3, 1e6), x, rtol=1e-6)
    assert solve_shape(torch.tensor([-1.0, 1e9], dtype=F64), 0.5, 100.0).tolist() == pytest.approx([100.0, 0.5])


def test_degrees_of_freedom_and_shapes_are_recovered():
    """10,000 draws each; the t is fitted by 200 of its own EM steps."""
    y = torch.distributions.StudentT(torch.tensor(4.0, dtype=F64), 0.0, 2.0).sample((10_000, 1))
    heavy, one = StudentT(1, 1, df=20.0).double(), torch.ones(10_000, 1, dtype=F64)
    for _ in range(200):
        heavy.fit(torch.zeros(10_000, 1, 1, dtype=F64), y, one)
    assert heavy.df.item() == pytest.approx(4.0, rel=0.15) and heavy.scale.item() == pytest.approx(2.0, rel=0.05)
    for _ in range(200):
        heavy.fit(torch.zeros(10_000, 1, 1, dtype=F64), torch.randn(10_000, 1, dtype=F64), one)
    assert heavy.df.item() > 20  # the control: normal data have no heavy tail
    gamma = build(option_node("family", "gamma"), out=1, num_experts=1).double()
    z = torch.distributions.Gamma(torch.tensor(7.0, dtype=F64), 7.0 / math.exp(0.5)).sample((10_000, 1))
    gamma.fit(torch.full((10_000, 1, 1), 0.5, dtype=F64), z, one)
    assert gamma.shape.item() == pytest.approx(7.0, rel=0.05)


def test_categorical_targets_are_integers():
    built, loc, y = family("categorical"), location(), targets("categorical")
    assert torch.allclose(built.log_prob(loc, y), CategoricalDistribution(logits=loc).log_prob(y[:, None]))


@pytest.mark.parametrize("covariance", ["fixed", "isotropic", "diagonal"])
def test_the_short_way_to_a_gaussian_density_equals_the_distribution(covariance):
    own, y = family("gaussian", covariance=covariance), targets("gaussian")
    loc = location().requires_grad_()
    short, long = own.log_prob(loc, y), Family.log_prob(own, loc, y)
    assert torch.allclose(short, long, atol=1e-12)
    cotangent, leaves = torch.randn(ROWS, EXPERTS, dtype=F64), [loc, *own.parameters()]
    pairs = zip(*(torch.autograd.grad((way * cotangent).sum(), leaves) for way in (short, long)), strict=True)
    assert all(torch.allclose(a, b, atol=1e-12) for a, b in pairs)
    assert not torch.allclose(short, family("gaussian", covariance="full").log_prob(loc, y), atol=1e-3)  # the control
