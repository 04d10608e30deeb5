"""The E-step: how well each expert explains each row, and what share of the row each variant gives it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from moecli.mixture import MixtureDensity, together
from moecli.models.layer import expert_table
from moecli.plan import even_shares
from moecli.routing import Tokens, Usage
from moecli.training.assignment import assign

AT_ONCE = 2**20  # numbers of one piece's largest table


@dataclass(frozen=True)
class Evidence:
    """Of N rows: what EM knows before it fits."""

    joint: Tensor  # (N, E) log p(e | x) + log p_e(y | x), -inf where the plan has no edge
    density: Tensor  # (N, E) log p_e(y | x)
    log_marginal: Tensor  # (N,) log p(x) where the gate models x, else zero
    usage: Usage
    weight: Tensor | None = None  # (N,) how much each row counts; None: all the same

    @cached_property
    def log_prob(self) -> Tensor:  # (N,)
        return self.joint.logsumexp(-1)

    @property
    def nll(self) -> float:
        """Mean of -log p(y | x)."""
        return -self.mean(self.log_prob)

    @property
    def joint_nll(self) -> float:
        """Mean of -log p(y, x) where the gate models x, else ``nll``."""
        return -self.mean(self.log_prob + self.log_marginal)

    def bound(self, resp: Tensor) -> float:
        """Mean of sum_e r (log p(e, y, x) - log r): the log-likelihood under soft responsibilities, the
        classification log-likelihood under hard ones (Neal & Hinton's free energy)."""
        kept = torch.where(resp > 0, self.joint, 0.0)
        return self.mean((resp * kept).sum(-1) + torch.special.entr(resp).sum(-1) + self.log_marginal)

    def mean(self, values: Tensor) -> float:
        """Over rows (N,), each by its weight."""
        if self.weight is None:
            return values.mean().item()
        return (self.weight @ values / self.weight.sum()).item()


def pieces(layer: MixtureDensity, *tables: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """The same rows of each table, so few that each row's item for every expert fits the cache."""
    wide = layer.experts.num_experts * max(tables[0][0].numel(), 8)
    return zip(*(table.split(max(256, AT_ONCE // wide)) for table in tables), strict=True)


@torch.no_grad()
def observe(layer: MixtureDensity, x: Tensor, y: Tensor, weight: Tensor | None = None) -> Evidence:
    """Of rows x (N, *item) with targets y (N, ...) and, where they count differently, weights (N,)."""
    found = [_observe(layer, *part) for part in pieces(layer, x, y)]
    usage = found[0].usage
    for piece in found[1:]:
        usage = usage + piece.usage
    joint, density, marginal = (
        torch.cat([getattr(piece, name) for piece in found]) for name in ("joint", "density", "log_marginal")
    )
    return Evidence(joint, density, marginal, usage, weight)


def _observe(layer: MixtureDensity, x: Tensor, y: Tensor) -> Evidence:
    routing = layer.router(Tokens.items(x))
    density = layer.family.log_prob(locations(layer, x), y)
    edges = int(routing.plan.groups.counts.sum())
    log_weight = routing.plan.joint(density.new_zeros(edges))  # needs: density
    gate = getattr(layer.router, "gate", None)
    marginal = x.new_zeros(len(x)) if gate is None else gate.log_marginal(x)
    return Evidence(log_weight + density, density, marginal, routing.usage)


def locations(layer: MixtureDensity, x: Tensor) -> Tensor:
    """What every expert says of every row: (N, *item) -> (N, E, Y)."""
    return expert_table(layer.experts.rows(together(layer.experts, x), x), len(x))


# -- what each variant makes of it: (joint (N, E), generator) -> responsibilities (N, E) -----------


def soft(joint: Tensor, draw: torch.Generator) -> Tensor:
    """p(e | x, y): rows sum to one, or to zero where no expert can have made the row."""
    return (
        (joint - joint.logsumexp(-1, keepdim=True)).exp().nan_to_num_(0.0)
    )  # a tenth of softmax's time at few experts


def hard(joint: Tensor, draw: torch.Generator) -> Tensor:
    """All to the likeliest expert (classification EM; Celeux & Govaert, 1992)."""
    return one_hot(joint.argmax(-1), joint.shape[1]).to(joint)


def sampled(joint: Tensor, draw: torch.Generator) -> Tensor:
    """All to an expert drawn by p(e | x, y) (stochastic EM; Celeux & Govaert, 1992)."""
    at = torch.rand(len(joint), 1, generator=draw, dtype=joint.dtype).to(joint.device)
    below = soft(joint, draw).cumsum(-1)
    return one_hot((at * below[:, -1:] >= below[:, :-1]).sum(-1), joint.shape[1]).to(joint)


def balanced(joint: Tensor, draw: torch.Generator) -> Tensor:
    """All to one expert, the likeliest assignment under which all experts have equal shares."""
    return one_hot(assign(joint, even_shares(*joint.shape)), joint.shape[1]).to(joint)


VARIANTS: dict[str, Callable[[Tensor, torch.Generator], Tensor]] = {
    "soft": soft,
    "hard": hard,
    "sampled": sampled,
    "balanced": balanced,
}
