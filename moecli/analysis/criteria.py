"""How many experts: likelihood, AIC, BIC and ICL of a fit, cross-validated likelihood, and a bootstrap test.

Log-likelihoods are natural, of the targets in their own units, over all rows (each by its weight).
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from moecli.analysis.information import Model, Rows
from moecli.errors import NumericalFailure
from moecli.mixture import MixtureDensity
from moecli.routing import Tokens
from moecli.tasks.task import generator
from moecli.training.em import Ascent, Em, scattered
from moecli.training.evidence import observe
from moecli.training.maximise import maximise

Make = Callable[[int], MixtureDensity]  # number of experts -> a fresh layer


@dataclass(frozen=True)
class Criteria:
    """Of one fit on the rows that it was fitted to; the smaller AIC, BIC or ICL, the better."""

    log_likelihood: float
    parameters: int  # that the likelihood can tell apart
    rows: float  # the sum of weights
    overlap: float  # minus the sum of log max_e p(e | x, y): zero where every row is certain of its expert

    @property
    def aic(self) -> float:
        """2 p - 2 log L (Akaike, 1974)."""
        return 2 * self.parameters - 2 * self.log_likelihood

    @property
    def bic(self) -> float:
        """p log n - 2 log L (Schwarz, 1978)."""
        return self.parameters * math.log(self.rows) - 2 * self.log_likelihood

    @property
    def icl(self) -> float:
        """BIC with the likelihood of each row and its likeliest expert (Biernacki, Celeux & Govaert, 2000)."""
        return self.bic + 2 * self.overlap

    def numbers(self) -> dict[str, float]:
        """As ``summary.json`` has them."""
        return {
            "loglik": self.log_likelihood,
            "aic": self.aic,
            "bic": self.bic,
            "icl": self.icl,
            "identified": self.parameters,
            "rows": self.rows,
        }


def criteria(layer: MixtureDensity, rows: Rows, log_scale: float = 0.0) -> Criteria:
    """Of a classical layer on its training rows; ``log_scale`` is the sum of log units of the targets."""
    found = observe(layer, rows.x, rows.y)
    likelihood = float(rows.weight @ found.log_prob) - rows.count * log_scale
    certain = (found.joint - found.log_prob[:, None]).amax(-1)
    return Criteria(likelihood, len(Model(layer).theta), rows.count, float(-(rows.weight @ certain)))


def fit(layer: MixtureDensity, rows: Rows, plan: Em, seed: int = 0) -> tuple[MixtureDensity, float]:
    """(the best of ``plan.restarts`` climbs from copies of ``layer``, its log-likelihood in units of the fit).

    The first climb begins where the layer stands, the others from random cells of rows.  Raises
    NumericalFailure where all of them break down.
    """
    climbed = [climb(start, rows, plan, seed) for start in _starts(layer, rows, plan, seed)]
    fitted = [found for found in climbed if found is not None]
    if not fitted:
        raise NumericalFailure(
            f"{layer.experts.num_experts} experts: no start of EM led to a finite likelihood. Use fewer experts, or raise "
            "family.min_scale"
        )
    best = max(fitted, key=lambda found: found[1])
    return best[0], best[1] * rows.count


def climb(layer: MixtureDensity, rows: Rows, plan: Em, seed: int = 0) -> tuple[MixtureDensity, float] | None:
    """(where EM leads from a copy of the layer, the mean over rows of what it raises); None where it breaks down."""
    ascent = Ascent(plan, copy.deepcopy(layer), rows.x, rows.y, seed, rows.weight)
    try:
        for number in range(plan.steps):
            if ascent.iterate(number)[1]:
                break
    except NumericalFailure:
        return None
    return ascent.layer, ascent.reached


@torch.no_grad()
def _starts(layer: MixtureDensity, rows: Rows, plan: Em, seed: int) -> Iterator[MixtureDensity]:
    yield layer
    for number in range(1, plan.restarts):
        start = copy.deepcopy(layer)
        cells = scattered(rows.x, rows.y, layer.experts.num_experts, generator(seed, number, 1))
        density = observe(start, rows.x, rows.y).density
        maximise(start, rows.x, rows.y, cells * rows.weight[:, None], density, plan.inner)
        yield start


@dataclass(frozen=True)
class Held:
    """Log-likelihood of rows that a fit did not see, in nats a row: mean, and its standard error over folds."""

    mean: float
    error: float


def cross_validated(
    make: Make, num_experts: int, rows: Rows, group: Tensor, plan: Em, folds: int = 5, log_scale: float = 0.0
) -> Held:
    """Smyth (2000): each fold's log-likelihood under a fit to the others; rows of one ``group`` (N,) share a fold."""
    names, number = group.unique(return_inverse=True)
    fold = (torch.randperm(len(names), generator=generator(0, 2)) % folds)[number]
    values = []
    for left_out in range(folds):
        layer, _ = fit(make(num_experts), rows.take((fold != left_out).nonzero()[:, 0]), plan)
        test = rows.take((fold == left_out).nonzero()[:, 0])
        values.append(float(test.weight @ observe(layer, test.x, test.y).log_prob) / test.count - log_scale)
    each = torch.tensor(values, dtype=torch.float64)
    return Held(float(each.mean()), float(each.std()) / math.sqrt(folds))


