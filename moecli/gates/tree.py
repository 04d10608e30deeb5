"""Gates at the nodes of a tree, experts at its leaves (Jordan & Jacobs, 1994)."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from moecli.errors import UsageError
from moecli.gates.gate import Gate
from moecli.types import PositiveInt


class Tree(Gate):
    """The log-probabilities of the branches on the way to a leaf add up: logits_e = sum log p(branch | x, node).

    A node that models x adds log p(branch, x), un-normalised: normalised, it would no longer be
    what its closed M-step maximises, and EM would fall.  A node may be any gate, and every level another number
    of branches; without branches, or with one, a tree is the flat gate.  Raises UsageError where the leaves are
    not as many as the experts.
    """

    gives = frozenset({"gate fit"})

    def __init__(self, num_experts: int, node: Callable[[int], Gate], branching: list[PositiveInt] | None = None):
        super().__init__()
        width, *below = branching or halves(num_experts)
        if width * math.prod(below) != num_experts:
            raise UsageError(
                f"gate.branching={branching}: its product is {width * math.prod(below)}, but there are {num_experts} "
                "experts, one at each leaf. Change gate.branching or num_experts"
            )
        self.root: Gate = node(width)
        self.needs, self.blind, self.inner = self.root.needs, self.root.blind, self.root.inner
        self.branches: Any = nn.ModuleList(Tree(math.prod(below), node, below) for _ in range(width) if below)

    def forward(self, x: Tensor) -> Tensor:  # (N, D) -> (N, E)
        log_branch = self.root.log_joint(x)  # (N, B)
        if log_branch.shape[1] == 1:  # one branch decides nothing, even where its node models x
            log_branch = torch.zeros_like(log_branch)
        if not self.branches:
            return log_branch
        below = torch.stack([branch(x) for branch in self.branches], dim=1)  # (N, B, E / B)
        return (log_branch[..., None] + below).flatten(1)

    def log_joint(self, x: Tensor) -> Tensor:
        return self(x)

    def log_marginal(self, x: Tensor) -> Tensor:
        return self(x).logsumexp(-1)

    def fit(self, x: Tensor, resp: Tensor, steps: int = 25) -> None:
        """A branch's responsibilities are its leaves' share; their sum is its sample weight."""
        width = max(len(self.branches), 1)
        below = resp.unflatten(-1, (width, -1)) if self.branches else resp[..., None]  # (N, B, E / B)
        self.root.fit(x, below.sum(-1), steps)
        for branch, share in zip(self.branches, below.unbind(1), strict=False):
            branch.fit(x, share, steps)


def halves(num_experts: int) -> list[int]:
    """Two branches at each node for as long as that divides the experts: 12 -> [2, 2, 3]."""
    if num_experts % 2 or num_experts == 2:
        return [num_experts]
    return [2, *halves(num_experts // 2)]
