"""Variational Bayes: the bound against closed forms, its rise, and the number of experts that it picks."""

from __future__ import annotations

import math
import os
import signal
from itertools import pairwise

import pytest
import torch
from scipy.stats import multivariate_t
from sklearn.linear_model import ARDRegression

import moecli
from moecli.errors import Interrupted, UsageError
from moecli.record import checkpoint
from moecli.record.folder import Run, read_lines
from moecli.run import resume
from moecli.tasks.task import generator
from moecli.training.em import scattered
from moecli.training.posterior import Data, Posterior, Prior, begin, bound, joint, responsibilities, update
from moecli.training.variational import Climb, _Run

F64 = torch.float64
VAGUE = Prior(1e-6, 1e-6, 1e-6, 1e-6)


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def lines(regimes: int, rows: int, seed: int, noise: float = 0.1, dim: int = 1) -> Data:
    """So many lines, each over its own stretch of the first column; targets of about unit spread."""
    draw = generator(seed, regimes)
    x = torch.rand(rows, dim, generator=draw, dtype=F64) * 2 - 1
    regime = ((x[:, 0] + 1) / 2 * regimes).long().clamp_max(regimes - 1)
    slope = torch.tensor([2.0, -2.0, 2.0, -2.0], dtype=F64)[regime]
    height = torch.tensor([1.0, -1.0, -0.5, 1.5], dtype=F64)[regime]
    y = height + slope * (x[:, 0] - (regime + 0.5) / regimes * 2 + 1)
    y = y + noise * torch.randn(rows, generator=draw, dtype=F64)
    one = torch.cat([x, torch.ones(rows, 1, dtype=F64)], 1)
    return Data(one, one, y[:, None])


def cells(data: Data, experts: int, seed: int) -> torch.Tensor:
    return scattered(data.phi, data.y, experts, generator(seed))


def climbed(data: Data, resp: torch.Tensor, steps: int, prior: Prior = Prior()) -> tuple[Posterior, list[float]]:  # noqa: B008
    q, values = begin(data, resp, prior), []
    for _ in range(steps):
        values.append(bound(q, data, prior))
        q = update(q, data, responsibilities(q, data), prior)
    return q, [*values, bound(q, data, prior)]


def rises(values: list[float]) -> bool:
    return all(b - a >= -1e-10 * (1 + abs(a)) for a, b in pairwise(values))


# -- the bound ---------------------------------------------------------------------------------------


def test_one_expert_of_fixed_relevance_has_the_exact_evidence():
    """The weights and the noise integrate to a multivariate t: mean 0, shape b0 / a0 (I + phi phi^T), 2 a0 degrees."""
    data = lines(1, 12, seed=0, dim=2)
    sure = Prior(a0=2.0, b0=1.5, c0=1e7, d0=1e7)  # alpha is 1
    _, values = climbed(data, torch.ones(12, 1, dtype=F64), 5, sure)
    covariance = torch.eye(12, dtype=F64) + data.phi @ data.phi.mT
    exact = multivariate_t.logpdf(data.y[:, 0], None, 1.5 / 2 * covariance, df=4)
    assert values[-1] == pytest.approx(exact, abs=1e-5)
    assert abs(values[-1] - multivariate_t.logpdf(data.y[:, 0], None, covariance, df=4)) > 0.1  # the control


def test_the_bound_is_below_the_evidence_where_relevance_is_learned():
    """One weight, so that the integral over its relevance is one-dimensional and can be done on a grid."""
    x = torch.randn(15, 1, dtype=F64)
    data = Data(x, x, 0.7 * x + 0.3 * torch.randn(15, 1, dtype=F64))
    prior = Prior(2.0, 1.0, 2.0, 1.0)
    _, values = climbed(data, torch.ones(15, 1, dtype=F64), 200, prior)
    log_alpha = torch.linspace(-12, 8, 401, dtype=F64)
    gamma = torch.distributions.Gamma(prior.c0, prior.d0)
    inner = [
        multivariate_t.logpdf(data.y[:, 0], None, 0.5 * (torch.eye(15, dtype=F64) + x @ x.mT / a), df=4)
        for a in log_alpha.exp().tolist()
    ]
    weighted = torch.tensor(inner, dtype=F64) + gamma.log_prob(log_alpha.exp()) + log_alpha
    evidence = float(weighted.logsumexp(0)) + math.log(20 / 400)
    assert evidence - 0.3 < values[-1] < evidence


