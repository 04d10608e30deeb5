"""The same mixture from the same responsibilities as R's flexmix and mixtools, and as a direct optimiser.

``r/results.json`` holds what ``cd tests/parity/r && Rscript mixtures.R > results.json`` printed for ``r/rows.csv``.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from torch import Tensor
from torch.nn.utils import parameters_to_vector, vector_to_parameters

from moecli.experts.linear import Linear
from moecli.families.gaussian import Gaussian
from moecli.gates.constant import Constant as ConstantGate
from moecli.gates.gate import Gate
from moecli.gates.linear import Linear as LinearGate
from moecli.mixture import MixtureDensity
from moecli.routers.dense import Dense
from moecli.training.em import em_step
from moecli.training.evidence import observe
from moecli.training.maximise import maximise

HERE = Path(__file__).parent / "r"
TABLE = np.genfromtxt(HERE / "rows.csv", delimiter=",", names=True)
X = torch.from_numpy(np.stack([TABLE["x1"], TABLE["x2"]], 1))  # (N, 2)
Y = torch.from_numpy(TABLE["y"])[:, None]
START = torch.from_numpy(np.stack([TABLE[name] for name in TABLE.dtype.names if name.startswith("start")], 1))
R: dict[str, Any] = json.loads((HERE / "results.json").read_text())
ROWS, EXPERTS, DIM = len(X), START.shape[1], X.shape[1]
PER_ROW = 1e-6  # nats


class CorrectedGaussian(Gaussian):
    """flexmix's: FLXMRglm divides the mean square by N - P instead of N, P the columns with the intercept.

    Its fixed point is no maximum of the likelihood.
    """

    @torch.no_grad()
    def adopt(self, statistics: dict[str, Tensor]) -> None:
        super().adopt(statistics)
        rows = float(statistics["total"].sum())
        self.log_scale += 0.5 * math.log(rows / (rows - DIM - 1))


def started(family: Gaussian, gate: Callable[[int], Gate]) -> MixtureDensity:
    """A layer fitted once to the responsibilities that R starts from."""
    torch.manual_seed(0)
    layer = MixtureDensity(Dense(gate=gate, num_experts=EXPERTS), Linear(DIM, 1, EXPERTS), family).double()
    maximise(layer, X, Y, START, observe(layer, X, Y).density)
    return layer


def climbed(layer: MixtureDensity, iterations: int = 200) -> float:
    """The log-likelihood of all rows, after EM."""
    for _ in range(iterations):
        em_step(layer, X, Y)
    return -ROWS * observe(layer, X, Y).nll


def linear_gate(experts: int) -> Gate:
    return LinearGate(DIM, experts)


def coefficients(layer: MixtureDensity) -> np.ndarray:
    """Intercept and slopes of each expert: (E, 1 + D)."""
    bias, weight = layer.experts.bias, layer.experts.weight[..., 0]
    return torch.cat([bias, weight], 1).detach().numpy()


def test_the_fixture_is_what_the_script_reads():
    assert len(R["versions"]) == 3 and R["flexmix"]["iterations"] < 500  # it converged
    assert (ROWS, EXPERTS, DIM) == (240, 3, 2)
    assert torch.allclose(START.sum(1), torch.ones(ROWS, dtype=START.dtype))


def test_with_flexmixs_own_sigma_we_reach_flexmixs_fit():
    layer = started(CorrectedGaussian(1, EXPERTS), linear_gate)
    log_likelihood = climbed(layer)
    assert log_likelihood == pytest.approx(R["flexmix"]["log_likelihood"], abs=PER_ROW * ROWS)
    assert coefficients(layer) == pytest.approx(np.array(R["flexmix"]["coef"]), abs=1e-4)
    assert layer.family.scale[:, 0].detach().numpy() == pytest.approx(np.array(R["flexmix"]["sigma"]), abs=1e-4)
    gate = layer.router.gate.linear
    against_first = torch.cat([gate.bias[:, None] - gate.bias[0], gate.weight - gate.weight[0]], 1)
    assert against_first.detach().numpy() == pytest.approx(np.array(R["flexmix"]["gate"]), abs=1e-3)


def test_with_the_sigma_of_maximum_likelihood_we_lie_above_flexmix():
    log_likelihood = climbed(started(Gaussian(1, EXPERTS), linear_gate))
    assert log_likelihood > R["flexmix"]["log_likelihood"] + PER_ROW * ROWS  # the control: sigma is what differs
    assert log_likelihood < R["flexmix"]["log_likelihood"] + 0.01 * ROWS


def test_with_a_constant_gate_we_reach_mixtools_regression_mixture():
    layer = started(Gaussian(1, EXPERTS), lambda experts: ConstantGate(experts))
    log_likelihood = climbed(layer)
    assert log_likelihood == pytest.approx(R["regmixEM"]["log_likelihood"], abs=PER_ROW * ROWS)
    assert coefficients(layer) == pytest.approx(np.array(R["regmixEM"]["coef"]), abs=1e-4)
    assert log_likelihood < R["flexmix"]["log_likelihood"] - ROWS * 0.1  # the control: a gate is worth something


def test_two_gated_lines_end_no_lower_than_mixtools_hme():
    two = torch.stack([START[:, 0], 1 - START[:, 0]], 1)
    layer = MixtureDensity(
        Dense(gate=lambda e: LinearGate(1, e), num_experts=2), Linear(1, 1, 2), Gaussian(1, 2)
    ).double()
    x = X[:, :1]
    maximise(layer, x, Y, two, observe(layer, x, Y).density)
    for parameter in layer.router.gate.parameters():
        torch.nn.init.zeros_(parameter)  # hmeEM begins with even odds
    start = -ROWS * observe(layer, x, Y).nll
    for _ in range(400):
        em_step(layer, x, Y)
    log_likelihood = -ROWS * observe(layer, x, Y).nll
    # mixtools' gate steps divide by the variance p (1 - p) where Newton's multiply: too short, so it stops before the top
    assert R["hmeEM"]["log_likelihood"] - 1e-6 <= log_likelihood < R["hmeEM"]["log_likelihood"] + 0.2
    assert start < R["hmeEM"]["log_likelihood"] - 10  # the control: there was a way to go
    assert coefficients(layer) == pytest.approx(np.array(R["hmeEM"]["coef"]), abs=2e-2)
    odds = layer.router.gate.linear
    gate = torch.cat([odds.bias[:1] - odds.bias[1:], (odds.weight[0] - odds.weight[1])])
    assert gate.detach().numpy() == pytest.approx(np.array(R["hmeEM"]["gate"]), abs=0.2)


def test_a_direct_optimiser_from_the_same_start_reaches_the_same_likelihood():
    layer, direct = (started(Gaussian(1, EXPERTS), linear_gate) for _ in range(2))
    parameters = list(direct.parameters())

    def nll(vector: np.ndarray) -> tuple[float, np.ndarray]:
        """The mean of -log p(y | x) at these parameters, written out, and its slope."""
        vector_to_parameters(torch.from_numpy(vector), parameters)
        mean = X @ direct.experts.weight[..., 0].T + direct.experts.bias[:, 0]
        log_scale = direct.family.log_scale[:, 0]
        density = -0.5 * ((Y - mean) / log_scale.exp()).square() - log_scale - 0.5 * math.log(2 * math.pi)
        loss = -(direct.router.gate(X).log_softmax(-1) + density).logsumexp(-1).mean()
        return loss.item(), parameters_to_vector(torch.autograd.grad(loss, parameters)).numpy()

    start = parameters_to_vector(parameters).detach().numpy().copy()
    found = minimize(nll, start, jac=True, method="BFGS", options={"gtol": 1e-9, "maxiter": 2000})
    assert nll(start)[0] > found.fun + 0.05  # the control: there was a way to go
    assert climbed(layer) / ROWS == pytest.approx(-found.fun, abs=PER_ROW)
