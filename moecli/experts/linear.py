"""Linear experts, stacked: one weight (E, D, Y) serves all (Jordan & Jacobs, 1994)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from moecli.experts.experts import Experts, affordable
from moecli.experts.least_squares import Normal, normal_equations
from moecli.experts.matrices import MatrixExperts
from moecli.plan import Dense, Groups, Plan


def grouped_linear(rows: Tensor, weight: Tensor, groups: Groups) -> Tensor:
    """rows (R, D) sorted by expert, weight (E, D, F) -> (R, F); the loop is the reference."""
    if groups.even:
        return torch.bmm(rows.view(len(weight), -1, rows.shape[-1]), weight).flatten(0, 1)
    return torch.cat([r @ w for r, w in zip(groups.split(rows), weight.unbind(), strict=True)])


class Linear(MatrixExperts):
    """f_e(x) = x W_e + b_e; initialised like ``torch.nn.Linear``, each expert apart."""

    gives = frozenset({"expert fit", "linear experts"})

    def __init__(self, dim: int, out: int, num_experts: int, bias: bool = True):
        super().__init__()
        self.num_experts = num_experts
        bound = dim**-0.5
        self.weight = nn.Parameter(torch.empty(num_experts, dim, out).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.empty(num_experts, out).uniform_(-bound, bound)) if bias else None

    def matrices(self) -> list[str | None]:
        return ["weight", None if self.bias is None else "bias", None, None, None, None]

    def forward(self, rows: Tensor, groups: Groups) -> Tensor:  # (R, D) -> (R, Y)
        y = grouped_linear(rows, self.weight.to(rows.dtype), groups)
        return y if self.bias is None else y + groups.spread(self.bias.to(rows.dtype), len(rows))

    def of_all(self, x: Tensor) -> Tensor:  # (N, D) -> (E N, Y)
        """What every expert says of every row, from x as it lies."""
        wide, weight = x.expand(self.num_experts, *x.shape), self.weight.to(x.dtype)
        bias = None if self.bias is None else self.bias.to(x.dtype)[:, None]
        return (torch.bmm(wide, weight) if bias is None else torch.baddbmm(bias, wide, weight)).flatten(0, 1)

    def rows(self, plan: Plan, x: Tensor) -> Tensor:  # (N, D) -> (R, Y)
        """Where all rows go to all experts, one product with all weights, and no copy of x for each."""
        if not isinstance(plan, Dense):
            return super().rows(plan, x)
        y = x @ self.weight.to(x.dtype).transpose(0, 1).flatten(1)  # (N, D) (D, E Y) -> (N, E Y)
        if self.bias is not None:
            y = y + self.bias.to(y.dtype).flatten()
        return y.unflatten(1, self.weight.shape[::2]).transpose(0, 1).flatten(0, 1)  # -> (E N, Y)

    def flops(self) -> int:
        return 2 * self.weight[0].numel()

    def twin(self, flops: float) -> Experts:
        """A linear map cannot be widened, so its twin has one hidden ReLU layer."""
        _, dim, out = self.weight.shape
        return affordable(dim, out, flops)

    @torch.no_grad()
    def normal(self, x: Tensor, z: Tensor, w: Tensor) -> Normal:
        one = x if self.bias is None else torch.cat([x, torch.ones_like(x[:, :1])], -1)
        return normal_equations(one, z, w)

    @torch.no_grad()
    def solve(self, normal: Normal) -> None:
        weight = self.weight.mT  # (E, Y, D)
        beta = weight if self.bias is None else torch.cat([weight, self.bias[..., None]], -1)
        beta = normal.step(beta.to(normal.cross.dtype))
        self.weight.copy_(beta[..., : weight.shape[-1]].mT)
        if self.bias is not None:
            self.bias.copy_(beta[..., -1])