def test_one_expert_is_scikit_learns_automatic_relevance_determination():
    x = torch.randn(80, 4, dtype=F64)
    y = x @ torch.tensor([1.5, -0.4, 0.2, -0.8], dtype=F64) + 0.5 * torch.randn(80, dtype=F64)
    q, _ = climbed(Data(x, x, y[:, None]), torch.ones(80, 1, dtype=F64), 200, VAGUE)
    ours = q.weight[0, 0]
    theirs = ARDRegression(max_iter=500, tol=1e-14, threshold_lambda=1e300, fit_intercept=False).fit(x, y)
    assert ours.numpy() == pytest.approx(theirs.coef_, abs=1e-4)
    assert q.noise.mean.item() == pytest.approx(theirs.alpha_, rel=1e-3)
    least_squares = torch.linalg.lstsq(x, y).solution
    assert float((ours - least_squares).abs().max()) > 1e-3  # the control: relevance does something


def sampled_bound(q: Posterior, data: Data, prior: Prior, draws: int) -> torch.Tensor:
    """(draws,) E_q(z)[log p(y, z, all)] - log q(z, all) at samples of q: their mean is the bound without Boehning's gap."""
    many, free = len(q.expert), len(q.expert) - 1
    relevance = torch.distributions.Gamma(q.relevance.shape, q.relevance.rate)
    noise = torch.distributions.Gamma(q.noise.shape, q.noise.rate)
    gate_relevance = torch.distributions.Gamma(q.gate_relevance.shape, q.gate_relevance.rate)
    prior_alpha = torch.distributions.Gamma(*torch.tensor([prior.c0, prior.d0], dtype=F64))
    prior_tau = torch.distributions.Gamma(*torch.tensor([prior.a0, prior.b0], dtype=F64))
    basis = torch.linalg.eigh(torch.eye(many, dtype=F64) - 1 / many).eigenvectors[:, 1:]  # (E, E - 1) of the centred
    free_gate = torch.distributions.MultivariateNormal(basis.mT @ q.gate, q.gate_spread)
    resp, found = responsibilities(q, data), []
    for _ in range(draws):
        alpha, tau, lam, v = relevance.sample(), noise.sample(), gate_relevance.sample(), free_gate.sample()
        weights = torch.distributions.MultivariateNormal(q.weight, q.spread / tau[..., None, None])
        w = weights.sample()
        value = prior_alpha.log_prob(alpha).sum() - relevance.log_prob(alpha).sum()
        value += prior_tau.log_prob(tau).sum() - noise.log_prob(tau).sum()
        value += prior_alpha.log_prob(lam).sum() - gate_relevance.log_prob(lam).sum()
        value += torch.distributions.Normal(0, (tau[..., None] * alpha) ** -0.5).log_prob(w).sum()
        value -= weights.log_prob(w).sum()
        value += torch.distributions.Normal(0, lam.expand(free, -1) ** -0.5).log_prob(v).sum()
        value -= free_gate.log_prob(v).sum()
        loc = torch.einsum("nf,eyf->ney", data.phi, w)
        density = torch.distributions.Normal(loc, tau**-0.5).log_prob(data.y[:, None]).sum(-1)
        log_gate = (data.u @ (basis @ v).mT).log_softmax(-1)
        found.append(value + (resp * (density + log_gate - resp.clamp_min(1e-300).log())).sum())
    return torch.stack(found)


