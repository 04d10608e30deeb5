"""A gate over groups, then a gate in each group (Shazeer et al., 2017, appendix B)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from torch import Tensor

from moecli.errors import UsageError
from moecli.gates.gate import Gate
from moecli.plan import Sparse
from moecli.routers.noisy_top_k import Noise
from moecli.routing import NoisyRouting, Router, Tokens
from moecli.types import PositiveInt


class Hierarchical(Router):
    """Noisy top-k over ``groups``, then noisy top-k within each chosen group: y = sum_ij G_i G_ij f_ij(x).

    A token meets ``k_groups`` x ``k`` experts.  Raises UsageError where the experts do not divide into the
    groups, or where k = 1 at both levels leaves the constant weight 1, which trains no gate.
    """

    gives = Router.gives | {"noise"}

    def __init__(
        self,
        gate: Callable[[int], Gate],
        num_experts: int,
        groups: PositiveInt = 2,
        k_groups: PositiveInt = 1,
        k: PositiveInt = 2,
        **filters,
    ):
        super().__init__(**filters)
        size = num_experts // groups
        if num_experts % groups or k_groups > groups or k > size:
            raise UsageError(
                f"router.groups={groups} router.k_groups={k_groups} router.k={k}: {num_experts} experts must divide into "
                "equal groups, of which k_groups are chosen, and in each k experts. Change one of them"
            )
        if k_groups == k == 1 and num_experts > 1:
            raise UsageError(
                "router.k=1 with router.k_groups=1: the one weight is the constant 1, so no gradient reaches the gates. "
                "Raise router.k or router.k_groups"
            )
        self.outer, self.inner = Noise(gate, groups, k_groups), Noise(gate, num_experts, k)
        self.shape, self.choices = (groups, size), k_groups * k
        self.own = replace(self.own, balanced=self.choices == num_experts)

    @property
    def gate(self) -> Gate:
        return self.inner.gate

    def route(self, tokens: Tokens) -> NoisyRouting:
        (groups, size), n = self.shape, len(tokens.x)
        outer = self.outer(tokens.x, self.training)
        inner = self.inner(tokens.x, self.training, groups)
        group = outer.top  # (N, A)
        experts = group[..., None] * size + inner.top.gather(1, _columns(group, inner.top))  # (N, A, K)
        log_weight = outer.log_weight[..., None] + inner.log_weight.gather(1, _columns(group, inner.log_weight))
        chosen = Sparse.from_choices(experts.flatten(1), log_weight.flatten(1), groups * size)
        log_probs = outer.noisy.log_softmax(-1)[..., None] + inner.noisy.log_softmax(-1)  # (N, G, E / G)
        chance = outer.chance[..., None] * inner.chance
        return NoisyRouting(chosen, log_probs.exp().view(n, -1), log_probs.view(n, -1), chance=chance.view(n, -1))


def _columns(group: Tensor, table: Tensor) -> Tensor:
    """An index that takes the chosen groups' rows of a table (N, G, K): (N, A) -> (N, A, K)."""
    return group[..., None].expand(-1, -1, table.shape[-1])
