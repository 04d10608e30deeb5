"""Tokens in, Routing out: what a router may look at, what it answers, and what it promises.

A router turns a gate's belief into a plan; edge filters (``Capacity``, ``Mask``, ``Remove``)
then decide who of the asked is served.  ``Usage`` counts both, and adds up over micro-batches.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import KW_ONLY, dataclass, field, replace
from functools import cached_property
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from moecli.plan import Batched, Dense, Plan, Sparse
from moecli.types import PositiveFloat, Probability


@dataclass(frozen=True)
class Tokens:
    """The units being routed: words, frames, patches, or whole examples."""

    x: Tensor  # (N, *item)
    example: Tensor  # (N,) int64 the example that each token belongs to
    position: Tensor  # (N,) int64 its place there
    group: Tensor  # (N,) int64 tokens of one group may influence each other's routing
    ids: Tensor | None = None  # (N, W) vocabulary ids: the token's own, then those before it, -1 before the start
    known: Mapping[str, Tensor] = field(default_factory=dict)  # each (N,) int64: labels, and the row in the data
    previous: Routing | None = None  # what the mixture layer before decided for the same tokens

    @classmethod
    def items(cls, x: Tensor, known: Mapping[str, Tensor] | None = None) -> Tokens:
        """Whole examples (N, *item), each a token of its own; the batch is one group."""
        zero = torch.zeros(len(x), dtype=torch.int64, device=x.device)
        return cls(x, torch.arange(len(x), device=x.device), zero, zero, known=known or {})

    @classmethod
    def sequences(
        cls,
        x: Tensor,
        ids: Tensor | None = None,
        known: Mapping[str, Tensor] | None = None,
        window: int = 2,
        start: int = 0,
        here: Tensor | None = None,
    ) -> Tokens:
        """Sequences (B, T, *item) with ids (B, T); each sequence is one example and one group.

        What is ``known`` is of each example (B,) or of each token (B, T).  Their first position is ``start``.
        Where ``here`` (B, T) is false there is no token, only padding, which does not come along.
        """
        b, t = x.shape[:2]
        example = torch.arange(b, device=x.device).repeat_interleave(t)
        position = torch.arange(start, start + t, device=x.device).repeat(b)
        if ids is not None:
            before = [nn.functional.pad(ids, (w, 0), value=-1)[:, :t] for w in range(window)]
            ids = torch.stack(before, dim=-1).flatten(0, 1)  # W x (B, T) -> (N, W)
        of_tokens = {name: fact.flatten() if fact.ndim > 1 else fact[example] for name, fact in (known or {}).items()}
        tokens = cls(x.flatten(0, 1), example, position, example, ids, of_tokens)
        return tokens if here is None else tokens.only(here.flatten())

    def only(self, kept: Tensor) -> Tokens:
        """The tokens of a mask (N,), as they are."""
        known = {name: fact[kept] for name, fact in self.known.items()}
        ids = None if self.ids is None else self.ids[kept]
        return Tokens(self.x[kept], self.example[kept], self.position[kept], self.group[kept], ids, known)

    def batched(self, by: Literal["auto", "position", "batch"]) -> Batched:
        """Tokens laid out by who may influence whom: ``auto`` is a sequence, or a batch of whole examples."""
        batch = torch.zeros_like(self.group)
        return Batched.by({"auto": self.group, "position": self.position, "batch": batch}[by])


@dataclass(frozen=True)
class Usage:
    """Who was asked, who served; additive over micro-batches, time steps and ranks.

    Sparse plans count edges; dense and slot plans count mass, so that a collapsed dense gate is seen.
    """

    asked: Tensor  # (E,) before the filters
    served: Tensor  # (E,) after them
    ranks: Tensor  # (2, E) int64 edges asked and served, by rank of choice; zero for plans without edges
    first: Tensor  # (E,) int64 tokens whose gate preferred this expert
    mass: Tensor  # (E,) sum of the combine weights
    entropy: Tensor  # () sum over tokens of the gate's entropy, in nats
    tokens: int

    def __add__(self, other: Usage) -> Usage:
        return Usage(*(getattr(self, f) + getattr(other, f) for f in self.__dataclass_fields__))

    @property
    def load(self) -> Tensor:
        """Each expert's share of the work done: (E,), sums to one."""
        return self.served / self.served.sum().clamp_min(1e-12)

    @property
    def dropped(self) -> float:
        """The share of what was asked for that no expert served."""
        return float((self.asked - self.served).sum() / self.asked.sum().clamp_min(1e-12))