def test_the_bound_is_the_expectation_that_it_stands_for_less_boehnings_gap():
    """By sampling q: at most E_q[log p / q], and short of it by no more than Boehning's curvature allows."""
    data, prior = lines(2, 60, seed=1, dim=2), Prior(1.0, 0.1, 1.0, 0.1)
    q, values = climbed(data, cells(data, 3, 0), 30, prior)
    samples = sampled_bound(q, data, prior, 400)
    gap = 0.25 * 2 * float(((data.u @ q.gate_spread) * data.u).sum())
    error = 4 * float(samples.std()) / math.sqrt(len(samples))
    assert float(samples.mean()) - gap - error < values[-1] < float(samples.mean()) + error
    assert error < 0.5 * gap  # the control: the two ends are apart


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("experts", [1, 2, 5])
def test_the_bound_never_falls(seed, experts):
    data = lines(3, 150, seed, dim=2)
    data = Data(data.phi, data.u, torch.cat([data.y, data.y.square()], 1))
    _, values = climbed(data, cells(data, experts, seed), 60)
    assert rises(values)
    assert values[-1] > values[0] + 0.5


def test_a_fall_would_be_seen():
    data = lines(2, 100, seed=0)
    q, values = climbed(data, cells(data, 2, 0), 10)
    worse = Posterior(**{**vars(q), "weight": q.weight + 0.05})
    assert not rises([*values, bound(worse, data, Prior())])


def test_each_factor_stands_at_its_top():
    """No gradient of the bound is left with respect to any factor's mean, once the climb has come to rest."""
    data = lines(2, 100, seed=0)
    q, _ = climbed(data, cells(data, 2, 0), 150)
    weight = q.weight.clone().requires_grad_()
    moved = Posterior(**{**vars(q), "weight": weight})
    prior_part = 0.5 * (q.relevance.mean * q.noise.mean[..., None] * weight.square()).sum()
    (gradient,) = torch.autograd.grad(joint(moved, data).logsumexp(-1).sum() - prior_part, weight)
    assert float(gradient.abs().max()) < 1e-5 * len(data.y)


# -- the number of experts ---------------------------------------------------------------------------


def picked(regimes: int, experts: int, seed: int, rows: int = 400) -> int:
    data = lines(regimes, rows, seed)
    climb = Climb(data, cells(data, experts, seed), Prior(), 1e-6)
    reached = []
    for _ in range(3000):
        ended = climb.iterate()
        reached.append(climb.reached)
        if ended:
            break
    assert ended and rises(reached)
    return len(climb.posterior.expert)


def test_the_bound_empties_surplus_experts():
    assert [picked(regimes, 6, seed=regimes, rows=200) for regimes in (1, 2)] == [1, 2]


@pytest.mark.slow
@pytest.mark.parametrize("regimes", [1, 2, 3, 4])
def test_the_planted_number_is_found_in_eight_of_ten_seeds(regimes):
    found = [picked(regimes, 8, seed) for seed in range(10)]
    assert sum(number == regimes for number in found) >= 8, found


# -- the trainer -------------------------------------------------------------------------------------

WORDS = ["task=piecewise", "task.rows=200", "trainer=variational", "gate=linear", "num_experts=6", "threads=1"]


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr("moecli.run._draw", lambda run: None)
    monkeypatch.setattr("moecli.run._change_without", lambda *args: None)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return moecli.train(*WORDS, runs=tmp_path_factory.mktemp("whole"))


def recorded(run: Run, name: str) -> list[float]:
    return [line["value"] for line in read_lines(run.path / "metrics.jsonl") if line["name"] == name]


def test_a_run_says_how_many_experts_are_left_and_gives_them_all_rows(whole):
    left = int(recorded(whole, "experts")[-1])
    assert 1 < left < 6
    assert sum(row["load"] > 0 for row in whole.summary["experts"]) == left
    assert rises(recorded(whole, "bound"))
    assert whole.summary["metrics"]["test/r2"] > 0.9
    assert "the bound rises with one expert fewer" in (whole.path / "log.txt").read_text()


