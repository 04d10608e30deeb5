"""Class targets: each expert's output is a vector of logits."""

from __future__ import annotations

from torch import Tensor
from torch.distributions import Categorical as CategoricalDistribution
from torch.distributions import Distribution
from torch.nn.functional import one_hot

from moecli.families.family import Family
from moecli.plan import Groups

FLATTEST = 1e-8  # curvature: less would let one step of a certain row go anywhere


class Categorical(Family):
    """p_e(y | x) = softmax(f_e(x))_y: the mixture is one of softmaxes (Waterhouse & Robinson, 1994)."""

    needs = frozenset({"classes"})

    def __init__(self, out: int, num_experts: int):
        super().__init__()
        self.out = out

    def forward(self, rows: Tensor, groups: Groups) -> Distribution:
        return CategoricalDistribution(logits=rows, validate_args=False)

    def mean(self, rows: Tensor, groups: Groups) -> Tensor:
        return rows.softmax(-1)

    def working(self, loc: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Each class by itself: diag(p) - p p^T is at most 2 diag(p (1 - p)), with equality for two classes."""
        p = loc.softmax(-1)
        curvature = (2 * p * (1 - p)).clamp_min(FLATTEST)
        hit = one_hot(y, loc.shape[-1]).to(loc.dtype)  # (N,) -> (N, Y)
        return loc + (hit[:, None] - p) / curvature, curvature

    def alone(self) -> Categorical:
        return Categorical(self.out, 1)
