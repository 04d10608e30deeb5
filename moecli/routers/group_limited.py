"""The k best experts within a token's best groups (DeepSeek-V2, 2024)."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

from torch import Tensor

from moecli.errors import UsageError
from moecli.gates.gate import Gate
from moecli.plan import Sparse
from moecli.routers.top_k import check_graded, check_k
from moecli.routing import GroupedRouting, Router, Tokens
from moecli.types import PositiveFloat, PositiveInt


class GroupLimited(Router):
    """Experts stand in ``groups`` equal groups (devices); a token reaches the ``limit`` groups of its best experts.

    y = scale sum_e w_e f_e(x) over the k best e in reach, with w = softmax(gate(x)) over all experts, or over the
    chosen with ``renormalize``; a group is as good as its best expert.  Raises UsageError where groups, limit and k do not fit the experts.
    """

    gives = Router.gives | {"groups"}

    def __init__(
        self,
        gate: Callable[[int], Gate],
        num_experts: int,
        k: PositiveInt = 2,
        groups: PositiveInt = 4,
        limit: PositiveInt = 2,
        renormalize: bool = False,
        scale: PositiveFloat = 1.0,
        **filters,
    ):
        super().__init__(**filters)
        check_groups(num_experts, groups, limit, k)
        check_graded(k, num_experts, renormalize)
        self.gate, self.k, self.choices = gate(num_experts), k, k
        self.groups, self.limit, self.renormalize, self.scale = groups, limit, renormalize, scale
        everyone = k == num_experts
        self.own = replace(self.own, density=(renormalize or everyone) and scale == 1, balanced=everyone)
        self.reasons = {"density": "the weights of the chosen do not sum to one (router.renormalize, router.scale)"}

    def route(self, tokens: Tokens) -> GroupedRouting:
        logits = self.gate(tokens.x)  # (N, E)
        within = reachable(logits, self.groups, self.limit, best_of=1)
        top, expert = logits.masked_fill(~within, float("-inf")).topk(self.k, dim=-1)  # (N, K)
        total = (top if self.renormalize else logits).logsumexp(-1, keepdim=True)
        chosen = Sparse.from_choices(expert, top - total + math.log(self.scale), logits.shape[-1])
        return GroupedRouting(chosen, logits.softmax(-1), logits, num_groups=self.groups, limit=self.limit)


def reachable(liking: Tensor, groups: int, limit: int, best_of: int) -> Tensor:
    """Experts of the ``limit`` groups whose ``best_of`` best experts sum highest: (N, E) -> (N, E) bool."""
    by_group = liking.unflatten(-1, (groups, -1))  # (N, G, E / G)
    strength = by_group.topk(best_of, dim=-1).values.sum(-1)  # (N, G)
    picked = strength.topk(limit, dim=-1).indices
    inside = strength.new_zeros(strength.shape, dtype=bool).scatter(-1, picked, True)
    return inside[..., None].expand_as(by_group).flatten(-2)


def check_groups(num_experts: int, groups: int, limit: int, k: int) -> None:
    """Raise UsageError where experts cannot stand in such groups, or k experts not be found in them."""
    check_k(k, num_experts)
    if num_experts % groups or limit > groups:
        raise UsageError(
            f"router.groups={groups} router.limit={limit}: {num_experts} experts need equal groups, and no more of "
            "them can be reached than there are. Change router.groups or router.limit"
        )
    if k > limit * (num_experts // groups):
        raise UsageError(
            f"router.k={k}: the {limit} groups that a token reaches hold {limit * (num_experts // groups)} experts. "
            "Lower router.k, or raise router.limit"
        )
