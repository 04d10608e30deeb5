"""Feed-forward experts, stacked: ReLU, GELU or SwiGLU, with or without an output layer."""

from __future__ import annotations

from typing import Literal

import torch.nn.functional as F
from torch import Tensor

from moecli.errors import UsageError
from moecli.experts.experts import Experts
from moecli.experts.linear import Linear
from moecli.plan import Groups
from moecli.types import PositiveInt


class FeedForward(Experts):
    """f_e(x) = act(x U_e) V_e, or (silu(x U_e) * (x G_e)) V_e for SwiGLU (Shazeer, 2020).

    Without ``output`` the expert is act(x U_e) alone, and ``hidden`` gives way to the width asked for.
    Raises UsageError for SwiGLU without an output layer.
    """

    def __init__(
        self,
        dim: int,
        out: int,
        num_experts: int,
        hidden: PositiveInt = 128,
        activation: Literal["relu", "gelu", "swiglu"] = "relu",
        output: bool = True,
        bias: bool = True,
    ):
        super().__init__()
        if activation == "swiglu" and not output:
            raise UsageError(
                "expert.activation=swiglu with expert.output=false: a gated product is made to be projected. "
                "Set expert.output=true, or expert.activation=relu"
            )
        hidden = hidden if output else out
        self.num_experts, self.activation, self.bias = num_experts, activation, bias
        self.up = Linear(dim, hidden, num_experts, bias)
        self.gate = Linear(dim, hidden, num_experts, bias) if activation == "swiglu" else None
        self.down = Linear(hidden, out, num_experts, bias) if output else None

    def forward(self, rows: Tensor, groups: Groups) -> Tensor:  # (R, D) -> (R, Y)
        hidden = self.up(rows, groups)  # (R, F)
        if self.gate is not None:
            hidden = F.silu(hidden) * self.gate(rows, groups)
        else:
            hidden = F.relu(hidden) if self.activation == "relu" else F.gelu(hidden)
        return hidden if self.down is None else self.down(hidden, groups)

    def flops(self) -> int:
        return sum(part.flops() for part in self.children() if isinstance(part, Linear))

    def twin(self, flops: float) -> Experts:
        """As many hidden units as ``flops`` pays for; without an output layer one is added to pay with."""
        _, dim, width = self.up.weight.shape
        out = width if self.down is None else self.down.weight.shape[-1]
        per_hidden = 2 * (dim * (1 if self.gate is None else 2) + out)
        hidden = max(1, round(flops / per_hidden))
        return FeedForward(dim, out, 1, hidden, self.activation, True, self.bias)
