"""A time-delay gate over items of frames: the Meta-pi network's own (Hampshire & Waibel, 1989)."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from moecli.errors import DataError
from moecli.gates.gate import Gate, affine
from moecli.types import PositiveInt


class Tdnn(Gate):
    """Logits = V mean_t relu(U [h_t ... h_{t+second-1}]) + b, h_t = relu(W [x_t ... x_{t+first-1}]) (Waibel et al., 1989).

    Items are (T, D): T frames of D features, T at least ``first + second - 1``.  It hears the same sound that the
    experts do, and says who should be believed.  Raises DataError for items of fewer frames.
    """

    needs = frozenset({"item rank 2"})

    def __init__(
        self,
        dim: int,
        num_experts: int,
        hidden: PositiveInt = 8,
        first: PositiveInt = 3,
        second: PositiveInt = 5,
    ):
        super().__init__()
        self.first, self.second = first, second
        self.early, self.late = nn.Linear(first * dim, hidden), nn.Linear(second * hidden, hidden)
        self.answer = nn.Linear(hidden, num_experts)

    def forward(self, x: Tensor) -> Tensor:  # (N, T, D) -> (N, E)
        least = self.first + self.second - 1
        if x.shape[1] < least:
            raise DataError(
                f"items of {x.shape[1]} frames (gate.first={self.first}, gate.second={self.second}): the windows span "
                f"{least}. Lower gate.first or gate.second"
            )
        hidden = F.relu(affine(windows(x, self.first), self.early))  # (N, T', H)
        evidence = F.relu(affine(windows(hidden, self.second), self.late))  # (N, T'', H)
        return affine(evidence.mean(1), self.answer)


def windows(x: Tensor, width: int) -> Tensor:  # (N, T, D) -> (N, T - width + 1, D width)
    return x.unfold(1, width, 1).flatten(2)
