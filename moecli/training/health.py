"""Watches routing while it trains: dead experts and collapse, with the remedy, the moment they occur."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from moecli.routing import Usage

WINDOW = 20  # recorded steps that are looked at together
# Switch (Fedus et al., 2021) trains with fewer than 1 % of its tokens dropped; several times that costs quality.
DROPPED = 0.05
FEW = 20  # choices an expert would get under uniform routing, below which silence proves nothing


@dataclass
class Health:
    """Collects each layer's usage over a window and says what is wrong with it, once per layer and finding."""

    meant: Mapping[str, float] = field(default_factory=dict)  # share of tokens dropped on purpose (router.mask)
    window: int = WINDOW
    recent: dict[str, list[Usage]] = field(default_factory=dict)
    said: set[tuple[str, str]] = field(default_factory=set)

    def see(self, layer: str, usage: Usage) -> list[str]:
        """Findings that are new."""
        recent = self.recent.setdefault(layer, [])
        recent.append(usage)
        if len(recent) < self.window:
            return []
        self.recent[layer] = []
        findings = examine(sum_usage(recent), self.meant.get(layer, 0.0))
        fresh = [(kind, text) for kind, text in findings if (layer, kind) not in self.said]
        self.said.update((layer, kind) for kind, _ in fresh)
        return [f"{layer}: {text}" for _, text in fresh]


def sum_usage(usages: list[Usage]) -> Usage:
    total = usages[0]
    for usage in usages[1:]:
        total = total + usage
    return total


def examine(usage: Usage, meant: float = 0.0) -> list[tuple[str, str]]:
    """(kind, sentence) for what is wrong with this usage.

    Collapse: the load is nearly as concentrated as it can be, that is on as many experts as one token
    asks, or on one where the load is mass.  Dead: an expert that had its chance was asked by nobody.
    Dropped: more than a few percent of the choices go unserved, beyond the share that is ``meant`` to.
    """
    return [*_concentrated(usage), *_dropped(usage, meant)]


def _concentrated(usage: Usage) -> list[tuple[str, str]]:
    asked = usage.asked.double()
    share = asked / asked.sum().clamp_min(1e-12)
    num_experts, floor = len(share), max(1.0, float(asked.sum()) / usage.tokens)  # a mass sums to one per token
    if num_experts <= floor:
        return []
    effective = effective_experts(share.tolist())
    if effective < floor + 0.1 * (num_experts - floor):
        return [("collapse", f"routing has collapsed, {effective:.1f} of {num_experts} experts in use. {REMEDY}")]
    dead = [f"e{e}" for e, s in enumerate(share.tolist()) if s < 0.01 / num_experts]
    if not dead or asked.sum() / num_experts < FEW:
        return []
    return [("dead", f"{len(dead)} of {num_experts} experts get no tokens ({', '.join(dead[:8])}). {REMEDY}")]


def _dropped(usage: Usage, meant: float) -> list[tuple[str, str]]:
    if usage.dropped <= meant + DROPPED:
        return []
    return [("dropped", f"{usage.dropped:.0%} of the choices are dropped{_by_rank(usage)}. {ROOM}")]


def _by_rank(usage: Usage) -> str:
    """How many of the first, second, ... choices, where a token has several."""
    shares = dropped_by_rank(usage.ranks.tolist())
    return f" ({', '.join(f'choice {i}: {share:.0%}' for i, share in enumerate(shares, 1))})" if len(shares) > 1 else ""


def dropped_by_rank(ranks: Sequence[Sequence[float]]) -> list[float]:
    """The share of the edges asked (E,) that were not served (E,), for each rank of choice that was asked at all."""
    return [1 - served / asked for asked, served in zip(*ranks, strict=True) if asked]


REMEDY = "Give a balance term more weight (auxiliary=[switch_balance] auxiliary.switch_balance.weight=0.1), or lower optimizer.lr"


ROOM = "Raise router.capacity_factor, or give a balance term more weight"


def effective_experts(share: list[float]) -> float:
    """The exponential of the load's entropy: E when uniform, 1 when one expert does all."""
    return math.exp(-sum(s * math.log(s) for s in share if s > 0))
