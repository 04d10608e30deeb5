"""Tables of a classical mixture's parameters: estimates, standard errors, z and 95 % intervals.

Everything is in the units of the data: standardisation is undone exactly, because every quantity is a function
of the fitted parameters and its standard error follows by the delta method from the observed information
(McLachlan & Peel, 2000, section 2.15).  ``bootstrapped`` takes them from refits to resampled rows instead.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from moecli.analysis.information import Covariance, Model, Rows, experts_of, gate_of
from moecli.families.categorical import Categorical
from moecli.families.gamma import Gamma
from moecli.families.gaussian import Gaussian
from moecli.families.laplace import Laplace
from moecli.families.student_t import StudentT
from moecli.mixture import MixtureDensity

Z95 = 1.959963984540054  # the standard normal's 97.5 % quantile
BEHIND = 0.01  # nats below the maximum nearby: less changes no digit that a table shows
SPREADS: dict[type, tuple[str, ...]] = {
    Gaussian: ("scale",),
    Laplace: ("scale",),
    StudentT: ("scale", "df"),
    Gamma: ("shape",),
}
# How an interval of each kind is made: on a scale without bounds, and back.
SCALES: dict[str, tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]] = {
    "coefficient": (lambda v: v, lambda u: u),
    "positive": (torch.log, torch.exp),
    "share": (torch.logit, torch.sigmoid),
    "correlation": (torch.atanh, torch.tanh),
}


@dataclass(frozen=True)
class Units:
    """From the features and targets of a fit to the user's: x / factor + x_center, y * y_scale + y_center."""

    features: Sequence[str]
    targets: Sequence[str]
    x_center: Tensor  # (D,)
    x_factor: Tensor  # (D,) zero for a constant column
    y_scale: Tensor  # (Y,)
    y_center: Tensor  # (Y,)

    @classmethod
    def plain(cls, features: Sequence[str], targets: Sequence[str]) -> Units:
        """Those of data that were fitted as they are."""
        zero, one = torch.zeros(len(features)).double(), torch.ones(len(features)).double()
        return cls(features, targets, zero, one, torch.ones(len(targets)).double(), torch.zeros(len(targets)).double())


@dataclass(frozen=True)
class Label:
    """What one number of the tables is."""

    part: str  # experts, gate, dispersion or shares
    expert: int
    target: str  # empty where all targets or none are meant
    name: str
    kind: str  # a key of SCALES


@dataclass(frozen=True)
class Estimate:
    """One line of a table; deviation, z and interval are NaN where the data do not tell."""

    label: Label
    value: float
    deviation: float
    low: float
    high: float

    @property
    def z(self) -> float:
        """Estimate over standard error, for a coefficient that might be zero; else NaN."""
        return self.value / self.deviation if self.label.kind == "coefficient" and self.deviation > 0 else math.nan


@dataclass(frozen=True)
class Coefficients:
    """All lines, experts by falling share, and what a reader must know of them."""

    estimates: list[Estimate]
    notes: list[str]


def coefficients(layer: MixtureDensity, rows: Rows, units: Units) -> Coefficients:
    """Of a classical layer (``information.is_classical``) fitted to ``rows``."""
    model = Model(layer)
    reading, theta = Reading(model.layer, units, rows), model.theta
    covariance = Covariance.of(*model.derivatives(rows))

    def quantities(theta: Tensor) -> Tensor:
        parameters = {f"layer.{name}": value for name, value in model.parameters(theta).items()}
        return torch.stack([value for _, value in functional_call(reading, parameters, ())])

    labels = [label for label, _ in reading()]
    value = quantities(theta)
    jacobian = torch.autograd.functional.jacobian(quantities, theta).reshape(len(labels), len(theta))
    deviation = covariance.deviations(jacobian)
    estimates = [estimate(*line) for line in zip(labels, value.tolist(), deviation.tolist(), strict=True)]
    return Coefficients(_by_share(estimates), _notes(covariance, estimates))


def estimate(label: Label, value: float, deviation: float) -> Estimate:
    """With the normal interval on the kind's own unbounded scale."""
    to, back = SCALES[label.kind]
    at = torch.tensor(value, dtype=torch.float64, requires_grad=True)
    there = to(at)
    (slope,) = torch.autograd.grad(there, at)
    half = Z95 * deviation * abs(float(slope))
    low, high = (float(back(there.detach() + side * half)) for side in (-1, 1))
    return Estimate(label, value, deviation, low, high)


def bootstrapped(found: Coefficients, values: Tensor, labels: Sequence[Label]) -> Coefficients:
    """The same tables with deviations and intervals from ``values`` (B, M) of refits to resampled rows."""
    column = {label: values[:, i] for i, label in enumerate(labels)}
    estimates = []
    for line in found.estimates:
        drawn = column[line.label]
        low, high = drawn.quantile(torch.tensor([0.025, 0.975], dtype=drawn.dtype)).tolist()
        estimates.append(replace(line, deviation=float(drawn.std()), low=low, high=high))
    note = f"standard errors and percentile intervals from {len(values)} refits to resampled rows"
    return Coefficients(estimates, [note])


@torch.no_grad()
def quantities(layer: MixtureDensity, rows: Rows, units: Units) -> tuple[list[Label], Tensor]:
    """Labels and values (M,) of everything that the tables show, without standard errors."""
    lines = Reading(Model(layer).layer, units, rows)()
    return [label for label, _ in lines], torch.stack([value for _, value in lines])


