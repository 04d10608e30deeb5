"""Intervals of mixtures: each family's distribution function against scipy's, and quantiles that undo it."""

import pytest
import torch
from scipy import stats

from moecli.families.categorical import Categorical
from moecli.families.family import Family
from moecli.families.gamma import Gamma
from moecli.families.gaussian import Gaussian
from moecli.families.laplace import Laplace
from moecli.families.logistic import Logistic
from moecli.families.marginal import marginal_cdf
from moecli.families.poisson import Poisson
from moecli.families.student_t import StudentT
from moecli.mixture import Mixture
from moecli.plan import Dense
from moecli.routing import Routing

KNOWN = [
    (Gaussian(1, 1), lambda loc, y: stats.norm.cdf(y, loc)),
    (Gaussian(1, 1, covariance="full"), lambda loc, y: stats.norm.cdf(y, loc)),
    (Laplace(1, 1), lambda loc, y: stats.laplace.cdf(y, loc)),
    (StudentT(1, 1), lambda loc, y: stats.t.cdf(y - loc, 5)),
    (Gamma(1, 1), lambda loc, y: stats.gamma.cdf(y, 1, scale=loc.exp())),
    (Poisson(1, 1), lambda loc, y: stats.poisson.cdf(y, loc.exp())),
]


def mixed(family: Family, loc: torch.Tensor) -> Mixture:
    """One row's mixture of the experts' locations (E,), all with the same share."""
    plan = Dense(torch.zeros(1, len(loc), dtype=loc.dtype).log_softmax(-1))
    rows = loc[:, None]
    components = family.double()(rows, plan.groups)
    return Mixture(
        Routing(plan, torch.ones(1, len(loc)) / len(loc)), components, family.mean(rows, plan.groups), loc[:1]
    )


@pytest.mark.parametrize(("family", "known"), KNOWN)
def test_distribution_functions_are_scipys(family, known):
    loc = torch.tensor([0.7], dtype=torch.float64)
    for y in (-1.5, 0.0, 0.4, 1.0, 6.2):
        found = mixed(family, loc).cdf(torch.tensor([[y]], dtype=torch.float64))
        assert found.item() == pytest.approx(float(known(loc, y)[0]), abs=1e-6)


@pytest.mark.parametrize("family", [Gaussian(1, 2), Laplace(1, 2), StudentT(1, 2, df=1.0), Gamma(1, 2)])
@pytest.mark.parametrize("p", [0.025, 0.5, 0.975])
def test_quantiles_undo_the_mixtures_distribution(family, p):
    mixture = mixed(family, torch.tensor([-3.0, 4.0], dtype=torch.float64))
    assert mixture.cdf(mixture.quantile(p)).item() == pytest.approx(p, abs=1e-8)


def test_quantiles_of_counts_are_the_least_that_reach():
    mixture = mixed(Poisson(1, 2), torch.tensor([0.0, 2.0], dtype=torch.float64))
    for p in (0.025, 0.5, 0.975):
        found = mixture.quantile(p).round()
        assert float(mixture.cdf(found)) >= p > float(mixture.cdf(found - 1))


@pytest.mark.parametrize("family", [Categorical(1, 2), Logistic(1, 2)])
def test_classes_and_ones_have_no_interval(family):
    plan = Dense(torch.zeros(1, 2).log_softmax(-1))
    assert marginal_cdf(family(torch.zeros(2, 1), plan.groups), torch.zeros(2, 1)) is None