def likelihood_ratio_p(
    make: Make, smaller: MixtureDensity, larger: MixtureDensity, rows: Rows, plan: Em, draws: int = 19
) -> float:
    """p of E experts against E + 1 (McLachlan, 1987): where the observed 2 log L ratio stands among ``draws`` ratios
    of data simulated from the fit of E and fitted by both, (1 + number as large) / (1 + draws)."""
    observed = _gain(smaller, larger, rows)
    larger_size, as_large = larger.experts.num_experts, 0
    for draw in range(draws):
        drawn = Rows(rows.x, simulate(smaller, rows.x, seed=draw), rows.weight)
        null, _ = fit(smaller, drawn, plan, seed=draw)
        other, _ = fit(make(larger_size), drawn, plan, seed=draw)
        as_large += _gain(null, other, drawn) >= observed
    return (1 + as_large) / (1 + draws)


def _gain(smaller: MixtureDensity, larger: MixtureDensity, rows: Rows) -> float:
    below, above = (float(rows.weight @ observe(layer, rows.x, rows.y).log_prob) for layer in (smaller, larger))
    return 2 * (above - below)


@torch.no_grad()
def simulate(layer: MixtureDensity, x: Tensor, seed: int) -> Tensor:
    """Targets for the rows x (N, D) drawn from the mixture: an expert by the gate, then its distribution."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        mixture = layer(Tokens.items(x))
        drawn = mixture.components.sample()  # (E N, ...)
        expert = torch.multinomial(mixture.routing.probs, 1)[:, 0]
    return drawn.view(-1, len(x), *drawn.shape[1:])[expert, torch.arange(len(x))]


def resampled(
    layer: MixtureDensity, rows: Rows, group: Tensor, plan: Em, draws: int
) -> Iterator[tuple[MixtureDensity, Rows]]:
    """Refits from the fitted layer to rows drawn with replacement, whole groups (N,) at a time: (fit, its rows)."""
    names, number = group.unique(return_inverse=True)
    for draw in range(draws):
        chosen = torch.randint(len(names), (len(names),), generator=generator(draw, 3))
        times = chosen.bincount(minlength=len(names))[number]
        drawn = rows.weighed(rows.weight * times)
        found = climb(layer, drawn, plan)
        if found is not None:
            yield matched(layer, found[0], rows), drawn


@torch.no_grad()
def matched(layer: MixtureDensity, other: MixtureDensity, rows: Rows) -> MixtureDensity:
    """``other`` with its experts in the order in which they take over most of ``layer``'s responsibilities."""
    from scipy.optimize import linear_sum_assignment

    from moecli.training.order import reordered

    ours, theirs = (observe(one, rows.x, rows.y).joint.softmax(-1) for one in (layer, other))
    _, order = linear_sum_assignment((ours.T @ theirs).numpy(), maximize=True)
    return reordered(other, torch.as_tensor(order), rows.x)
