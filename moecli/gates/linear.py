"""One score per expert, linear in x (Jacobs et al., 1991)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from moecli.gates.gate import Gate, affine
from moecli.gates.logit import Logit

MOST_NEWTON = 512  # coefficients; with more, the Hessian costs more than L-BFGS takes


class Linear(Gate):
    """Multinomial logistic regression: logits = W x + b.

    EM fits it by Newton's method on the exact Hessian (Jordan & Jacobs, 1994, algorithm 1), or by L-BFGS where
    it has more than 512 coefficients.  Where classes are separable the likelihood rises for ever, so Newton's
    steps see a ridge of 1e-10 a row on standardised columns, which stops the log-odds near 20.
    """

    gives = Gate.gives | {"linear gate"}

    def __init__(self, dim: int, num_experts: int, bias: bool = True):
        super().__init__()
        self.linear = nn.Linear(dim, num_experts, bias)
        if (dim + 1) * (num_experts - 1) <= MOST_NEWTON:
            self.inner = 1  # of Newton's: more make EM neither shorter nor better (benchmarks/classical.py)

    def forward(self, x: Tensor) -> Tensor:  # (N, D) -> (N, E)
        return affine(x, self.linear)

    def fit(self, x: Tensor, resp: Tensor, steps: int = 25) -> None:
        """Raise sum_n,e resp log p(e | x); what would lower it, if only by rounding, is undone."""
        total = float(resp.sum(dtype=torch.float64))
        coefficients = (self.linear.in_features + 1) * (self.linear.out_features - 1)
        if not total > 0 or not coefficients:
            return
        if coefficients > MOST_NEWTON:
            super().fit(x, resp, steps)
        else:
            self._newton(x, resp.double() / total, steps)

    @torch.no_grad()
    def _newton(self, x: Tensor, resp: Tensor, steps: int) -> None:
        units = Units.of(x, centred=self.linear.bias is not None)
        problem = Logit(units.standardised(x), resp.T.contiguous())
        before, start = [p.clone() for p in self.parameters()], units.inward(self.linear)
        units.outward(problem.fit(start, steps), self.linear)
        if not problem.log_likelihood(units.inward(self.linear)) >= problem.log_likelihood(start):
            for parameter, old in zip(self.parameters(), before, strict=True):
                parameter.copy_(old)


@dataclass(frozen=True)
class Units:
    """Columns in units of their spread, around their mean where a bias makes up for it."""

    shift: Tensor  # (D,) float64
    scale: Tensor  # (D,) float64
    centred: bool

    @classmethod
    def of(cls, x: Tensor, centred: bool) -> Units:
        shift = x.mean(0, dtype=torch.float64) * centred
        spread, size = ((x - s).square().mean(0).sqrt() for s in (shift, torch.zeros_like(shift)))
        constant = spread <= 1e-12 * size.clamp_min(1e-300)
        return cls(shift, torch.where(constant, 1.0, spread), centred)

    def standardised(self, x: Tensor) -> Tensor:  # (N, D) -> (F, N) float64
        u = ((x - self.shift) / self.scale).T.contiguous()
        return F.pad(u, (0, 0, 0, 1), value=1.0) if self.centred else u

    def inward(self, linear: nn.Linear) -> Tensor:
        """The layer as coefficients (E - 1, F) of standardised columns, against the last expert's."""
        weight = linear.weight.double()
        v = weight * self.scale  # (E, D)
        if linear.bias is not None:
            v = torch.cat([v, (linear.bias.double() + weight @ self.shift)[:, None]], 1)
        return v[:-1] - v[-1]

    def outward(self, v: Tensor, linear: nn.Linear) -> None:
        """Write coefficients (E - 1, F) into the layer, with mean zero over the experts."""
        v = F.pad(v, (0, 0, 0, 1))
        v = v - v.mean(0)
        weight = v[:, : len(self.scale)] / self.scale
        linear.weight.copy_(weight)
        if linear.bias is not None:
            linear.bias.copy_(v[:, -1] - linear.weight.double() @ self.shift)
