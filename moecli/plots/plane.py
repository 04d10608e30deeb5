"""A grid over the plane as an image: where its rows lie, and colours of the expert that a gate prefers there."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.colors import to_rgb

from moecli.plots.figure import colors

Array = np.ndarray[Any, Any]
Extent = tuple[float, float, float, float]  # left, right, bottom, top
PALEST = 0.12  # opacity where the gate's favourite has no more than an even share


@dataclass(frozen=True)
class Plane:
    """Rows of a grid, put in the order of an image."""

    order: Array  # (M,) x fastest, so that rows of the image are values of y
    across: Array  # (W,) values of x
    up: Array  # (H,) values of y

    @classmethod
    def of(cls, x: Array) -> Plane | None:
        """Of points (M, D); None where they are no grid over two features."""
        if x.shape[1] != 2:
            return None
        across, up = (np.unique(column) for column in x.T)
        whole = len(across) * len(up) == len(x) and min(len(across), len(up)) >= 2
        return cls(np.lexsort(x.T), across, up) if whole else None

    def image(self, values: Array) -> Array:  # (M, ...) -> (H, W, ...)
        return values[self.order].reshape(len(self.up), len(self.across), *values.shape[1:])

    @property
    def extent(self) -> Extent:
        """Outer edges of the grid's cells."""
        half_x, half_y = (self.across[1] - self.across[0]) / 2, (self.up[1] - self.up[0]) / 2
        return self.across[0] - half_x, self.across[-1] + half_x, self.up[0] - half_y, self.up[-1] + half_y


def belief(expert: Array, prob: Array, num_experts: int) -> Array:
    """The favourite's colour, as strong as the gate is sure: (H, W), (H, W) -> (H, W, 3)."""
    uniform = 1 / num_experts
    palette = np.array([to_rgb(color) for color in colors(num_experts)])
    sure = np.clip((prob - uniform) / max(1 - uniform, 1e-9), 0, 1)
    return tint(palette[expert], PALEST + (1 - PALEST) * sure)


def tint(rgb: Array, strength: Array) -> Array:
    """Mixed with white: (H, W, 3), (H, W) -> (H, W, 3)."""
    return 1 - (1 - rgb) * strength[..., None]
