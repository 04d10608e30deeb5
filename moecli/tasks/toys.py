"""Small problems whose regimes are planted, so that what a router finds can be held against the truth."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from moecli.tasks.kinds import Classification, Regression
from moecli.tasks.task import InMemory, Split, generator, three_way
from moecli.types import NonNegativeFloat, PositiveInt, Seed, SeveralRows


class Piecewise(InMemory):
    """A line in each of ``regimes`` equal parts of [-1, 1], with jumps between and Gaussian noise."""

    def __init__(
        self,
        rows: SeveralRows = 1000,
        regimes: PositiveInt = 4,
        noise: NonNegativeFloat = 0.05,
        split_seed: Seed = 0,
    ):
        draw = generator(split_seed, 1)
        x = torch.rand(rows, 1, generator=draw) * 2 - 1
        regime = ((x[:, 0] + 1) / 2 * regimes).long().clamp_max(regimes - 1)
        slope, height = (torch.randn(regimes, generator=draw) for _ in range(2))
        center = (regime + 0.5) / regimes * 2 - 1
        y = height[regime] + slope[regime] * 2 * (x[:, 0] - center)
        y = (y + noise * torch.randn(rows, generator=draw))[:, None]
        self.feature_names = ["x"]
        kind = Regression(("y",))
        self.adopt(_split(x, y, regime, split_seed), kind, {"regime": _numbered(regimes)})

    def grid(self) -> Tensor:
        return torch.linspace(-1.1, 1.1, 221)[:, None]


class Spirals(InMemory):
    """Two intertwined spirals in the plane; the regime is the quarter turn a point lies in."""

    def __init__(
        self,
        rows: SeveralRows = 1500,
        turns: NonNegativeFloat = 1.5,
        noise: NonNegativeFloat = 0.03,
        split_seed: Seed = 0,
    ):
        draw = generator(split_seed, 2)
        arm = torch.arange(rows) % 2
        along = torch.rand(rows, generator=draw).sqrt()
        angle = along * turns * 2 * math.pi + arm * math.pi
        x = torch.stack([angle.cos(), angle.sin()], -1) * along[:, None]
        x = x + noise * torch.randn(rows, 2, generator=draw)
        quarter = (along * turns * 4).long().clamp_max(max(int(turns * 4) - 1, 0))
        self.feature_names = ["x", "y"]
        labels = {"class": ["arm 0", "arm 1"], "quarter turn": _numbered(int(quarter.max()) + 1)}
        parts = three_way(rows, split_seed)
        splits = {n: Split(x[i], arm[i], {"class": arm[i], "quarter turn": quarter[i]}) for n, i in parts.items()}
        self.adopt(splits, Classification(("arm 0", "arm 1")), labels)

    def grid(self) -> Tensor:
        return square_grid(1.15)


class Regions(InMemory):
    """The plane cut into ``regimes`` cells around random centres; each cell has a linear map of its own."""

    def __init__(
        self,
        rows: SeveralRows = 2000,
        regimes: PositiveInt = 4,
        noise: NonNegativeFloat = 0.05,
        split_seed: Seed = 0,
    ):
        draw = generator(split_seed, 3)
        x = torch.rand(rows, 2, generator=draw) * 2 - 1
        angle = (torch.arange(regimes) + torch.rand(1, generator=draw)) / regimes * 2 * math.pi
        centers = 0.7 * torch.stack([angle.cos(), angle.sin()], -1)
        regime = torch.cdist(x, centers).argmin(-1)
        weight = torch.randn(regimes, 2, generator=draw) * 2
        height = torch.randn(regimes, generator=draw)
        y = (x * weight[regime]).sum(-1) + height[regime] + noise * torch.randn(rows, generator=draw)
        self.feature_names = ["x", "y"]
        kind = Regression(("z",))
        self.adopt(_split(x, y[:, None], regime, split_seed), kind, {"regime": _numbered(regimes)})

    def grid(self) -> Tensor:
        return square_grid(1.1)


def square_grid(reach: float, side: int = 121) -> Tensor:  # -> (side^2, 2)
    axis = torch.linspace(-reach, reach, side)
    return torch.cartesian_prod(axis, axis)


def _split(x: Tensor, y: Tensor, regime: Tensor, seed: int) -> dict[str, Split]:
    return {name: Split(x[i], y[i], {"regime": regime[i]}) for name, i in three_way(len(x), seed).items()}


def _numbered(count: int) -> list[str]:
    return [str(number) for number in range(count)]
