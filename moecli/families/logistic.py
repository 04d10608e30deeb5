"""Targets of 0 and 1, each column by itself: each expert is a logistic regression."""

from __future__ import annotations

from torch import Tensor
from torch.distributions import Bernoulli, Distribution, Independent

from moecli.families.family import Family
from moecli.plan import Groups

FLATTEST = 1e-8  # curvature: less would let one step of a certain row go anywhere


class Logistic(Family):
    """p_e(y | x) = prod_y Bernoulli(y; sigmoid(f_e(x)_y)) (Jordan & Jacobs, 1994)."""

    needs = frozenset({"binary"})

    def __init__(self, out: int, num_experts: int):
        super().__init__()
        self.out = out

    def forward(self, rows: Tensor, groups: Groups) -> Distribution:
        return Independent(Bernoulli(logits=rows, validate_args=False), 1)

    def mean(self, rows: Tensor, groups: Groups) -> Tensor:
        return rows.sigmoid()

    def working(self, loc: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Newton's step (iteratively reweighted least squares)."""
        p = loc.sigmoid()
        curvature = (p * (1 - p)).clamp_min(FLATTEST)
        return loc + (y[:, None] - p) / curvature, curvature

    def alone(self) -> Logistic:
        return Logistic(self.out, 1)
