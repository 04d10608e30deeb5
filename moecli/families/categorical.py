"""Class targets: each expert's output is a vector of logits."""

from __future__ import annotations

from torch import Tensor
from torch.distributions import Categorical as CategoricalDistribution
from torch.distributions import Distribution

from moecli.families.family import Family
from moecli.plan import Groups


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

    def alone(self) -> Categorical:
        return Categorical(self.out, 1)
