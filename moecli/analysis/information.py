"""A fitted mixture as a statistical model: rows, identified parameters, likelihood and observed information.

Everything is float64.  Of parameters that the likelihood cannot tell apart (a gate's logits up to a common
shift, class logits likewise) the first expert's or class's stand at zero: they are the reference.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.func import functional_call

from moecli.experts.columns import Columns as ExpertColumns
from moecli.experts.constant import Constant as ConstantExperts
from moecli.experts.experts import Experts
from moecli.experts.linear import Linear as LinearExperts
from moecli.families.categorical import Categorical
from moecli.families.gaussian import Gaussian
from moecli.gates.columns import Columns as GateColumns
from moecli.gates.constant import Constant as ConstantGate
from moecli.gates.gate import Gate
from moecli.gates.linear import Linear as LinearGate
from moecli.gates.uniform import Uniform
from moecli.mixture import MixtureDensity
from moecli.routers.dense import Dense
from moecli.routing import Tokens
from moecli.training.evidence import pieces

FLAT = 1e-9  # of the information scaled to a unit diagonal: a smaller curvature is none


@dataclass(frozen=True)
class Rows:
    """What a likelihood is of: x (N, D), y (N, Y) or (N,) classes, and how often each row counts, (N,)."""

    x: Tensor
    y: Tensor
    weight: Tensor

    @classmethod
    def of(cls, x: Tensor, y: Tensor, weight: Tensor | None = None) -> Rows:
        """In float64; without weights each row counts once."""
        y = y.double() if y.is_floating_point() else y
        return cls(x.double(), y, torch.ones(len(x), dtype=torch.float64) if weight is None else weight.double())

    def take(self, index: Tensor) -> Rows:
        return Rows(self.x[index], self.y[index], self.weight[index])

    def weighed(self, weight: Tensor) -> Rows:
        return Rows(self.x, self.y, weight)

    @property
    def count(self) -> float:
        return float(self.weight.sum())


def gate_of(layer: MixtureDensity) -> tuple[Gate, list[int] | None]:
    """The gate itself, and which features it reads (None: all)."""
    gate: Any = layer.router.gate
    return (gate.gate, gate.columns) if isinstance(gate, GateColumns) else (gate, None)


def experts_of(layer: MixtureDensity) -> tuple[Experts, list[int] | None]:
    """The experts themselves, and which features they read (None: all)."""
    experts = layer.experts
    return (experts.experts, experts.columns) if isinstance(experts, ExpertColumns) else (experts, None)


def is_classical(layer: Any) -> bool:
    """Whether it is a density whose every parameter has a meaning of its own: linear or constant experts, and a
    linear, constant or uniform gate."""
    if not isinstance(layer, MixtureDensity) or type(layer.router) is not Dense:
        return False
    known_gate = isinstance(gate_of(layer)[0], LinearGate | ConstantGate | Uniform)
    return known_gate and isinstance(experts_of(layer)[0], LinearExperts | ConstantExperts)


class Model:
    """A classical layer's likelihood as a function of its identified parameters, ``theta`` (P,)."""

    def __init__(self, layer: MixtureDensity):
        self.layer = pinned(layer)
        self.values = {name: p.detach() for name, p in self.layer.named_parameters()}
        self.free = identified(self.layer)

    @cached_property
    def theta(self) -> Tensor:
        parts = [value[self.free[name]] for name, value in self.values.items()]
        return torch.cat(parts) if parts else torch.zeros(0, dtype=torch.float64)

    def parameters(self, theta: Tensor) -> dict[str, Tensor]:
        """All parameters of the layer by name, with the identified ones at ``theta``."""
        pieces = theta.split([int(self.free[name].sum()) for name in self.values])
        return {
            name: value.masked_scatter(self.free[name], piece)
            for (name, value), piece in zip(self.values.items(), pieces, strict=True)
        }

    def log_likelihood(self, theta: Tensor, x: Tensor, y: Tensor, weight: Tensor) -> Tensor:
        """Sum over rows of weight log p(y | x)."""
        mixture = functional_call(self.layer, self.parameters(theta), (Tokens.items(x),))
        return (weight * mixture.log_prob(y)).sum()

    def derivatives(self, rows: Rows) -> tuple[Tensor, Tensor]:
        """Of the log-likelihood at ``theta``: gradient (P,), and minus the Hessian (P, P), the observed information."""
        size = len(self.theta)
        gradient, information = torch.zeros(size, dtype=torch.float64), torch.zeros(size, size, dtype=torch.float64)
        for part in pieces(self.layer, rows.x, rows.y, rows.weight):
            theta = self.theta.clone().requires_grad_()
            (slope,) = torch.autograd.grad(self.log_likelihood(theta, *part), theta, create_graph=True)
            gradient += slope.detach()
            for i in range(size):
                (row,) = torch.autograd.grad(slope[i], theta, retain_graph=True)
                information[i] -= row
        return gradient, (information + information.T) / 2