def counted(asked: Plan, served: Plan) -> tuple[Tensor, Tensor]:
    """What both plans ask of each expert, in one unit: edges (int64) of sparse plans, else mass; (E,) each."""
    if isinstance(asked, Sparse) and isinstance(served, Sparse):
        return asked.groups.counts, served.groups.counts
    return asked.weights.detach().sum(0), served.weights.detach().sum(0)


def by_rank(plan: Plan, num_experts: int) -> Tensor:
    """How many edges are some token's first, second, ... choice: (E,) int64, zero where a plan has no edges."""
    counts = torch.zeros(num_experts, dtype=torch.int64, device=plan.groups.counts.device)
    if not isinstance(plan, Sparse):
        return counts
    return counts.index_add(0, plan.choice.clamp_max(num_experts - 1), torch.ones_like(plan.choice))


def fair_share(work: Tensor, factor: float, num_experts: int) -> Tensor:
    """``factor`` times an expert's even part of ``work`` (G,) int64, rounded up, at least one: (G,) int64."""
    share = work.double() * min(factor, num_experts) / num_experts
    return (share - 1e-9).ceil().clamp_min(1).long()  # a whole number stays one, whatever the rounding


def entropy(probs: Tensor) -> Tensor:
    """Of each row, in nats: (N, E) -> (N,)."""
    return torch.special.entr(probs).sum(-1)


@dataclass(frozen=True)
class Routing:
    """A router's decision, and the evidence that losses and plots may ask for."""

    plan: Plan  # who serves whom
    probs: Tensor  # (N, E) the gate's belief, before selection
    logits: Tensor | None = None  # (N, E); absent where no gate scores experts
    shared: Tensor | None = None  # (N,) the weight of the shared experts, where it is learned
    _: KW_ONLY  # what follows is filled in by Router.forward
    asked: Plan = None  # type: ignore[assignment]  # the plan before the filters
    example: Tensor = None  # type: ignore[assignment]  # (N,) as in Tokens
    position: Tensor = None  # type: ignore[assignment]  # (N,)

    @cached_property
    def usage(self) -> Usage:
        e = self.probs.shape[1]
        probs = self.probs.detach()
        first = probs.new_zeros(e, dtype=torch.int64)
        first = first.index_add(0, probs.argmax(-1), torch.ones_like(self.example))
        mass = self.plan.weights.detach().sum(0)
        ranks = torch.stack([by_rank(self.asked, e), by_rank(self.plan, e)])
        return Usage(*counted(self.asked, self.plan), ranks, first, mass, entropy(probs).sum(), len(probs))


@dataclass(frozen=True)
class NoisyRouting(Routing):
    """Adds what the load loss needs (Shazeer et al., 2017, eq. 9)."""

    chance: Tensor | None = None  # (N, E) probability of being chosen under fresh noise


@dataclass(frozen=True)
class SampledRouting(Routing):
    """Adds what a policy gradient needs (Williams, 1992)."""

    log_prob: Tensor | None = None  # (N,) of the decision that was drawn, with its gradient
    chance: Tensor | None = None  # (N, E) probability of drawing each expert


@dataclass(frozen=True)
class GroupedRouting(Routing):
    """Adds that experts stand in equal groups (devices, nodes), of which a token reaches only some."""

    num_groups: int = 1
    limit: int = 1  # groups that a token may reach


