"""What all experts share: rows (R, *item) sorted by expert, and their groups -> rows (R, *out).

Experts know nothing of tokens or routers.  A layer asks them to ``blend`` and a density asks for
``rows``: the two seams that faster kernels override.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from torch import Tensor, nn

from moecli.experts.least_squares import Normal
from moecli.plan import Groups, Plan


class Experts(nn.Module):
    """``num_experts`` functions of the same shape, each with parameters of its own.

    Those that give ``expert fit`` are linear in their parameters, which lie stacked along a first axis
    of experts: EM fits them by weighted least squares (``normal``, ``solve``), others by gradients.
    """

    num_experts: int
    needs: frozenset[str] = frozenset({"vectors"})
    gives: ClassVar[frozenset[str]] = frozenset()

    def forward(self, rows: Tensor, groups: Groups) -> Tensor:  # (R, *item) -> (R, *out)
        raise NotImplementedError

    def rows(self, plan: Plan, x: Tensor) -> Tensor:  # (N, *item) -> (R, *out)
        return self(plan.dispatch(x), plan.groups)

    def blend(self, plan: Plan, x: Tensor) -> Tensor:  # (N, *item) -> (N, *out)
        return plan.combine(self.rows(plan, x))

    def normal(self, x: Tensor, z: Tensor, w: Tensor) -> Normal:
        """The normal equations of some rows: x (N, *item), responses z (N, E, Y), weights w (N, E, 1 or Y)."""
        raise NotImplementedError

    def solve(self, normal: Normal) -> None:
        """Take the parameters of weighted least squares; what the rows leave open stays as it is."""
        raise NotImplementedError

    def fit(self, x: Tensor, z: Tensor, w: Tensor) -> None:
        """Weighted least squares on all rows at once; shapes as in ``normal``."""
        self.solve(self.normal(x, z, w))

    def reading(self, columns: Sequence[int]) -> Experts:
        """These experts, built for ``len(columns)`` features, over those columns of x."""
        from moecli.experts.columns import Columns

        return Columns(self, columns)

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
