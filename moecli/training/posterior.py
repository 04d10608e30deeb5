"""The posterior of a mixture of linear experts by variational Bayes, and its bound on the log-evidence.

The model, for targets y (N, Y), what experts read phi (N, F) and what the gate reads u (N, G):

    y_ny | z_n = e  ~  N(w_ey phi_n, 1 / tau_ey)         tau_ey    ~  Gamma(a0, b0)
    w_ey            ~  N(0, (tau_ey diag alpha_ey)^-1)   alpha_eyf ~  Gamma(c0, d0)
    p(z_n = e)      =  softmax(v u_n)_e                  lambda_g  ~  Gamma(c0, d0)
    v_.g            ~  N(0, P / lambda_g)                P = I - 1 1^T / E, so that the v_eg sum to zero over e

q factorises into q(z) q(w, tau) q(alpha) q(v) q(lambda): Baldacchino et al. (2016) with weights and noise
kept together (Drugowitsch, 2013).  The softmax has no conjugate prior; instead of Bishop and Svensen's (2003)
sigmoids in a tree it takes Boehning's (1992) bound, whose curvature P / 2 is the same for every row: all
E - 1 free logits share one covariance, whatever the data, and the best mean is that of a logistic regression,
found by Newton's method.  Rows that count w times enter every sum w times.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

GATE_STEPS = 3  # of Newton's method in one iteration
HALVINGS = 30  # of a step that does not climb
LOG_2PI = math.log(2 * math.pi)


@dataclass(frozen=True)
class Prior:
    """Gamma(shape, rate) of the noise precisions (a0, b0) and of the relevances (c0, d0), as Drugowitsch (2013).

    They suppose targets of about unit spread.  Vaguer ones make each weight dearer, and favour fewer experts.
    """

    a0: float = 1e-2
    b0: float = 1e-4
    c0: float = 1e-2
    d0: float = 1e-4


@dataclass(frozen=True)
class Data:
    """Rows, all float64; ``weight`` (N,) says how many rows each one stands for."""

    phi: Tensor  # (N, F)
    u: Tensor  # (N, G)
    y: Tensor  # (N, Y)
    weight: Tensor | None = None

    def weighed(self, table: Tensor) -> Tensor:  # (N, ...) -> (N, ...)
        return table if self.weight is None else self.weight.view(-1, *[1] * (table.ndim - 1)) * table

    @cached_property
    def gram(self) -> Tensor:
        """Of what the gate reads: (G, G)."""
        return self.u.mT @ self.weighed(self.u)


@dataclass(frozen=True)
class Gamma:
    """A gamma distribution for each entry."""

    shape: Tensor
    rate: Tensor

    @property
    def mean(self) -> Tensor:
        return self.shape / self.rate

    @property
    def mean_log(self) -> Tensor:
        return self.shape.digamma() - self.rate.log()

    def divergence(self, shape: float, rate: float) -> Tensor:
        """KL(self || Gamma(shape, rate)), summed."""
        a, b = self.shape, self.rate
        value = (a - shape) * a.digamma() - a.lgamma() + shape * (b / rate).log() + a * (rate - b) / b
        return (value + math.lgamma(shape)).sum()


@dataclass(frozen=True)
class Posterior:
    """q, for the E experts that are left."""

    expert: Tensor  # (E,) int64 which of the layer's experts each one is
    weight: Tensor  # (E, Y, F) mean of w
    spread: Tensor  # (E, Y, F, F) covariance of w, times tau
    noise: Gamma  # (E, Y) tau
    relevance: Gamma  # (E, Y, F) alpha
    gate: Tensor  # (E, G) mean of v, centred
    gate_spread: Tensor  # (G, G) covariance of each of its E - 1 free directions
    gate_relevance: Gamma  # (G,) lambda

    def without(self, place: int) -> Posterior:
        """The same for all experts but one; its rows go to whoever explains them next best."""
        kept = torch.arange(len(self.expert)) != place
        gate = self.gate[kept]
        few = {name: getattr(self, name)[kept] for name in ("expert", "weight", "spread")}
        noise, relevance = (Gamma(g.shape[kept], g.rate[kept]) for g in (self.noise, self.relevance))
        return replace(self, **few, noise=noise, relevance=relevance, gate=gate - gate.mean(0))

    def tensors(self) -> dict[str, Tensor]:
        """All of it by name, for a checkpoint."""
        named: dict[str, Tensor] = {}
        for name in (field.name for field in fields(self)):
            value = getattr(self, name)
            pieces = {f"{name}.shape": value.shape, f"{name}.rate": value.rate} if isinstance(value, Gamma) else {}
            named |= pieces or {name: value}
        return named

    @classmethod
    def of(cls, tensors: dict[str, Tensor]) -> Posterior:
        """What ``tensors`` gave."""
        made: dict[str, Any] = {name: value.clone() for name, value in tensors.items() if "." not in name}
        for name in ("noise", "relevance", "gate_relevance"):
            made[name] = Gamma(tensors[f"{name}.shape"].clone(), tensors[f"{name}.rate"].clone())
        return cls(**made)


def begin(data: Data, resp: Tensor, prior: Prior) -> Posterior:
    """The first posterior, from responsibilities (N, E)."""
    e, y, f, g = resp.shape[1], data.y.shape[1], data.phi.shape[1], data.u.shape[1]
    one = data.y.new_ones
    flat = Posterior(
        torch.arange(e),
        one(e, y, f),
        torch.eye(f).to(data.y).expand(e, y, f, f),
        Gamma(one(e, y), one(e, y)),
        Gamma(one(e, y, f), one(e, y, f)),
        0 * one(e, g),
        torch.eye(g).to(data.y),
        Gamma(one(g), one(g)),
    )
    return update(flat, data, resp, prior)


def update(q: Posterior, data: Data, resp: Tensor, prior: Prior) -> Posterior:
    """Each factor in turn to the top of the bound, the others and resp (N, E) fixed."""
    resp = data.weighed(resp)
    q = _relevance(_experts(q, data, resp, prior), prior)
    if len(q.expert) == 1:  # no gate: its factors are the prior's
        empty = torch.full_like(q.gate_relevance.rate, prior.d0)
        return replace(q, gate=0 * q.gate, gate_relevance=Gamma(0 * empty + prior.c0, empty))
    return _gate_relevance(_gate(q, data, resp), prior)


def _experts(q: Posterior, data: Data, resp: Tensor, prior: Prior) -> Posterior:
    """Bayesian linear regressions on weighted rows."""
    gram = torch.stack([data.phi.mT @ (r[:, None] * data.phi) for r in resp.unbind(1)])  # (E, F, F)
    cross = torch.einsum("ne,nf,ny->eyf", resp, data.phi, data.y)
    alpha = q.relevance.mean
    factor = torch.linalg.cholesky(gram[:, None] + torch.diag_embed(alpha))  # (E, Y, F, F)
    weight, spread = torch.cholesky_solve(cross[..., None], factor)[..., 0], torch.cholesky_inverse(factor)
    error = data.y[:, None] - torch.einsum("nf,eyf->ney", data.phi, weight)
    square = torch.einsum("ne,ney->ey", resp, error.square()) + (alpha * weight.square()).sum(-1)
    shape = prior.a0 + 0.5 * resp.sum(0)[:, None].expand_as(square)
    return replace(q, weight=weight, spread=spread, noise=Gamma(shape, prior.b0 + 0.5 * square))


def _relevance(q: Posterior, prior: Prior) -> Posterior:
    """Automatic relevance determination: a weight near zero is held there."""
    rate = prior.d0 + 0.5 * _second_moment(q)
    return replace(q, relevance=Gamma(torch.full_like(rate, prior.c0 + 0.5), rate))


def _second_moment(q: Posterior) -> Tensor:
    """E[tau w^2]: (E, Y, F)."""
    return q.noise.mean[..., None] * q.weight.square() + q.spread.diagonal(dim1=-2, dim2=-1)


def _gate(q: Posterior, data: Data, resp: Tensor) -> Posterior:
    """The mean by Newton's method, the covariance from Boehning's curvature: half the Gram matrix."""
    ridge, v = q.gate_relevance.mean, q.gate
    value = _gate_value(v, data, resp, ridge)
    for _ in range(GATE_STEPS):
        step = _newton(v, data, resp, ridge)
        for halving in range(HALVINGS):
            tried = v + step * 0.5**halving
            risen = _gate_value(tried, data, resp, ridge)
            if risen > value:
                v, value = tried - tried.mean(0), risen
                break
        else:
            break
    spread = torch.cholesky_inverse(torch.linalg.cholesky(0.5 * data.gram + torch.diag(ridge)))
    return replace(q, gate=v, gate_spread=spread)


def _gate_value(v: Tensor, data: Data, resp: Tensor, ridge: Tensor) -> float:
    """The part of the bound that the mean v (E, G) has a say in."""
    return float((resp * (data.u @ v.mT).log_softmax(-1)).sum() - 0.5 * (ridge * v.square()).sum())


def _newton(v: Tensor, data: Data, resp: Tensor, ridge: Tensor) -> Tensor:
    """Newton's step on ``_gate_value``: (E, G), centred because the slope is."""
    (e, g), p = v.shape, (data.u @ v.mT).softmax(-1)  # (N, E)
    slope = (resp - data.weighed(p)).mT @ data.u - ridge * v
    each = (p[..., None] * data.u[:, None]).flatten(1)  # (N, E G)
    curvature = torch.block_diag(*(data.u.mT @ (data.weighed(c)[:, None] * data.u) for c in p.unbind(1)))
    curvature = curvature - each.mT @ data.weighed(each) + torch.diag(ridge.repeat(e))
    return torch.linalg.solve(curvature, slope.flatten()).view(e, g)


