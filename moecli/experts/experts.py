"""What all experts share: rows (R, *item) sorted by expert, and their groups -> rows (R, *out).

Experts know nothing of tokens or routers.  A layer asks them to ``blend`` and a density asks for
``rows``: the two seams that faster kernels override.
"""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor, nn

from moecli.plan import Groups, Plan


class Experts(nn.Module):
    """``num_experts`` functions of the same shape, each with parameters of its own."""

    num_experts: int
    needs: ClassVar[frozenset[str]] = frozenset()
    gives: ClassVar[frozenset[str]] = frozenset()

    def forward(self, rows: Tensor, groups: Groups) -> Tensor:  # (R, *item) -> (R, *out)
        raise NotImplementedError

    def rows(self, plan: Plan, x: Tensor) -> Tensor:  # (N, *item) -> (R, *out)
        return self(plan.dispatch(x), plan.groups)

    def blend(self, plan: Plan, x: Tensor) -> Tensor:  # (N, *item) -> (N, *out)
        return plan.combine(self.rows(plan, x))

    def fit(self, x: Tensor, z: Tensor, w: Tensor) -> None:
        """Weighted least squares, for experts that give ``expert fit``: x (N, D), responses z, weights w (N, E, Y)."""
        raise NotImplementedError

    def flops(self) -> int:
        """Multiplications and additions of one row's matrix products."""
        raise NotImplementedError

    def twin(self, flops: float) -> Experts:
        """One fresh expert of the same kind whose row costs about ``flops``: the dense twin."""
        raise NotImplementedError


def affordable(dim: int, out: int, flops: float) -> Experts:
    """One ReLU expert that costs about ``flops`` = 2 h (D + Y): the twin of experts that cannot be widened."""
    from moecli.experts.feed_forward import FeedForward

    return FeedForward(dim, out, 1, hidden=max(1, round(flops / (2 * (dim + out)))), activation="relu")
