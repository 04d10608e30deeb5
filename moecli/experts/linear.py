"""Linear experts, stacked: one weight (E, D, Y) serves all (Jordan & Jacobs, 1994)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from moecli.experts.experts import Experts, affordable
from moecli.plan import Groups


def grouped_linear(rows: Tensor, weight: Tensor, groups: Groups) -> Tensor:
    """rows (R, D) sorted by expert, weight (E, D, F) -> (R, F); the loop is the reference."""
    if groups.even:
        return torch.bmm(rows.view(len(weight), -1, rows.shape[-1]), weight).flatten(0, 1)
    return torch.cat([r @ w for r, w in zip(groups.split(rows), weight.unbind(), strict=True)])


class Linear(Experts):
    """f_e(x) = x W_e + b_e; initialised like ``torch.nn.Linear``, each expert apart."""

    gives = frozenset({"expert fit"})

    def __init__(self, dim: int, out: int, num_experts: int, bias: bool = True):
        super().__init__()
        self.num_experts = num_experts
        bound = dim**-0.5
        self.weight = nn.Parameter(torch.empty(num_experts, dim, out).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.empty(num_experts, out).uniform_(-bound, bound)) if bias else None

    def forward(self, rows: Tensor, groups: Groups) -> Tensor:  # (R, D) -> (R, Y)
        y = grouped_linear(rows, self.weight.to(rows.dtype), groups)
        return y if self.bias is None else y + groups.spread(self.bias.to(rows.dtype), len(rows))

    def flops(self) -> int:
        return 2 * self.weight[0].numel()

    def twin(self, flops: float) -> Experts:
        """A linear map cannot be widened, so its twin has one hidden ReLU layer."""
        return affordable(*self.weight.shape[1:], flops)

    @torch.no_grad()
    def fit(self, x: Tensor, z: Tensor, w: Tensor, ridge: float = 1e-9) -> None:
        """Per expert and output, with a ``ridge`` of that share of the mean diagonal against collinear columns."""
        one = torch.cat([x, torch.ones_like(x[:, :1])], -1) if self.bias is not None else x
        gram = torch.einsum("nd,ney,nf->eydf", one, w, one)
        scale = gram.diagonal(dim1=-2, dim2=-1).mean(-1)[..., None, None].clamp_min(1e-12)
        eye = torch.eye(one.shape[1], dtype=x.dtype, device=x.device)
        beta = torch.linalg.solve(gram + ridge * scale * eye, torch.einsum("nd,ney->eyd", one, w * z))
        self.weight.copy_(beta[..., : x.shape[1]].transpose(1, 2))
        if self.bias is not None:
            self.bias.copy_(beta[..., -1])
