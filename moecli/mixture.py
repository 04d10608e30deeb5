"""The layer and the density: tokens -> routing -> dispatch -> experts -> combine, and the last line differs."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.distributions import Distribution

from moecli.experts.experts import Experts
from moecli.families.family import Family
from moecli.families.marginal import marginal_cdf
from moecli.plan import Dense, Groups, Plan
from moecli.routing import Claims, Router, Routing, Tokens

WIDENINGS = 40  # of the bracket of a quantile, each by its width or more
HALVINGS = 60  # beyond float64's digits


class MixtureOfExperts(nn.Module):
    """y = combine(experts(dispatch(x))), with shared experts beside: tokens (N, D) -> (N, Y), in the dtype of x."""

    def __init__(self, router: Router, experts: Experts, shared: Shared | None = None):
        super().__init__()
        self.router, self.experts, self.shared = router, experts, shared

    def forward(self, tokens: Tokens) -> tuple[Tensor, Routing]:
        routing = self.router(tokens)
        y = self.experts.blend(routing.plan, tokens.x)
        if self.shared is not None:
            y, weight = self.shared(tokens.x, y)
            routing = replace(routing, shared=weight)
        return y.to(tokens.x.dtype), routing

    def twin(self, flops: float) -> MixtureOfExperts:
        """One fresh expert that costs ``flops`` a token."""
        return MixtureOfExperts(Alone(), self.experts.twin(flops))


class Shared(nn.Module):
    """Experts that serve every token beside the routed ones: y = routed + shared(x) (DeepSeekMoE, 2024)."""

    gives: ClassVar[frozenset[str]] = frozenset()
    needs: ClassVar[frozenset[str]] = frozenset()

    def __init__(self, experts: Experts, dim: int):
        super().__init__()
        self.experts = experts

    def forward(self, x: Tensor, routed: Tensor) -> tuple[Tensor, Tensor | None]:
        """x (N, D), routed (N, Y) -> y (N, Y), and the shared experts' weight (N,) where it is learned."""
        return routed + self.alone(x), None

    def alone(self, x: Tensor) -> Tensor:  # (N, D) -> (N, Y)
        return self.experts.blend(together(self.experts, x), x)


class Gated(Shared):
    """y = routed + sigmoid(w x) shared(x), as in Qwen2-MoE."""

    gives = frozenset({"shared weight"})

    def __init__(self, experts: Experts, dim: int):
        super().__init__(experts, dim)
        self.gate = nn.Linear(dim, 1, bias=False)

    def forward(self, x: Tensor, routed: Tensor) -> tuple[Tensor, Tensor]:
        weight = self.gate(x).sigmoid()  # (N, 1)
        return routed + weight * self.alone(x), weight[:, 0]


class Mixed(Shared):
    """y = g shared(x) + (1 - g) routed, g = sigmoid(w x + b).

    The two-way softmax of PR-MoE (Rajbhandari et al., 2022) and the conditional routing of NLLB (2022) alike.
    """

    gives = frozenset({"shared weight"})

    def __init__(self, experts: Experts, dim: int):
        super().__init__(experts, dim)
        self.gate = nn.Linear(dim, 1)

    def forward(self, x: Tensor, routed: Tensor) -> tuple[Tensor, Tensor]:
        weight = self.gate(x).sigmoid()  # (N, 1)
        return weight * self.alone(x) + (1 - weight) * routed, weight[:, 0]


SHARED_MIXES = {"add": Shared, "gate": Gated, "mix": Mixed}


class Alone(Router):
    """One expert that serves every token: with it a mixture is the plain dense network."""

    own = Claims(trains_gate=False)
    gives = frozenset({"every edge", "gate fit"})  # there is none to fit

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

    def cdf(self, y: Tensor) -> Tensor | None:
        """P(target <= y | x) of each target by itself, (N, Y) -> (N, Y); None where targets have no order."""
        plan = self.routing.plan
        rows = marginal_cdf(self.components, plan.dispatch(y))
        return None if rows is None else plan.combine(rows)

    @torch.no_grad()
    def quantile(self, p: float) -> Tensor | None:
        """Of each target by itself: the smallest y with P(target <= y | x) >= p, (N, Y), by bisection.

        None where targets have no order; for counts a whole number, up to the precision of the bisection.
        """
        low, high = self.mean - 1, self.mean + 1
        if self.cdf(low) is None:
            return None
        cdf: Any = self.cdf
        for _ in range(WIDENINGS):
            width = high - low
            below, above = cdf(low) >= p, cdf(high) < p
            low, high = torch.where(below, low - width, low), torch.where(above, high + width, high)
        for _ in range(HALVINGS):
            middle = (low + high) / 2
            reached = cdf(middle) >= p
            low, high = torch.where(reached, low, middle), torch.where(reached, middle, high)
        return high

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
