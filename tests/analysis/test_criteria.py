"""How many experts: criteria by hand, held-out likelihood, the bootstrap test, and the planted number found."""

import json
import math

import numpy as np
import pandas as pd
import pytest
import torch

import moecli
from moecli.analysis.criteria import Criteria, climb, criteria, cross_validated, fit, likelihood_ratio_p, simulate
from moecli.analysis.information import Rows
from moecli.config import compose
from moecli.errors import UsageError
from moecli.experts.linear import Linear as LinearExperts
from moecli.families.gaussian import Gaussian
from moecli.gates.linear import Linear as LinearGate
from moecli.gates.mlp import Mlp
from moecli.mixture import MixtureDensity
from moecli.routers.dense import Dense
from moecli.routing import Tokens
from moecli.run import load, selection
from moecli.training.em import Em
from moecli.training.order import reordered

F64 = torch.float64
PLAN = Em(steps=60, tolerance=1e-4, restarts=3)
BRIEF = Em(steps=30, tolerance=1e-3, restarts=2)


def make(num_experts, covariance="diagonal", out=1):
    torch.manual_seed(0)
    router = Dense(lambda n: LinearGate(1, n), num_experts)
    return MixtureDensity(router, LinearExperts(1, out, num_experts), Gaussian(out, num_experts, covariance)).double()


def lines(num_experts, n=240, noise=0.2):
    """A step of ``num_experts`` levels along x."""
    draw = torch.Generator().manual_seed(1)
    x = torch.rand(n, 1, generator=draw, dtype=F64)
    level = (x * num_experts).long().clamp_max(num_experts - 1)
    y = torch.tensor([0.0, 3.0, -2.0], dtype=F64)[level] + noise * torch.randn(n, 1, generator=draw, dtype=F64)
    return Rows.of(x, y)


def test_criteria_by_hand():
    numbers = Criteria(log_likelihood=-100.0, parameters=5, rows=50.0, overlap=3.0)
    assert (numbers.aic, numbers.bic) == pytest.approx((210, 5 * math.log(50) + 200))
    assert numbers.icl == pytest.approx(numbers.bic + 6)


def test_the_likelihood_is_of_targets_in_their_units():
    rows = lines(1)
    layer, _ = climb(make(1), rows, PLAN)
    scaled = Rows.of(rows.x, rows.y * 10)
    other, _ = climb(make(1), scaled, PLAN)
    direct = criteria(other, scaled).log_likelihood
    assert criteria(layer, rows, math.log(10)).log_likelihood == pytest.approx(direct, abs=1e-6)
    assert criteria(layer, rows).log_likelihood != pytest.approx(direct, rel=0.1)


@pytest.mark.parametrize(
    "planted", [pytest.param(1, marks=pytest.mark.slow), 2, pytest.param(3, marks=pytest.mark.slow)]
)
def test_bic_and_held_out_likelihood_find_the_planted_number(planted):
    rows, group = lines(planted), torch.arange(240)
    bic, held = [], []
    for number in range(1, planted + 2):
        bic.append(criteria(fit(make(number), rows, PLAN)[0], rows).bic)
        held.append(cross_validated(make, number, rows, group, BRIEF, folds=2).mean if number <= planted else -math.inf)
    assert int(np.argmin(bic)) + 1 == planted
    assert int(np.argmax(held)) + 1 == planted


def test_folds_keep_groups_whole():
    rows = lines(2, n=60)
    group = torch.arange(60) // 6
    found = cross_validated(make, 1, rows, group, PLAN, folds=5)
    single = cross_validated(make, 1, rows, torch.arange(60), PLAN, folds=5)
    assert math.isfinite(found.mean) and found.mean != single.mean and found.error > 0


def test_the_bootstrap_test_tells_one_expert_from_two():
    p = []
    for rows in (lines(1, n=60), lines(2, n=60)):
        smaller, larger = (fit(make(number), rows, BRIEF)[0] for number in (1, 2))
        p.append(likelihood_ratio_p(make, smaller, larger, rows, BRIEF, draws=4))
    assert p[0] > 0.3 and p[1] == pytest.approx(0.2)  # the least that four draws can give


