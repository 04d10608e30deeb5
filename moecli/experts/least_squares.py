"""Weighted least squares for all experts at once, from sums over rows."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from moecli.kernels.algebra import products

RIDGES = (1e-10, 1e-6, 1e-2)  # of the scaled Gram matrix; the next one where the factorisation breaks down
AT_ONCE = 2**20  # numbers of the table of products; a larger one leaves the cache


@dataclass(frozen=True)
class Normal:
    """The normal equations: gram (E, 1 or Y, P, P) and cross (E, Y, P); additive over rows."""

    gram: Tensor
    cross: Tensor

    def __add__(self, other: Normal) -> Normal:
        return Normal(self.gram + other.gram, self.cross + other.cross)

    def __mul__(self, share: float) -> Normal:
        return Normal(self.gram * share, self.cross * share)

    def step(self, beta: Tensor) -> Tensor:
        """From ``beta`` (E, Y, P) to the solution.

        Solved for the change, so that the ridge holds on to ``beta`` instead of zero: where columns are
        collinear, or an expert has no rows, what the data leave open stays, and the fit never worsens.
        """
        size = self.gram.diagonal(dim1=-2, dim2=-1).clamp_min(torch.finfo(beta.dtype).tiny).sqrt()
        scaled = self.gram / size[..., None] / size[..., None, :]
        gradient = (self.cross - (self.gram @ beta[..., None])[..., 0]) / size  # (E, Y, P)
        factor = _factor(scaled).expand(*beta.shape[:2], -1, -1)
        return beta + torch.cholesky_solve(gradient[..., None], factor)[..., 0] / size


def _factor(gram: Tensor) -> Tensor:
    """Cholesky's, of each matrix with the smallest ridge that allows it."""
    eye = torch.eye(gram.shape[-1], dtype=gram.dtype, device=gram.device)
    factor, failed = torch.linalg.cholesky_ex(gram + RIDGES[0] * eye)
    for ridge in RIDGES[1:]:
        if not bool(failed.any()):
            break
        again, still = torch.linalg.cholesky_ex(gram + ridge * eye)
        factor = torch.where((failed > 0)[..., None, None], again, factor)
        failed = torch.where(failed > 0, still, failed)
    return factor


def normal_equations(x: Tensor, z: Tensor, w: Tensor) -> Normal:
    """Of responses z (N, E, Y) with weights w (N, E, 1 or Y) on x (N, P).

    Every expert's every moment comes from one matrix product with a table of the columns' products.
    """
    p = x.shape[1]
    upper = torch.triu_indices(p, p, device=x.device)
    rows = max(64, AT_ONCE // upper.shape[1])
    parts = zip(x.split(rows), w.split(rows), strict=True)
    packed = sum(products(part.T.contiguous()) @ weight.flatten(1) for part, weight in parts)  # (.., E * (1 or Y))
    gram = x.new_empty(p, p, packed.shape[1])
    gram[upper[0], upper[1]] = gram[upper[1], upper[0]] = packed
    cross = x.mT @ (w * z).flatten(1)  # (P, E Y)
    e, y = z.shape[1:]
    return Normal(gram.permute(2, 0, 1).reshape(e, -1, p, p), cross.mT.reshape(e, y, p))
