"""What each row's distribution says of one target by itself: P(target <= y), for intervals of a mixture."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Distribution, Gamma, Independent, Laplace, Normal, Poisson, StudentT

from moecli.families.correlated import Correlated


def marginal_cdf(components: Distribution, y: Tensor) -> Tensor | None:
    """y (R, Y) -> (R, Y); None where targets have no order, or are only 0 and 1."""
    if isinstance(components, Correlated):
        return Normal(components.mean, components.variance.sqrt(), validate_args=False).cdf(y)
    base: Any = components.base_dist if isinstance(components, Independent) else components
    of_kind = CDF.get(type(base))
    return None if of_kind is None else of_kind(base, y)


def _student_t(base: Any, y: Tensor) -> Tensor:
    from scipy.special import stdtr

    z = ((y - base.loc) / base.scale).detach()
    return torch.as_tensor(stdtr(base.df.detach().cpu().numpy(), z.cpu().numpy())).to(y)


def _poisson(base: Any, y: Tensor) -> Tensor:
    """Q(floor y + 1, rate), the upper incomplete gamma function."""
    return torch.special.gammaincc(y.floor().clamp_min(0.0) + 1, base.rate) * (y >= 0)


CDF: dict[type, Callable[[Any, Tensor], Tensor]] = {
    Normal: lambda base, y: base.cdf(y),
    Laplace: lambda base, y: base.cdf(y),
    StudentT: _student_t,
    Gamma: lambda base, y: base.cdf(y.clamp_min(0.0)),
    Poisson: _poisson,
}
