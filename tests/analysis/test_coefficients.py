"""Coefficient tables against the textbook: least squares, logistic regression, other units, other weights, coverage."""

import json
import math

import numpy as np
import pandas as pd
import pytest
import torch

import moecli
from moecli.analysis.coefficients import Label, Units, coefficients, estimate, quantities
from moecli.analysis.criteria import climb, criteria, fit, matched, resampled
from moecli.analysis.information import Covariance, Model, Rows, is_classical
from moecli.experts.constant import Constant as ConstantExperts
from moecli.experts.feed_forward import FeedForward
from moecli.experts.linear import Linear as LinearExperts
from moecli.families.categorical import Categorical
from moecli.families.gamma import Gamma
from moecli.families.gaussian import Gaussian
from moecli.families.laplace import Laplace
from moecli.families.poisson import Poisson
from moecli.families.student_t import StudentT
from moecli.gates.constant import Constant as ConstantGate
from moecli.gates.linear import Linear as LinearGate
from moecli.mixture import MixtureDensity
from moecli.routers.dense import Dense
from moecli.routing import Tokens
from moecli.run import coefficient_tables, load
from moecli.training.em import Em

TIGHT = Em(steps=2000, tolerance=1e-13)
F64 = torch.float64


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def mixture(num_experts, dim=2, out=1, family=None, gate=LinearGate, experts=LinearExperts):
    made = gate(num_experts) if gate is ConstantGate else gate(dim, num_experts)
    router = Dense(lambda _: made, num_experts)
    return MixtureDensity(router, experts(dim, out, num_experts), family or Gaussian(out, num_experts)).double()


def two_lines(n=300, seed=0, noise=0.3):
    """Rows of two planted lines, chosen by a logistic gate on the second column."""
    draw = torch.Generator().manual_seed(seed)
    x = torch.randn(n, 2, generator=draw, dtype=F64)
    first = torch.rand(n, generator=draw, dtype=F64) < (1 + 1.5 * x[:, 1]).sigmoid()
    y = torch.where(first, 2 + x[:, 0], -2 - x[:, 0]) + noise * torch.randn(n, generator=draw, dtype=F64)
    return x, y[:, None]


def table(found, part, expert=0):
    return {line.label.name: line for line in found.estimates if (line.label.part, line.label.expert) == (part, expert)}


def plain(x, *targets):
    return Units.plain([f"x{i}" for i in range(x.shape[1])], targets)


# One component is the textbook's


def test_one_expert_is_least_squares():
    x, y = two_lines()
    rows = Rows.of(x, y)
    layer, _ = climb(mixture(1), rows, TIGHT)
    found = coefficients(layer, rows, plain(x, "y"))
    one = torch.cat([torch.ones(len(x), 1, dtype=F64), x], 1)
    beta = torch.linalg.lstsq(one, y).solution[:, 0]
    sigma2 = float((y[:, 0] - one @ beta).square().mean())  # of maximum likelihood: over n
    deviation = (sigma2 * torch.linalg.inv(one.T @ one).diagonal()).sqrt()
    lines = table(found, "experts")
    for name, b, s in zip(["(constant)", "x0", "x1"], beta.tolist(), deviation.tolist(), strict=True):
        line = lines[name]
        assert (line.value, line.deviation) == pytest.approx((b, s), abs=1e-8)
        assert (line.z, line.low, line.high) == pytest.approx((b / s, b - 1.959964 * s, b + 1.959964 * s), abs=1e-5)
    spread = table(found, "dispersion")["scale"]
    assert (spread.value, spread.deviation) == pytest.approx((sigma2**0.5, (sigma2 / 2 / len(x)) ** 0.5), abs=1e-8)
    likelihood = -len(x) / 2 * (math.log(2 * math.pi * sigma2) + 1)
    numbers = criteria(layer, rows)
    assert numbers.log_likelihood == pytest.approx(likelihood, abs=1e-6)
    assert (numbers.aic, numbers.bic) == pytest.approx(
        (8 - 2 * likelihood, 4 * math.log(300) - 2 * likelihood), abs=1e-6
    )
    assert numbers.icl == pytest.approx(numbers.bic, abs=1e-9)  # nothing overlaps
    assert found.notes == [] and not table(found, "gate") and not table(found, "shares")