@dataclass(frozen=True)
class Claims:
    """Properties of a built router; the contract test proves each one in both directions."""

    density: bool = True  # one row per (token, expert) pair, and weights that sum to one
    balanced: bool = False  # counts of the experts differ by at most one
    trains_gate: bool = True  # the task loss alone sends a gradient to the gate
    causal: bool = True  # a changed suffix leaves an example's prefix alone
    independent: bool = True  # no other token matters; implies causal


@dataclass(frozen=True)
class Capacity:
    """Each expert serves at most ``factor`` times its fair share of a group's edges (Lepikhin et al., 2020).

    ``by`` says who goes first: ``position`` all first choices in order, then the second ones (GShard);
    ``token`` all choices of a token before the next token; ``weight`` as ``position``, but tokens in the order of
    their heaviest choice (batch prioritised, Riquelme et al., 2021); ``random`` whom a draw favours, in evaluation the
    same draw each time.
    """

    factor: float | None
    eval_factor: float | None
    by: str
    reasons: ClassVar[dict[str, str]] = {
        "causal": "whether an expert drops a token depends on tokens that come later (router.capacity_by=token does not)",
        "density": "a token that is dropped keeps no weight, so the weights do not sum to one (router.capacity_factor)",
    }

    def __call__(self, plan: Dense | Sparse, tokens: Tokens, router: Router) -> Dense | Sparse:
        factor = self.active(router.training)
        if factor is None:
            return plan
        plan = plan.edges()
        _, group, size = tokens.group.unique(return_inverse=True, return_counts=True)
        group = group[plan.token]  # (R,)
        counted = torch.zeros_like(size).index_add(0, group, torch.ones_like(group))  # (G,)
        work = counted.maximum(size * router.choices) if router.steady else counted
        limit = fair_share(work, factor, plan.num_experts).minimum(size)  # (G,)
        order = self._priority(plan, router.training)
        queue = (plan.expert * len(size) + group)[order]
        order, queue = order[queue.argsort(stable=True)], queue.sort(stable=True).values
        place = torch.arange(len(queue), device=queue.device) - torch.searchsorted(queue, queue)
        kept = torch.zeros_like(order, dtype=torch.bool)
        return plan.keep(kept.index_put((order,), place < limit[group[order]]))

    def active(self, training: bool) -> float | None:
        """The factor in force; infinity is no limit."""
        factor = self.factor if training else self.eval_factor
        return None if factor is None or math.isinf(factor) else factor

    def _priority(self, plan: Sparse, training: bool) -> Tensor:
        if self.by == "random":
            return lot(len(plan.token), training).to(plan.token.device)
        order = plan.token.argsort(stable=True)
        if self.by == "weight":
            heaviest = plan.log_weight.new_full((plan.num_tokens,), -torch.inf)
            heaviest = heaviest.scatter_reduce(0, plan.token, plan.log_weight.detach(), "amax")
            order = order[heaviest[plan.token[order]].argsort(descending=True, stable=True)]
        return order if self.by == "token" else order[plan.choice[order].argsort(stable=True)]

    def narrow(self, claims: Claims, router: Router, training: bool) -> Claims:
        if self.active(training) is None:
            return claims
        by = "position" if self.by == "weight" and not router.graded else self.by
        blind = router.choices == 0 and by != "weight"  # what is dropped does not depend on what tokens hold
        in_order = router.steady and (by == "token" or (by == "position" and router.choices <= 1))
        return replace(
            claims,
            density=False,
            balanced=claims.balanced and router.choices == 0,
            causal=claims.causal and (in_order or blind),  # no later token comes first
            independent=claims.independent and blind,
        )


def lot(size: int, training: bool) -> Tensor:
    """A random order of ``size`` edges; in evaluation always the same."""
    return torch.randperm(size) if training else torch.randperm(size, generator=torch.Generator().manual_seed(size))


