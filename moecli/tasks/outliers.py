"""Two regression lines and a share of outliers far below both (Chamroukhi, 2016)."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from moecli.tasks.kinds import Regression
from moecli.tasks.task import InMemory, Split, generator
from moecli.types import NonNegativeFloat, Probability, Seed, SeveralRows

STEEPNESS = 10.0  # of the logistic gate between the lines
OUTLIER_AT = -2.0
REGIMES = ["rising line", "falling line", "outlier"]


class Outliers(InMemory):
    """x uniform in [-1, 1]; y = x with probability sigmoid(10 x), else y = -x; plus noise, or y = -2.

    Training and validation rows are outliers with probability ``share``, test rows never, so that a test
    error says how well the lines were kept.  ``noise`` is the scale of the noise, a standard deviation
    where it is normal.  Labels: regime (which line drew the point, or none), outlier.
    """

    def __init__(
        self,
        rows: SeveralRows = 500,
        share: Probability = 0.05,
        noise: NonNegativeFloat = 0.1,
        kind: Literal["normal", "laplace", "student_t"] = "normal",
        split_seed: Seed = 0,
    ):
        draw = generator(split_seed, 4)
        self.feature_names = ["x"]
        sizes = {"train": (rows, share), "valid": (max(rows // 4, 1), share), "test": (2 * rows, 0.0)}
        splits = {name: _drawn(count, part, noise, kind, draw) for name, (count, part) in sizes.items()}
        self.adopt(splits, Regression(("y",)), {"regime": list(REGIMES), "outlier": ["no", "yes"]})

    def grid(self) -> Tensor:
        return torch.linspace(-1.1, 1.1, 221)[:, None]


def true_mean(x: Tensor) -> Tensor:
    """E[y | x] without outliers: x sigmoid(10 x) - x sigmoid(-10 x)."""
    return x * (STEEPNESS * x / 2).tanh()


def _drawn(count: int, share: float, noise: float, kind: str, draw: torch.Generator) -> Split:
    x = torch.rand(count, generator=draw) * 2 - 1
    rising = torch.rand(count, generator=draw) < (STEEPNESS * x).sigmoid()
    line = torch.where(rising, x, -x) + noise * unit_noise(kind, count, draw)
    outlier = torch.rand(count, generator=draw) < share
    y = line.masked_fill(outlier, OUTLIER_AT)
    regime = (~rising).long().masked_fill(outlier, REGIMES.index("outlier"))
    return Split(x[:, None], y[:, None], {"regime": regime, "outlier": outlier.long()})


def unit_noise(kind: str, count: int, draw: torch.Generator) -> Tensor:
    """Noise of scale one: normal, Laplace, or Student's t with 5 degrees of freedom."""
    normal = torch.randn(count, generator=draw)
    if kind == "normal":
        return normal
    if kind == "laplace":  # the difference of two exponentials
        one, other = -torch.rand(2, count, generator=draw).clamp_min(1e-7).log()
        return one - other
    return normal / (torch.randn(5, count, generator=draw).square().mean(0)).sqrt()
