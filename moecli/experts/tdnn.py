"""Time-delay experts: the same small network at every place of a sequence of frames, then the mean over time."""

from __future__ import annotations

import torch
from torch import Tensor

from moecli.errors import DataError
from moecli.experts.experts import Experts
from moecli.experts.linear import Linear
from moecli.plan import Groups
from moecli.types import PositiveInt


class Tdnn(Experts):
    """f_e(x) = mean_t V_e relu(U_e [h_t ... h_{t+second-1}]), h_t = relu(W_e [x_t ... x_{t+first-1}]) (Waibel et al., 1989).

    Items are (T, D): T frames of D features, T at least ``first + second - 1``.  The windows' weights are
    shared over time, so a shift of the sound shifts the evidence and leaves its mean nearly as it was.
    """

    needs = frozenset({"item rank 2"})

    def __init__(
        self,
        dim: int,
        out: int,
        num_experts: int,
        hidden: PositiveInt = 8,
        first: PositiveInt = 3,
        second: PositiveInt = 5,
    ):
        super().__init__()
        self.num_experts, self.first, self.second = num_experts, first, second
        self.early = Linear(first * dim, hidden, num_experts)
        self.late = Linear(second * hidden, hidden, num_experts)
        self.answer = Linear(hidden, out, num_experts)
        self.frames = 0  # of the items seen last: what a row costs depends on it

    def forward(self, rows: Tensor, groups: Groups) -> Tensor:  # (R, T, D) -> (R, Y)
        self._check(rows.shape[1])
        hidden = self._slide(self.early, rows, self.first, groups).relu()  # (R, T', H)
        evidence = self._slide(self.late, hidden, self.second, groups).relu()  # (R, T'', H)
        return self.answer(evidence.mean(1), groups)

    @staticmethod
    def _slide(layer: Linear, x: Tensor, width: int, groups: Groups) -> Tensor:  # (R, T, D) -> (R, T - width + 1, H)
        windows = x.unfold(1, width, 1)  # (R, T', D, width)
        at_each = Groups(groups.counts * windows.shape[1], groups.even)
        return layer(windows.flatten(2).flatten(0, 1), at_each).unflatten(0, windows.shape[:2])

    def _check(self, frames: int) -> None:
        least = self.first + self.second - 1
        if frames < least:
            raise DataError(
                f"items of {frames} frames (expert.first={self.first}, expert.second={self.second}): the windows span "
                f"{least}. Lower expert.first or expert.second"
            )
        self.frames = frames

    def flops(self) -> int:
        """Of the items seen last; before any, of the shortest that the windows allow."""
        early = max(self.frames, self.first + self.second - 1) - self.first + 1
        return early * self.early.flops() + (early - self.second + 1) * self.late.flops() + self.answer.flops()

    def twin(self, flops: float) -> Experts:
        """As many hidden units as ``flops`` pays for: their number is the root of a square."""
        dim, out = self.early.weight.shape[1] // self.first, self.answer.weight.shape[-1]
        early = max(self.frames, self.first + self.second - 1) - self.first + 1
        square, line = 2 * (early - self.second + 1) * self.second, 2 * (early * self.first * dim + out)
        hidden = (torch.tensor(line**2 + 4 * square * flops).sqrt().item() - line) / (2 * square)
        twin = Tdnn(dim, out, 1, max(1, round(hidden)), self.first, self.second)
        twin.frames = self.frames
        return twin
