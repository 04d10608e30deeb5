"""One score per expert, linear in x (Jacobs et al., 1991)."""

from __future__ import annotations

from torch import Tensor, nn

from moecli.gates.gate import Gate, affine


class Linear(Gate):
    """Multinomial logistic regression: logits = W x + b."""

    def __init__(self, dim: int, num_experts: int, bias: bool = True):
        super().__init__()
        self.linear = nn.Linear(dim, num_experts, bias)

    def forward(self, x: Tensor) -> Tensor:  # (N, D) -> (N, E)
        return affine(x, self.linear)