def test_the_same_row_twice_is_one_row_of_weight_two():
    data = lines(2, 60, seed=3)
    twice = Data(*(torch.cat([table, table[:20]]) for table in (data.phi, data.u, data.y)))
    weight = torch.ones(60, dtype=F64)
    weight[:20] = 2
    heavy, resp = Data(data.phi, data.u, data.y, weight), cells(data, 3, 0)
    (_, apart), (_, together) = climbed(twice, torch.cat([resp, resp[:20]]), 20), climbed(heavy, resp, 20)
    assert apart == pytest.approx(together, rel=1e-9)
    assert climbed(data, resp, 20)[1][-1] != pytest.approx(together[-1], rel=1e-3)  # the control


def test_an_interrupted_run_goes_on_to_the_same_bits(whole, tmp_path, monkeypatch):
    real = _Run.iterate

    def signalled(self, number):
        ended = real(self, number)
        if number == 12:
            os.kill(os.getpid(), signal.SIGTERM)
        return ended

    monkeypatch.setattr(_Run, "iterate", signalled)
    with pytest.raises(Interrupted):
        moecli.train(*WORDS, runs=tmp_path)
    monkeypatch.setattr(_Run, "iterate", real)
    (file,) = tmp_path.glob("*/*/run.json")
    resumed = resume(file.parent)
    assert (resumed.path / "metrics.jsonl").read_bytes() == (whole.path / "metrics.jsonl").read_bytes()
    for name, tensor in weights(resumed).items():
        assert torch.equal(tensor, weights(whole)[name]), name


def weights(run: Run) -> dict[str, torch.Tensor]:
    return checkpoint.load(run.path / "checkpoints" / f"step-{run.info['best_step']:08d}")[0]["posterior"]


def test_experts_and_gate_may_read_other_columns(tmp_path):
    words = ["task=regions", "task.rows=100", *WORDS[2:], "trainer.steps=5"]
    run = moecli.train(*words, "gate.columns=[0]", "expert.columns=[1]", runs=tmp_path)
    found = weights(run)
    assert found["gate"].shape[1] == found["weight"].shape[2] == 2  # one column and the constant


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["expert=feed_forward"], "expert=linear"),
        (["gate=mlp"], "gate=linear"),
        (["router=top_k"], "router=dense"),
        (["task=spirals", "model=density", "router=dense", "expert=linear"], "family=gaussian"),
        (["family=gaussian", "family.covariance=full"], "family.covariance=diagonal"),
        (["gate.bias=false"], "gate.bias=true"),
        (["model.twin=true"], "trainer=gradient"),
        (["optimizer.lr=0.1"], "trainer=gradient"),
    ],
)
def test_what_cannot_be_is_refused_in_one_sentence(words, says, tmp_path):
    with pytest.raises(UsageError, match=says) as refused:
        moecli.train(*{w.split("=")[0]: w for w in [*WORDS, *words] if "rows" not in w}.values(), runs=tmp_path)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("hard", ["constant column", "duplicates", "fewer rows than experts", "outlier", "flat target"])
def test_hard_data_has_a_finite_rising_bound(hard):
    data = lines(2, 4 if hard == "fewer rows than experts" else 60, seed=0)
    phi, y = data.phi.clone(), data.y.clone()
    if hard == "constant column":
        phi = torch.cat([phi, torch.full((len(phi), 1), 3.0, dtype=F64)], 1)
    elif hard == "duplicates":
        phi, y = phi[:5].repeat(12, 1), y[:5].repeat(12, 1)
    elif hard == "outlier":
        y[0] = 1e4
    elif hard == "flat target":
        y = torch.zeros_like(y)
    hard_data = Data(phi, phi, y)
    q, values = climbed(hard_data, cells(hard_data, 6, 0), 30)
    assert rises(values) and math.isfinite(values[-1])
    assert bool(responsibilities(q, hard_data).isfinite().all())
