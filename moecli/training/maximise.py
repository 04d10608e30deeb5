"""The M-step: experts, family and gate, each fitted to responsibilities; none may make its part worse."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from moecli.families.family import Statistics
from moecli.kernels.algebra import descend
from moecli.mixture import MixtureDensity
from moecli.training.evidence import locations, pieces

HALVINGS = 30  # of a step that fell, before it is taken back
ROUNDING = 1e-12  # of the sum of absolute values: a smaller fall is none


@torch.no_grad()
def maximise(layer: MixtureDensity, x: Tensor, y: Tensor, resp: Tensor, density: Tensor, inner: int = 10) -> None:
    """In place: x (N, *item), y (N, ...), responsibilities (N, E), and log p_e(y | x) (N, E) as it is now.

    ``inner`` counts the L-BFGS steps of experts that have no closed form.
    """
    if "expert fit" in layer.experts.gives:
        statistics = _least_squares(layer, x, y, resp, density)
    else:
        climb(layer, x, y, resp, inner)
        _, statistics = _appraise(layer, x, y, resp)
    layer.family.adopt(statistics)
    gate: Any = getattr(layer.router, "gate", None)
    if gate is not None:  # a twin has one expert and no gate
        gate.fit(x, resp, gate.inner)


def _least_squares(layer: MixtureDensity, x: Tensor, y: Tensor, resp: Tensor, density: Tensor) -> Statistics:
    """Step to the working response; an expert whose part of the likelihood fell goes back by halves."""
    part = torch.where(resp > 0, resp * density, 0.0)
    before = part.sum(0) - ROUNDING * part.abs().sum(0)  # (E,)
    old = [p.clone() for p in layer.experts.parameters()]
    layer.experts.solve(add(working_equations(layer, *part) for part in pieces(layer, x, y, resp)))
    for halving in range(HALVINGS + 1):
        after, statistics = _appraise(layer, x, y, resp)
        fell = ~(after >= before)  # (E,), also where it is not a number
        if halving == HALVINGS or not bool(fell.any()):
            break
        share = 0.5 if halving < HALVINGS - 1 else 0.0
        for parameter, start in zip(layer.experts.parameters(), old, strict=True):
            back = torch.where(parameter.isfinite(), start + share * (parameter - start), start)
            parameter.copy_(torch.where(fell.view(-1, *[1] * (parameter.ndim - 1)), back, parameter))
    return statistics


def working_equations(layer: MixtureDensity, x: Tensor, y: Tensor, resp: Tensor) -> Any:
    """The experts' normal equations for these rows under the family's working response."""
    z, w = layer.family.working(locations(layer, x), y)
    return layer.experts.normal(x, z, resp[..., None] * w)


def _appraise(layer: MixtureDensity, x: Tensor, y: Tensor, resp: Tensor) -> tuple[Tensor, Statistics]:
    """Each expert's sum of resp log p_e(y | x), (E,), and the family's statistics."""
    found = []
    for xs, ys, share in pieces(layer, x, y, resp):
        loc = locations(layer, xs)
        value = (share * torch.where(share > 0, layer.family.log_prob(loc, ys), 0.0)).sum(0)
        found.append({"value": value, **layer.family.statistics(loc, ys, share)})
    total = {name: add(piece[name] for piece in found) for name in found[0]}
    return total.pop("value"), total


def add(parts: Any) -> Any:
    """The sum of at least one thing that can be added."""
    first, *rest = parts
    for part in rest:
        first = first + part
    return first


def climb(layer: MixtureDensity, x: Tensor, y: Tensor, resp: Tensor, steps: int) -> None:
    """Some steps of L-BFGS on the experts' part of the likelihood, undone if it did not rise."""
    rows = resp.sum().clamp_min(1e-12)

    def loss(use: Callable[[Tensor], object]) -> float:
        """The mean of -log p, piece by piece."""
        total = 0.0
        for xs, ys, share in pieces(layer, x, y, resp):
            part = -(share * torch.where(share > 0, layer.family.log_prob(locations(layer, xs), ys), 0.0)).sum() / rows
            use(part)
            total += part.item()
        return total

    descend([p for p in layer.experts.parameters() if p.requires_grad], loss, steps)
    layer.zero_grad()
