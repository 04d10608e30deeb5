"""Feed-forward experts, stacked: ReLU, GELU, SwiGLU plain or clamped, with or without an output layer."""

from __future__ import annotations

from typing import Literal

import torch.nn.functional as F
from torch import Tensor

from moecli.errors import UsageError
from moecli.experts.experts import Experts
from moecli.experts.linear import Linear
from moecli.experts.matrices import MatrixExperts
from moecli.kernels.activations import ACTIVATIONS
from moecli.plan import Dense, Groups, Plan
from moecli.types import PositiveInt, Probability

Name = Literal["relu", "gelu", "swiglu", "clamped_swiglu"]


class FeedForward(MatrixExperts):
    """f_e(x) = act(x U_e) V_e, or (silu(x U_e) * (x G_e)) V_e for SwiGLU (Shazeer, 2020).

    ``clamped_swiglu`` keeps u = x U_e below 7 and g = x G_e within 7 of zero, and is
    u sigmoid(1.702 u) * (g + 1), near GELU(u) (g + 1) (gpt-oss, 2025).
    In training ``dropout`` of the hidden units are zero (expert dropout, Fedus et al., 2021).
    Without ``output`` the expert is act(x U_e) alone, and ``hidden`` gives way to the width asked for.
    Raises UsageError for a gated activation without an output layer.
    """

    def __init__(
        self,
        dim: int,
        out: int,
        num_experts: int,
        hidden: PositiveInt = 128,
        activation: Name = "relu",
        output: bool = True,
        bias: bool = True,
        dropout: Probability = 0.0,
    ):
        super().__init__()
        gated = ACTIVATIONS[activation].gated
        if gated and not output:
            raise UsageError(
                f"expert.activation={activation} with expert.output=false: a gated product is made to be projected. "
                "Set expert.output=true, or expert.activation=relu"
            )
        hidden = hidden if output else out
        self.num_experts, self.bias, self.dropout = num_experts, bias, dropout
        self.activation: Name = activation
        self.up = Linear(dim, hidden, num_experts, bias)
        self.gate = Linear(dim, hidden, num_experts, bias) if gated else None
        self.down = Linear(hidden, out, num_experts, bias) if output else None

    def forward(self, rows: Tensor, groups: Groups) -> Tensor:  # (R, D) -> (R, Y)
        return self._answer([part(rows, groups) for part in self._inward], groups)

    @property
    def _inward(self) -> list[Linear]:
        """What reads x."""
        return [self.up] if self.gate is None else [self.up, self.gate]

    def _answer(self, before: list[Tensor], groups: Groups) -> Tensor:  # (R, F) each -> (R, Y)
        hidden = F.dropout(ACTIVATIONS[self.activation].value(*before), self.dropout, self.training)
        return hidden if self.down is None else self.down(hidden, groups)

    def matrices(self) -> list[str | None]:
        parts = {"up": self.up, "gate": self.gate, "down": self.down}
        weights = [None if part is None else f"{name}.weight" for name, part in parts.items()]
        biases = [None if part is None or part.bias is None else f"{name}.bias" for name, part in parts.items()]
        return [name for pair in zip(weights, biases, strict=True) for name in pair]

    @property
    def drops_out(self) -> bool:
        return self.training and self.dropout > 0

    def rows(self, plan: Plan, x: Tensor) -> Tensor:  # (N, D) -> (R, Y)
        """Where all rows go to all experts, each reads x itself and no copy of it."""
        if not isinstance(plan, Dense):
            return super().rows(plan, x)
        return self._answer([part.of_all(x) for part in self._inward], plan.groups)

    def flops(self) -> int:
        return sum(part.flops() for part in self.children() if isinstance(part, Linear))

    def twin(self, flops: float) -> Experts:
        """As many hidden units as ``flops`` pays for; without an output layer one is added to pay with."""
        _, dim, width = self.up.weight.shape
        out = width if self.down is None else self.down.weight.shape[-1]
        per_hidden = 2 * (dim * (1 if self.gate is None else 2) + out)
        hidden = max(1, round(flops / per_hidden))
        return FeedForward(dim, out, 1, hidden, self.activation, True, self.bias, self.dropout)