def test_one_expert_of_classes_is_logistic_regression():
    x, y = two_lines()
    label = (y[:, 0] + torch.randn(300, dtype=F64) > 0).long()
    rows = Rows.of(x, label)
    layer, _ = climb(mixture(1, out=2, family=Categorical(2, 1)), rows, TIGHT)
    found = table(coefficients(layer, rows, plain(x, "no", "yes")), "experts")
    one = torch.cat([torch.ones(len(x), 1, dtype=F64), x], 1)
    beta = torch.tensor([found[name].value for name in ("(constant)", "x0", "x1")], dtype=F64)
    p = (one @ beta).sigmoid()
    assert (one.T @ (label - p)).abs().max() < 1e-4  # the score is zero: it is the maximum
    fisher = torch.linalg.inv(one.T @ ((p * (1 - p))[:, None] * one)).diagonal().sqrt()
    assert [line.deviation for line in found.values()] == pytest.approx(fisher.tolist(), abs=1e-6)
    numbers = criteria(layer, rows)
    assert numbers.parameters == 3 and numbers.log_likelihood == pytest.approx(
        float(torch.where(label > 0, p, 1 - p).log().sum()), abs=1e-6
    )


@pytest.mark.parametrize(
    ("family", "gate", "experts", "parameters"),
    [
        (Gaussian(2, 2), LinearGate, LinearExperts, 2 * 2 * 3 + 4 + 3),
        (Gaussian(2, 2, covariance="isotropic"), LinearGate, LinearExperts, 12 + 2 + 3),
        (Gaussian(2, 2, covariance="full"), LinearGate, LinearExperts, 12 + 6 + 3),
        (Gaussian(2, 2, covariance="fixed"), ConstantGate, LinearExperts, 12 + 1),
        (Gaussian(2, 2), ConstantGate, ConstantExperts, 4 + 4 + 1),
        (Laplace(2, 2), LinearGate, LinearExperts, 12 + 4 + 3),
        (StudentT(2, 2), LinearGate, LinearExperts, 12 + 8 + 3),
        (Gamma(2, 2), LinearGate, LinearExperts, 12 + 4 + 3),
        (Poisson(2, 2), LinearGate, LinearExperts, 12 + 3),
        (Categorical(2, 2), LinearGate, LinearExperts, 6 + 3),
    ],
)
def test_parameters_are_those_that_the_likelihood_tells_apart(family, gate, experts, parameters):
    layer = mixture(2, out=2, family=family, gate=gate, experts=experts)
    model, x = Model(layer), torch.randn(80, 2, dtype=F64)
    assert is_classical(layer) and len(model.theta) == parameters
    y = torch.randint(2, (80,)) if isinstance(family, Categorical) else torch.randint(1, 9, (80, 2)).double()
    rows = Rows.of(x, y)
    before, after = (one(Tokens.items(x)).log_prob(y) for one in (layer, model.layer))
    assert torch.allclose(before, after, atol=1e-10)  # pinning changes names, not the density
    gradient, information = model.derivatives(rows)
    moved = model.theta + 1e-5 * torch.randn_like(model.theta)
    change = model.log_likelihood(moved, x, y, rows.weight) - model.log_likelihood(model.theta, x, y, rows.weight)
    step = moved - model.theta
    assert float(change) == pytest.approx(float(gradient @ step - 0.5 * step @ information @ step), abs=1e-6)
    if not isinstance(family, Laplace):  # whose density has no curvature in its location
        assert torch.linalg.eigvalsh(information).abs().min() > 1e-9


# What cannot be told is said


def test_collinear_columns_have_no_deviation_and_the_others_keep_theirs():
    x, y = two_lines()
    twice = torch.cat([x, x[:, :1] * 2], 1)
    rows, less = Rows.of(twice, y), Rows.of(x, y)
    found = coefficients(climb(mixture(1, dim=3), rows, TIGHT)[0], rows, plain(twice, "y"))
    known = coefficients(climb(mixture(1), less, TIGHT)[0], less, plain(x, "y"))
    lines = table(found, "experts")
    assert math.isnan(lines["x0"].deviation) and math.isnan(lines["x2"].deviation)
    assert lines["x1"].deviation == pytest.approx(table(known, "experts")["x1"].deviation, abs=1e-6)
    assert "not positive definite" in found.notes[0] and "collinear" in found.notes[0]


