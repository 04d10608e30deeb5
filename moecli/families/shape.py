"""log x - digamma(x) = gap: the equation behind a gamma's shape and a Student t's degrees of freedom."""

from __future__ import annotations

import math

import torch
from torch import Tensor

HALVINGS = 60  # of the interval of log x: beyond float64's digits


def solve_shape(gap: Tensor, low: float, high: float) -> Tensor:
    """The x in [low, high] that comes nearest to the equation, by bisection; the left side falls with x."""
    bottom, top = torch.full_like(gap, math.log(low)), torch.full_like(gap, math.log(high))
    for _ in range(HALVINGS):
        middle = (bottom + top) / 2
        too_small = middle - middle.exp().digamma() > gap
        bottom, top = torch.where(too_small, middle, bottom), torch.where(too_small, top, middle)
    return ((bottom + top) / 2).exp()