@dataclass(frozen=True)
class Mask:
    """In training, a token loses all its experts with probability ``p`` (expert output masking, NLLB 2022)."""

    p: float
    reasons: ClassVar[dict[str, str]] = {
        "density": "a masked token keeps no weight, so weights do not sum to one (router.mask)"
    }

    def __call__(self, plan: Dense | Sparse, tokens: Tokens, router: Router) -> Dense | Sparse:
        if not router.training or not self.p:
            return plan
        plan = plan.edges()
        kept = torch.rand(plan.num_tokens, device=plan.token.device) >= self.p
        return plan.keep(kept[plan.token])

    def narrow(self, claims: Claims, router: Router, training: bool) -> Claims:
        if not (training and self.p):
            return claims
        return replace(claims, density=False, balanced=claims.balanced and router.choices == 0)


@dataclass(frozen=True)
class Remove:
    """Take one expert out, to see what it was worth."""

    expert: int
    reasons: ClassVar[dict[str, str]] = {}

    def __call__(self, plan: Plan, tokens: Tokens, router: Router) -> Plan:
        return plan.without(self.expert)

    def narrow(self, claims: Claims, router: Router, training: bool) -> Claims:
        return claims


class Router(nn.Module):
    """Decides which experts work on which tokens.

    A subclass writes ``route``; what it promises stands in ``own``, and a property that only some of
    its options have is set on the instance.  ``needs`` and ``gives`` are matched against the other parts.
    """

    own: Claims = Claims()
    own_in_training: Claims | None = None  # where training promises something else
    choices: int = 1  # ranks of choice that compete for an expert's queue; 0 where asking depends on no token's content
    steady: bool = True  # a token counts with all its choices for capacity, however many it took
    graded: bool = True  # weights differ between tokens, so that capacity can go by them
    needs: ClassVar[frozenset[str]] = frozenset()
    gives: frozenset[str] = frozenset({"gate", "logits"})
    reasons: dict[str, str] = {}  # noqa: RUF012  # why a claim is absent, for the sentence that refuses it

    def __init__(
        self,
        capacity_factor: PositiveFloat | None = None,
        eval_capacity_factor: PositiveFloat | None = None,
        capacity_by: Literal["position", "token", "weight", "random"] = "position",
        mask: Probability = 0.0,
    ):
        super().__init__()
        at_eval = capacity_factor if eval_capacity_factor is None else eval_capacity_factor
        self.filters: tuple[Capacity | Mask | Remove, ...] = ()
        if capacity_factor is not None or at_eval is not None:
            self.filters += (Capacity(capacity_factor, at_eval, capacity_by),)
        if mask:
            self.filters += (Mask(mask),)

    def route(self, tokens: Tokens) -> Routing:
        """The decision before the filters; ``tokens.x`` is at least float32.  Shapes as in ``Routing``."""
        raise NotImplementedError

    def forward(self, tokens: Tokens) -> Routing:
        """Route in float32 or better, whatever the autocast; then let the filters decide who is served."""
        with torch.autocast(tokens.x.device.type, enabled=False):
            precise = torch.promote_types(tokens.x.dtype, torch.float32)
            routing = self.route(replace(tokens, x=tokens.x.to(precise)))
            plan: Any = routing.plan  # a router of slots takes no filter but Remove, which every plan allows
            for serve in self.filters:
                plan = serve(plan, tokens, self)
        return replace(routing, plan=plan, asked=routing.plan, example=tokens.example, position=tokens.position)

    def claims(self, training: bool) -> Claims:
        """What the built router promises in training or evaluation, its filters counted in."""
        claims = (training and self.own_in_training) or self.own
        for serve in self.filters:
            claims = serve.narrow(claims, self, training)
        return claims

    @property
    def masked(self) -> float:
        """The share of tokens that lose all their experts in training, on purpose."""
        return sum(serve.p for serve in self.filters if isinstance(serve, Mask))

    def why_not(self) -> dict[str, str]:
        """Why a claim is absent, the filters' reasons included."""
        reasons = dict(self.reasons)
        for serve in self.filters:
            reasons = {**serve.reasons, **reasons}
        return reasons

    def prepare(self, sample: Tokens) -> None:
        """Build tables or starts from a first batch; the trainer calls this once before step 0."""

    @torch.no_grad()
    def after_step(self, usage: Usage) -> None:
        """Update state that no gradient reaches; the trainer calls this after each step."""
