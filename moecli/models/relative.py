"""Relative positions: a learned number for how far a key lies from its query, which attention adds to its logits."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from moecli.errors import UsageError


class RelativePositions(nn.Module):
    """b(h, i, j) = table[bucket(j - i), h], one table for all layers of a stack (Raffel et al., 2020, section 2.1).

    Raises UsageError where the buckets are too few, or reach further than ``distance``.
    """

    def __init__(self, dim: int, heads: int, causal: bool, buckets: int = 32, distance: int = 128):
        super().__init__()
        if buckets < 4 or buckets % 4 or distance <= buckets // 2:
            raise UsageError(
                f"model.buckets={buckets} (model.distance={distance}): each direction has half of them, and half of those "
                "are of one place each. Give a multiple of 4, and a distance of more than half of it"
            )
        self.causal, self.buckets, self.distance = causal, buckets, distance
        self.table = nn.Embedding(buckets, heads)
        nn.init.normal_(self.table.weight, std=dim**-0.5)

    def forward(self, new: int, seen: int) -> Tensor:
        """Of the last ``new`` = T queries to all ``seen`` = L keys: (H, T, L)."""
        place = torch.arange(seen, device=self.table.weight.device)
        ahead = place - place[seen - new :, None]  # (T, L) from the query to the key
        return self.table(bucket(ahead, self.causal, self.buckets, self.distance)).permute(2, 0, 1)


def bucket(ahead: Tensor, causal: bool, buckets: int = 32, distance: int = 128) -> Tensor:
    """Which bucket a distance falls into: int64, half of them of one place each, the others logarithmically wider.

    Without ``causal`` the upper half of all buckets is of keys ahead of their query; with it those share bucket 0.
    From ``distance`` on all distances share the last bucket.
    """
    side = torch.zeros_like(ahead)
    if not causal:
        buckets //= 2
        side = (ahead > 0) * buckets
    far = -ahead.clamp_max(0) if causal else ahead.abs()
    exact = buckets // 2
    wider = (far.clamp_min(1) / exact).log() / math.log(distance / exact) * (buckets - exact)
    return side + torch.where(far < exact, far, (exact + wider.long()).clamp_max(buckets - 1))
