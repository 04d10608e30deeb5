"""A normal distribution of each row whose covariance belongs to the row's expert."""

from __future__ import annotations

import math
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.distributions import Distribution

from moecli.plan import Groups


class Correlated(Distribution):
    """N(rows, L_e L_e^T): batch (R,), event (Y,).  Each factor is inverted once, not once a row."""

    arg_constraints: ClassVar[dict[str, Any]] = {}

    def __init__(self, rows: Tensor, factor: Tensor, groups: Groups):
        """``rows`` (R, Y); ``factor`` (E, Y, Y) lower triangular with a positive diagonal."""
        self.rows, self.factor, self.groups = rows, factor, groups
        super().__init__(rows.shape[:1], rows.shape[1:], validate_args=False)

    def log_prob(self, y: Tensor) -> Tensor:  # (R, Y) -> (R,)
        eye = torch.eye(y.shape[-1], dtype=self.factor.dtype, device=y.device)
        whiten = torch.linalg.solve_triangular(self.factor, eye, upper=False)  # (E, Y, Y)
        parts = zip(self.groups.split(y - self.rows), whiten, strict=True)
        distance = torch.cat([(error @ w.mT).square().sum(-1) for error, w in parts])  # (R,)
        log_det = self.factor.diagonal(dim1=-2, dim2=-1).log().sum(-1)  # (E,)
        return -0.5 * (distance + y.shape[-1] * math.log(2 * math.pi)) - self.groups.spread(log_det, len(y))

    def sample(self, sample_shape: Any = ()) -> Tensor:  # (R, Y); only one draw of each row
        assert not tuple(sample_shape)
        noise = torch.randn(*self.rows.shape, dtype=self.rows.dtype, device=self.rows.device)
        return self.rows + torch.cat(
            [part @ factor.mT for part, factor in zip(self.groups.split(noise), self.factor, strict=True)]
        )

    @property
    def mean(self) -> Tensor:  # (R, Y)
        return self.rows

    @property
    def variance(self) -> Tensor:  # (R, Y)
        return self.groups.spread(self.factor.square().sum(-1), len(self.rows))