def test_a_fit_that_is_no_maximum_says_so():
    x, y = two_lines()
    rows = Rows.of(x, y)
    layer, _ = climb(mixture(2), rows, TIGHT)
    assert coefficients(layer, rows, plain(x, "y")).notes == []  # the control
    early, _ = climb(layer, rows, TIGHT)
    with torch.no_grad():
        early.experts.bias += 0.1
    assert "nats below the maximum" in coefficients(early, rows, plain(x, "y")).notes[0]
    saddle = mixture(2)
    with torch.no_grad():
        for parameter in (saddle.experts.weight, saddle.experts.bias, *saddle.router.gate.parameters()):
            parameter.zero_()
    found = coefficients(saddle, rows, plain(x, "y"))
    assert "at no maximum" in found.notes[0] and all(math.isnan(line.deviation) for line in found.estimates)


def test_the_inverse_is_the_inverse():
    root = torch.randn(5, 5, dtype=F64)
    information, jacobian = root @ root.T, torch.randn(3, 5, dtype=F64)
    found = Covariance.of(torch.zeros(5, dtype=F64), information).deviations(jacobian)
    expected = (jacobian @ torch.linalg.inv(information) @ jacobian.T).diagonal().sqrt()
    assert torch.allclose(found, expected, rtol=1e-8)


@pytest.mark.parametrize(("kind", "value"), [("positive", 0.1), ("share", 0.02), ("correlation", -0.95)])
def test_intervals_stay_where_the_quantity_lives(kind, value):
    line = estimate(Label("dispersion", 0, "", "it", kind), value, 0.05)
    low, high = {"positive": (0, math.inf), "share": (0, 1), "correlation": (-1, 1)}[kind]
    assert low < line.low < value < line.high < high and math.isnan(line.z)


def test_networks_have_no_tables():
    layer = MixtureDensity(Dense(lambda n: LinearGate(2, n), 2), FeedForward(2, 1, 2), Gaussian(1, 2))
    assert not is_classical(layer) and is_classical(mixture(2))


# Weights, names and resampling


def test_weights_are_replications():
    x, y = two_lines(120)
    times = torch.randint(0, 4, (120,))
    weighted, replicated = Rows.of(x, y, times), Rows.of(x.repeat_interleave(times, 0), y.repeat_interleave(times, 0))
    start = mixture(2)
    fits = [climb(start, rows, TIGHT)[0] for rows in (weighted, replicated)]
    tables = [
        coefficients(layer, rows, plain(x, "y")) for layer, rows in zip(fits, (weighted, replicated), strict=True)
    ]
    for ours, theirs in zip(*(found.estimates for found in tables), strict=True):
        assert (ours.value, ours.deviation) == pytest.approx((theirs.value, theirs.deviation), rel=1e-5, abs=1e-7)
    ours, theirs = (criteria(layer, rows) for layer, rows in zip(fits, (weighted, replicated), strict=True))
    assert ours.numbers() == pytest.approx(theirs.numbers(), rel=1e-7)
    unweighted = criteria(climb(start, Rows.of(x, y), TIGHT)[0], Rows.of(x, y))
    assert unweighted.bic != pytest.approx(ours.bic, rel=1e-2)  # the control


def test_matching_undoes_a_change_of_names():
    x, y = two_lines()
    rows = Rows.of(x, y)
    layer, _ = fit(mixture(2), rows, Em(restarts=3))
    from moecli.training.order import reordered

    other = reordered(layer, torch.tensor([1, 0]), x)
    assert not torch.allclose(other.experts.weight, layer.experts.weight)
    assert torch.allclose(matched(layer, other, rows).experts.weight, layer.experts.weight)


def test_bootstrap_deviations_are_near_those_of_the_information():
    x, y = two_lines(400)
    rows = Rows.of(x, y)
    layer, _ = fit(mixture(2), rows, Em(restarts=3, tolerance=1e-8))
    units = plain(x, "y")
    known = coefficients(layer, rows, units)
    drawn = [quantities(*found, units) for found in resampled(layer, rows, torch.arange(400), Em(tolerance=1e-7), 40)]
    values = torch.stack([value for _, value in drawn])
    spread = dict(zip(drawn[0][0], values.std(0).tolist(), strict=True))
    ratio = [spread[line.label] / line.deviation for line in known.estimates if line.label.part == "experts"]
    assert len(ratio) == 6 and 0.6 < np.prod(ratio) ** (1 / 6) < 1.6