@torch.no_grad()
def pinned(layer: MixtureDensity) -> MixtureDensity:
    """The same density, in float64, with the first expert of the gate and the first class at zero."""
    layer = copy.deepcopy(layer).double().eval()
    gate, experts = gate_of(layer)[0], experts_of(layer)[0]
    for parameter in gate.parameters():
        parameter.sub_(parameter[0].clone())
    if isinstance(layer.family, Categorical):
        for parameter in experts.parameters():
            parameter.sub_(parameter[..., :1].clone())
    return layer


def identified(layer: MixtureDensity) -> dict[str, Tensor]:
    """Parameter name -> bool mask of the entries that the likelihood can tell apart, in a pinned layer."""
    gate, experts, family = gate_of(layer)[0], experts_of(layer)[0], layer.family
    of_gate, of_experts = ({id(p) for p in part.parameters()} for part in (gate, experts))
    masks = {}
    for name, parameter in layer.named_parameters():
        mask = torch.ones_like(parameter, dtype=torch.bool)
        if id(parameter) in of_gate:
            mask[0] = False
        elif id(parameter) in of_experts and isinstance(family, Categorical):
            mask[..., 0] = False
        elif isinstance(family, Gaussian) and parameter is family.below:
            mask = mask.tril(-1)
        masks[name] = mask
    return masks


@dataclass(frozen=True)
class Covariance:
    """Of the maximum-likelihood estimates: the inverse of the observed information, where that has one."""

    root: Tensor  # (P, K): covariance = root root^T over the K directions that have curvature
    flat: Tensor  # (P, F): directions along which the likelihood is level
    rising: int  # directions along which it rises: the fit is no maximum
    behind: float  # nats that a Newton step would still gain

    @classmethod
    def of(cls, gradient: Tensor, information: Tensor) -> Covariance:
        unit = information.diagonal().abs().sqrt()
        unit = torch.where(unit > 0, unit, 1.0)
        curvature, axes = torch.linalg.eigh(information / unit[:, None] / unit)
        axes = axes / unit[:, None]
        steep, none = curvature > FLAT, curvature.abs() <= FLAT
        root = axes[:, steep] / curvature[steep].sqrt()
        behind = 0.5 * float((root.T @ gradient).square().sum())
        return cls(root, axes[:, none], int((curvature < -FLAT).sum()), behind)

    def deviations(self, jacobian: Tensor) -> Tensor:
        """Standard errors of quantities with this Jacobian (M, P): (M,), NaN where the rows do not tell."""
        if self.rising:
            return jacobian.new_full((len(jacobian),), torch.nan)
        size = jacobian.norm(dim=-1).clamp_min(torch.finfo(jacobian.dtype).tiny)
        along = (jacobian @ (self.flat / self.flat.norm(dim=0))).norm(dim=-1) / size
        return (jacobian @ self.root).norm(dim=-1).where(along < 1e-6, torch.nan)
