"""Which places of a sequence count: a target of -1 is none, of padding, of a source, of an instruction."""

from __future__ import annotations

import torch
from torch import Tensor


def is_scored(target: Tensor) -> Tensor | None:
    """Where there is a target: bool in the shape of classes (B,) or (B, T); None for targets that are real numbers."""
    return None if target.is_floating_point() else target >= 0


def number_scored(target: Tensor) -> Tensor | None:
    """How many places of each example count, (B, T) -> (B,); None where all count in every example."""
    scored = is_scored(target)
    if scored is None or target.ndim < 2 or bool(scored.all()):
        return None
    return scored.sum(-1)


def mean_scored(values: Tensor, target: Tensor) -> Tensor:
    """The mean of values (B, ...) over the places of each example that count, zero where none does: (B,)."""
    values = values.view(len(target), -1)
    scored = number_scored(target)
    if scored is None:
        return values.mean(-1)
    return torch.where(target >= 0, values, 0.0).sum(-1) / scored.clamp_min(1)