# Through a run


def written(tmp_path, n=260):
    draw = np.random.default_rng(0)
    a, z, kind = draw.normal(50, 10, n), draw.normal(3, 2, n), draw.choice(list("uv"), n)
    first = draw.random(n) < 1 / (1 + np.exp(2 * (z - 3)))
    y = np.where(first, 5 + a, 80 - a + 3 * (kind == "v")) + draw.normal(0, 1, n)
    frame = pd.DataFrame({"a": a, "z": z, "kind": kind, "y": y}).round(4)
    frame.to_csv(tmp_path / "d.csv", index=False)
    return str(tmp_path / "d.csv")


WORDS = ("task=table", "task.formula=y ~ a + kind | z", "model=density", "router=dense", "expert=linear", "trainer=em")
QUICK = ("num_experts=2", "trainer.restarts=3", "trainer.tolerance=1e-11", "trainer.steps=400")


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    words = (*WORDS, f"task.path={written(folder)}", *QUICK)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("moecli.run._draw", lambda run: None)
        return [moecli.train(*words, f"task.standardize={flag}", runs=folder) for flag in ("true", "false")]


def test_the_tables_are_the_same_whether_the_fit_was_standardised(runs):
    scaled, raw = (coefficient_tables(load(run.path)) for run in runs)
    assert len(scaled.estimates) == len(raw.estimates) == 6 + 2 + 2 + 2
    for ours, theirs in zip(scaled.estimates, raw.estimates, strict=True):
        assert ours.label == theirs.label
        assert (ours.value, ours.deviation) == pytest.approx((theirs.value, theirs.deviation), rel=2e-3, abs=2e-3)
    assert runs[0].summary["criteria"] == pytest.approx(runs[1].summary["criteria"], rel=1e-5)


def test_the_tables_hold_what_was_planted_and_experts_stand_by_falling_share(runs):
    found = coefficient_tables(load(runs[0].path))
    shares = [line.value for line in found.estimates if line.label.part == "shares"]
    assert shares == sorted(shares, reverse=True) and sum(shares) == pytest.approx(1)
    slopes = sorted(table(found, "experts", e)["a"].value for e in (0, 1))
    assert slopes == pytest.approx([-1, 1], abs=0.05)
    assert abs(table(found, "gate", 1)["z"].z) > 5 and set(table(found, "gate", 1)) == {"(constant)", "z"}


def test_moe_show_prints_them(runs, monkeypatch, capsys):
    from moecli.cli.show import show

    show([str(runs[0].path)])
    printed = capsys.readouterr().out
    assert "std. error" in printed and "kind[T.v]" in printed and "log-odds against e0" in printed and "BIC" in printed
    assert printed.index("std. error") < printed.index(" next ")
    show([str(runs[0].path)], json=True)
    content = json.loads(capsys.readouterr().out)
    assert len(content["coefficients"]) == 12 and content["criteria"]["identified"] == 10


@pytest.mark.slow
def test_intervals_cover():
    """Of 200 simulated sets, 95 % intervals of every coefficient hold the planted value in 90 to 99 %."""
    truth = {("experts", 0): [2, 1, 0], ("experts", 1): [-2, -1, 0], ("gate", 1): [-1, 0, -1.5]}
    hits = {key: np.zeros(3) for key in truth}
    start = mixture(2)
    with torch.no_grad():
        start.experts.bias.copy_(torch.tensor([[2.0], [-2.0]]))
    for seed in range(200):
        x, y = two_lines(400, seed + 1)
        rows = Rows.of(x, y)
        found = coefficients(climb(start, rows, Em(tolerance=1e-9, steps=300))[0], rows, plain(x, "y"))
        for (part, expert), values in truth.items():
            lines = table(found, part, expert).values()
            hits[part, expert] += [line.low <= value <= line.high for line, value in zip(lines, values, strict=True)]
    for share in hits.values():
        assert ((share >= 180) & (share <= 198)).all(), hits
