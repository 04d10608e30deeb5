"""Every expert counts the same: with router=dense, the ensemble."""

from __future__ import annotations

from torch import Tensor

from moecli.gates.gate import Gate


class Uniform(Gate):
    """p(e | x) = 1 / E, without parameters: y = mean_e f_e(x), or the mean of the experts' densities."""

    needs = frozenset({"every expert"})
    blind = True

    def __init__(self, num_experts: int):
        super().__init__()
        self.num_experts = num_experts

    def forward(self, x: Tensor) -> Tensor:  # (N, ...) -> (N, E)
        return x.new_zeros(len(x), self.num_experts)

    def fit(self, x: Tensor, resp: Tensor, steps: int = 0) -> None:
        """Nothing to fit: the shares are fixed."""
