"""Experts in another order: the same mixture under other names, so that tables of fits can be compared."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from moecli.mixture import MixtureDensity
from moecli.routing import Tokens


@torch.no_grad()
def reordered(layer: MixtureDensity, order: Tensor, x: Tensor) -> MixtureDensity:
    """A copy whose expert e is the layer's expert ``order[e]``, (E,); the layer itself where its parts do not allow it.

    Gate, experts and family are permuted along their parameters' first axis, which is that of experts for all
    that EM fits in closed form.  Whether it was is checked on the rows x (N, *item): a tree's nodes, or
    a hidden layer of as many units as there are experts, would change what the mixture says.
    """
    if bool((order == torch.arange(len(order))).all()):
        return layer
    there = copy.deepcopy(layer)
    for part in (there.router.gate, there.experts, there.family):
        if not _permute(part, order):  # type: ignore[arg-type]  # needs: gate fit
            return layer
    return there if _same(layer, there, order, x) else layer


def _permute(part: nn.Module, order: Tensor) -> bool:
    tensors = [*part.parameters(), *part.buffers()]
    if any(t.ndim == 0 or len(t) != len(order) for t in tensors):
        return False
    for tensor in tensors:
        tensor.copy_(tensor[order].clone())
    return True


def _same(layer: MixtureDensity, there: MixtureDensity, order: Tensor, x: Tensor) -> bool:
    """Whether every expert kept its share and its answer of each row."""
    before, after = (one(Tokens.items(x[:256])) for one in (layer, there))
    rows = [mixture.row_mean.view(len(order), -1) for mixture in (before, after)]
    return torch.allclose(before.routing.probs[:, order], after.routing.probs, atol=1e-9) and torch.allclose(
        rows[0][order], rows[1], rtol=1e-9, atol=1e-9
    )
