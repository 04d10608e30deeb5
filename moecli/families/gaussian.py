"""Normal targets around each expert's output, with one scale per expert and target."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.distributions import Distribution, Independent, Normal

from moecli.families.family import Family
from moecli.plan import Groups
from moecli.types import PositiveFloat


class Gaussian(Family):
    """p_e(y | x) = N(y; f_e(x), diag scale_e^2) (Jacobs et al., 1991, with the scale learned).

    ``min_scale`` keeps one expert from closing in on one point, where the likelihood has no bound.
    """

    needs = frozenset({"real"})
    gives = Family.gives | {"family fit"}

    def __init__(self, out: int, num_experts: int, min_scale: PositiveFloat = 1e-3):
        super().__init__()
        self.log_scale = nn.Parameter(torch.zeros(num_experts, out))
        self.min_scale = min_scale

    @property
    def scale(self) -> Tensor:  # (E, Y)
        return self.log_scale.exp().clamp_min(self.min_scale)

    def forward(self, rows: Tensor, groups: Groups) -> Distribution:
        return Independent(Normal(rows, groups.spread(self.scale, len(rows)), validate_args=False), 1)

    def working(self, loc: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        return y[:, None].expand_as(loc), torch.ones_like(loc)

    @torch.no_grad()
    def fit(self, loc: Tensor, y: Tensor, resp: Tensor) -> None:
        """The weighted mean square error is the scale's maximum likelihood."""
        share = resp / resp.sum(0).clamp_min(1e-12)
        var = torch.einsum("ne,ney->ey", share, (y[:, None] - loc).square())
        self.log_scale.copy_(0.5 * var.clamp_min(self.min_scale**2).log())

    def alone(self) -> Gaussian:
        return Gaussian(self.log_scale.shape[1], 1, self.min_scale)
