"""The layer and the density: tokens -> routing -> dispatch -> experts -> combine, and the last line differs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributions import Distribution

from moecli.experts.experts import Experts
from moecli.families.family import Family
from moecli.plan import Dense, Groups, Plan
from moecli.routing import Claims, Router, Routing, Tokens


class MixtureOfExperts(nn.Module):
    """y = shared(x) + combine(experts(dispatch(x))): tokens (N, D) -> (N, Y), in the dtype of x."""

    def __init__(self, router: Router, experts: Experts, shared: Experts | None = None):
        super().__init__()
        self.router, self.experts, self.shared = router, experts, shared

    def forward(self, tokens: Tokens) -> tuple[Tensor, Routing]:
        routing = self.router(tokens)
        y = self.experts.blend(routing.plan, tokens.x)
        if self.shared is not None:
            y = y + self.shared.blend(together(self.shared, tokens.x), tokens.x)
        return y.to(tokens.x.dtype), routing

    def twin(self, flops: float) -> MixtureOfExperts:
        """One fresh expert that costs ``flops`` a token."""
        return MixtureOfExperts(Alone(), self.experts.twin(flops))


class Alone(Router):
    """One expert that serves every token: with it a mixture is the plain dense network."""

    own = Claims(trains_gate=False)
    gives = frozenset({"every edge"})

    def route(self, tokens: Tokens) -> Routing:
        one = tokens.x.new_zeros(len(tokens.x), 1)
        return Routing(Dense(one), one.exp())


def together(experts: Experts, x: Tensor) -> Plan:
    """All of these experts, each with weight one."""
    return Dense(x.new_zeros(len(x), experts.num_experts))


@dataclass(frozen=True)
class Mixture:
    """p(y | x) = sum_e p(e | x) p_e(y | x), over the experts that the plan kept."""

    routing: Routing  # its plan is dense or sparse: what claims a density
    components: Distribution  # batch (R,): one per row
    row_mean: Tensor  # (R, Y)
    log_marginal: Tensor  # (N,) log p(x) where the gate models x, else zero

    @property
    def mean(self) -> Tensor:  # (N, Y); class probabilities (N, C) for a categorical family
        return self.routing.plan.combine(self.row_mean)

    @property
    def variance(self) -> Tensor:
        """Of the mixture: mean of the variances plus variance of the means, (N, Y)."""
        plan = self.routing.plan
        return plan.combine(self.components.variance + (self.row_mean - plan.dispatch(self.mean)).square())

    def joint(self, y: Tensor) -> Tensor:
        """Log p(e | x) + log p_e(y | x): targets (N, ...) -> (N, E), -inf where there is no edge."""
        plan: Any = self.routing.plan
        return plan.joint(self.components.log_prob(plan.dispatch(y)))

    def log_prob(self, y: Tensor) -> Tensor:  # (N, ...) -> (N,)
        return self.joint(y).logsumexp(-1)

    def responsibilities(self, y: Tensor) -> Tensor:
        """p(e | x, y): (N, E); rows sum to one, or to zero for a token that no expert serves."""
        joint = self.joint(y)
        served = joint.amax(-1, keepdim=True).isfinite()
        return torch.where(served, joint, 0.0).softmax(-1) * served


class MixtureDensity(nn.Module):
    """The classical model: a gate, experts and a family make one conditional density (Jacobs et al., 1991)."""

    def __init__(self, router: Router, experts: Experts, family: Family):
        super().__init__()
        self.router, self.experts, self.family = router, experts, family

    def forward(self, tokens: Tokens) -> Mixture:
        routing = self.router(tokens)
        rows = self.experts.rows(routing.plan, tokens.x)
        groups: Groups = routing.plan.groups
        gate = getattr(self.router, "gate", None)
        evidence = tokens.x.new_zeros(len(tokens.x)) if gate is None else gate.log_marginal(tokens.x)
        return Mixture(routing, self.family(rows, groups), self.family.mean(rows, groups), evidence)

    def twin(self, flops: float) -> MixtureDensity:
        """One fresh expert that costs ``flops`` a token, under a family of its own."""
        return MixtureDensity(Alone(), self.experts.twin(flops), self.family.alone())


@dataclass(frozen=True)
class Output:
    """What every model returns."""

    prediction: Tensor | Mixture  # logits or means (B, ..., Y), or a density
    routings: dict[str, Routing]  # by the layer's name, in forward order