def _gate_relevance(q: Posterior, prior: Prior) -> Posterior:
    free = len(q.expert) - 1
    rate = prior.d0 + 0.5 * (q.gate.square().sum(0) + free * q.gate_spread.diagonal())
    return replace(q, gate_relevance=Gamma(torch.full_like(rate, prior.c0 + 0.5 * free), rate))


def joint(q: Posterior, data: Data) -> Tensor:
    """E_q[log p(z = e, y)] with the softmax at its mean: (N, E).  q(z) is its softmax."""
    error = data.y[:, None] - torch.einsum("nf,eyf->ney", data.phi, q.weight)
    unsure = torch.einsum("nf,eyfg,ng->ney", data.phi, q.spread, data.phi)
    density = 0.5 * (q.noise.mean_log - LOG_2PI) - 0.5 * (q.noise.mean * error.square() + unsure)
    return density.sum(-1) + (data.u @ q.gate.mT).log_softmax(-1)


def responsibilities(q: Posterior, data: Data) -> Tensor:
    """q(z): (N, E)."""
    return joint(q, data).softmax(-1)


def bound(q: Posterior, data: Data, prior: Prior) -> float:
    """The evidence lower bound on log p(y | x), in nats, with q(z) as ``responsibilities`` has it.

    sum_n log sum_e exp joint_ne, less Boehning's gap (E - 1) / 4 sum_n u_n C u_n, less the divergences of
    experts and gate from their priors.  The E! orders of the experts are not counted.
    """
    likelihood = data.weighed(joint(q, data).logsumexp(-1)).sum()
    return float(likelihood - _experts_divergence(q, prior) - (_gate_cost(q, data, prior) if len(q.expert) > 1 else 0))


def _experts_divergence(q: Posterior, prior: Prior) -> Tensor:
    """KL(q(w, tau, alpha) || prior); the terms in E[log tau] of the weights cancel."""
    weights = (q.relevance.mean * _second_moment(q) - 1 - q.relevance.mean_log).sum() - q.spread.logdet().sum()
    return 0.5 * weights + q.noise.divergence(prior.a0, prior.b0) + q.relevance.divergence(prior.c0, prior.d0)


def _gate_cost(q: Posterior, data: Data, prior: Prior) -> Tensor:
    """Boehning's gap, and KL(q(v, lambda) || prior)."""
    free, alpha = len(q.expert) - 1, q.gate_relevance
    gap = 0.25 * free * (data.gram * q.gate_spread).sum()
    square = q.gate.square().sum(0) + free * q.gate_spread.diagonal()
    weights = (alpha.mean * square - free * (1 + alpha.mean_log)).sum() - free * q.gate_spread.logdet()
    return gap + 0.5 * weights + alpha.divergence(prior.c0, prior.d0)