@pytest.mark.parametrize("covariance", ["diagonal", "full"])
def test_simulated_targets_have_the_mixtures_mean_and_spread(covariance):
    layer = make(2, covariance, out=2)
    if covariance == "full":
        with torch.no_grad():
            layer.family.below[:, 1, 0] = 0.8
    x = torch.full((40_000, 1), 0.4, dtype=F64)
    drawn, mixture = simulate(layer, x, seed=0), layer(Tokens.items(x))
    assert torch.allclose(drawn.mean(0), mixture.mean[0], atol=0.03)
    assert torch.allclose(drawn.var(0), mixture.variance[0], rtol=0.04)
    assert torch.equal(drawn, simulate(layer, x, seed=0)) and not torch.equal(drawn, simulate(layer, x, seed=1))


def test_another_order_is_the_same_mixture_under_other_names():
    rows, order = lines(3), torch.tensor([2, 0, 1])
    layer = fit(make(3), rows, PLAN)[0]
    other = reordered(layer, order, rows.x)
    before, after = (one(Tokens.items(rows.x)) for one in (layer, other))
    assert torch.allclose(before.log_prob(rows.y), after.log_prob(rows.y), atol=1e-10)
    assert torch.equal(other.experts.weight, layer.experts.weight[order])
    torch.manual_seed(0)
    hidden = MixtureDensity(Dense(lambda n: Mlp(1, n, hidden=3), 3), LinearExperts(1, 1, 3), Gaussian(1, 3)).double()
    assert reordered(hidden, order, rows.x) is hidden  # a hidden layer of three units is no axis of experts


# Through runs


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    rows = lines(2)
    path = tmp_path_factory.mktemp("data") / "d.csv"
    frame = pd.DataFrame({"x": rows.x[:, 0], "y": rows.y[:, 0] * 7 + 3, "times": 1 + np.arange(240) % 3}).round(5)
    frame.to_csv(path, index=False)
    return path


def words(file):
    return (
        "task=table",
        f"task.path={file}",
        "task.formula=y ~ x",
        "model=density",
        "router=dense",
        "expert=linear",
        "trainer=em",
    )


def test_selection_names_the_planted_number_and_refuses_networks(file):
    rows = selection(compose((*words(file), "trainer.tolerance=1e-3")), range(1, 4), folds=0, restarts=2)
    assert [row["num_experts"] for row in rows] == [1, 2, 3] and "held" not in rows[0] and "p" not in rows[0]
    assert min(rows, key=lambda row: row["bic"])["num_experts"] == 2
    with pytest.raises(UsageError, match="can be counted only"):
        selection(compose((*words(file), "gate=mlp")), range(1, 2), folds=0)


def test_moe_criteria_prints_a_table(file, capsys):
    from moecli.cli.criteria import criteria as command

    command(list(words(file)), experts="1-2", folds=2, restarts=2)
    printed = capsys.readouterr().out
    assert "BIC" in printed and "*" in printed and "held out/row" in printed and len(printed.splitlines()) == 5
    command(list(words(file)), experts="2", folds=0, restarts=2, json=True)
    assert json.loads(capsys.readouterr().out)[0]["identified"] == 8
    with pytest.raises(UsageError, match="1-5"):
        command(list(words(file)), experts="5-1")


def test_runs_say_their_criteria_and_compare_shows_them(file, tmp_path, monkeypatch):
    from moecli.report.compare import compare
    from moecli.report.records import read_runs

    monkeypatch.setattr("moecli.run._draw", lambda run: None)
    more = ("task.weights=times", "trainer.restarts=3")
    runs = [moecli.train(*words(file), *more, f"num_experts={n}", runs=tmp_path) for n in (1, 2)]
    records, _ = read_runs([tmp_path])
    found = compare(records, by="num_experts")
    assert found.columns[1:5] == ("loglik", "aic", "bic", "icl")
    bic = {row.name: row.cells["bic"].mean for row in found.rows}
    assert bic["2"] < bic["1"] == pytest.approx(runs[0].summary["criteria"]["bic"])
    batch = load(runs[0].path).task.batch("train", torch.arange(5))
    assert batch.weight is not None and runs[0].summary["criteria"]["rows"] > 240 * 0.65
