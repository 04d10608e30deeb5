"""What every gate is: x (N, D) -> logits (N, E), log p(expert | x) up to a constant per token."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor, nn

from moecli.kernels.algebra import descend


class Gate(nn.Module):
    """Belief: which expert suits x.  Under EM, ``fit`` moves it towards responsibilities."""

    gives: ClassVar[frozenset[str]] = frozenset({"gate fit", "odds"})
    needs: frozenset[str] = frozenset({"vectors"})
    blind: bool = False  # believes the same of every x
    inner: int = 25  # steps of its own that one iteration of EM takes

    def forward(self, x: Tensor) -> Tensor:  # (N, D) -> (N, E)
        raise NotImplementedError

    def log_joint(self, x: Tensor) -> Tensor:
        """Log p(expert, x) where the gate models x, else log p(expert | x): (N, D) -> (N, E)."""
        return self(x).log_softmax(-1)

    def log_marginal(self, x: Tensor) -> Tensor:
        """Log p(x) where the gate models x, else zero: (N, D) -> (N,)."""
        return x.new_zeros(len(x))

    def fit(self, x: Tensor, resp: Tensor, steps: int = 25) -> None:
        """Raise sum_n,e resp log p(e | x) from where the gate stands (a generalised M-step).

        x (N, D), resp (N, E) non-negative; rows may sum to less than one (a tree's branches).
        Default: L-BFGS with a strong Wolfe line search, undone if the sum did not rise.
        """

        def loss(use: Callable[[Tensor], object]) -> float:
            value = -(resp * self(x).log_softmax(-1)).sum() / resp.sum().clamp_min(1e-12)
            use(value)
            return value.item()

        descend([p for p in self.parameters() if p.requires_grad], loss, steps)

    def reading(self, columns: Sequence[int]) -> Gate:
        """This gate, built for ``len(columns)`` features, over those columns of x."""
        from moecli.gates.columns import Columns

        return Columns(self, columns)


def affine(x: Tensor, layer: nn.Linear) -> Tensor:
    """A linear layer in x's dtype: gates compute in float32 even where their weights are bfloat16."""
    return F.linear(x, layer.weight.to(x.dtype), None if layer.bias is None else layer.bias.to(x.dtype))