def _notes(covariance: Covariance, estimates: Sequence[Estimate]) -> list[str]:
    if covariance.rising:
        return [
            f"the fit is at no maximum of the likelihood (it rises along {covariance.rising} directions: the Hessian is not "
            "positive definite), so there are no standard errors. Raise trainer.steps or trainer.restarts, or use fewer experts"
        ]
    notes = []
    if covariance.behind > BEHIND:
        notes.append(
            f"the fit stands about {covariance.behind:.2g} nats below the maximum nearby, and standard errors are those of a "
            "maximum. Lower trainer.tolerance and raise trainer.steps"
        )
    if covariance.flat.shape[1]:
        count = sum(math.isnan(line.deviation) for line in estimates)
        notes.append(
            f"the likelihood is level along {covariance.flat.shape[1]} directions (the Hessian is not positive definite): "
            f"{count} numbers have no standard error of their own. Look for collinear or constant columns and for bounds"
        )
    return notes


def _by_share(estimates: list[Estimate]) -> list[Estimate]:
    """Experts by falling share, each part in its own order."""
    share = {line.label.expert: line.value for line in estimates if line.label.part == "shares"}
    parts = list(dict.fromkeys(line.label.part for line in estimates))
    return sorted(
        estimates,
        key=lambda line: (parts.index(line.label.part), -share.get(line.label.expert, 1.0), line.label.expert),
    )


class Reading(nn.Module):
    """A pinned layer's parameters as the quantities that a table shows, in the user's units."""

    def __init__(self, layer: MixtureDensity, units: Units, rows: Rows):
        super().__init__()
        self.layer, self.units, self.rows = layer, units, rows

    def forward(self) -> list[tuple[Label, Tensor]]:
        return [*self._experts(), *self._gate(), *self._dispersion(), *self._shares()]

    def _experts(self) -> list[tuple[Label, Tensor]]:
        experts: Any
        experts, columns = experts_of(self.layer)
        units, is_class = self.units, isinstance(self.layer.family, Categorical)
        weight, bias = getattr(experts, "weight", None), experts.bias
        names, center, factor = self._columns(columns)
        names, intercept, slope = _affine(weight, bias, names, center, factor, units.y_scale)
        intercept = None if intercept is None else intercept + units.y_center
        return [
            (Label("experts", e, units.targets[y], name, "coefficient"), value)
            for e in range(experts.num_experts)
            for y in range(is_class, len(units.targets))
            for name, value in _lines(names, intercept, slope, (e, y))
        ]

    def _gate(self) -> list[tuple[Label, Tensor]]:
        gate: Any
        gate, columns = gate_of(self.layer)
        if not hasattr(gate, "linear"):
            return []
        weight, bias = gate.linear.weight[..., None], gate.linear.bias  # (E, D, 1), (E,)
        names, center, factor = self._columns(columns)
        one = torch.ones(1, dtype=weight.dtype)
        names, intercept, slope = _affine(weight, None if bias is None else bias[:, None], names, center, factor, one)
        return [
            (Label("gate", e, "", name, "coefficient"), value)
            for e in range(1, len(weight))
            for name, value in _lines(names, intercept, slope, (e, 0))
        ]

    def _dispersion(self) -> list[tuple[Label, Tensor]]:
        family, lines = self.layer.family, []
        if isinstance(family, Gaussian) and family.covariance == "fixed":
            return []
        for name in SPREADS.get(type(family), ()):
            value = getattr(family, name) * (self.units.y_scale if name == "scale" else 1.0)  # (E, Y)
            lines += [
                (Label("dispersion", e, target, name, "positive"), value[e, y])
                for e in range(len(value))
                for y, target in enumerate(self.units.targets)
            ]
        return lines + self._correlations()

    def _correlations(self) -> list[tuple[Label, Tensor]]:
        family: Any = self.layer.family
        if getattr(family, "below", None) is None:
            return []
        covariance = family.factor @ family.factor.mT  # (E, Y, Y)
        targets = self.units.targets
        return [
            (
                Label("dispersion", e, f"{targets[i]}, {targets[j]}", "correlation", "correlation"),
                covariance[e, i, j] / (covariance[e, i, i] * covariance[e, j, j]).sqrt(),
            )
            for e in range(len(covariance))
            for i in range(len(targets))
            for j in range(i + 1, len(targets))
        ]

    def _shares(self) -> list[tuple[Label, Tensor]]:
        """Of each expert: the mean of its gate's probability over the rows."""
        gate: Any = self.layer.router.gate
        probs = gate(self.rows.x).softmax(-1)  # (N, E)
        share = (self.rows.weight @ probs) / self.rows.count
        if len(share) == 1:
            return []
        return [(Label("shares", e, "", "share", "share"), share[e]) for e in range(len(share))]

    def _columns(self, columns: list[int] | None) -> tuple[list[str], Tensor, Tensor]:
        index = list(range(len(self.units.features))) if columns is None else columns
        names = [self.units.features[i] for i in index]
        return names, self.units.x_center[index], self.units.x_factor[index]


def _affine(
    weight: Tensor | None, bias: Tensor | None, names: list[str], center: Tensor, factor: Tensor, scale: Tensor
) -> tuple[list[str], Tensor | None, Tensor | None]:
    """(names, constants (E, Y) or None where there are none, slopes (E, D, Y)) of columns in the user's units."""
    if weight is None:
        return [], None if bias is None else bias * scale, None
    slope = weight * factor[:, None] * scale
    moved = -(slope * center[:, None]).sum(1)  # (E, Y)
    if bias is None:
        return names, moved if bool((center != 0).any()) else None, slope
    return names, bias * scale + moved, slope


def _lines(
    names: list[str], intercept: Tensor | None, slope: Tensor | None, at: tuple[int, int]
) -> list[tuple[str, Tensor]]:
    e, y = at
    first = [] if intercept is None else [("(constant)", intercept[e, y])]
    return first + ([] if slope is None else [(name, slope[e, d, y]) for d, name in enumerate(names)])
