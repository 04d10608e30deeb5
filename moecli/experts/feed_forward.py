"""Feed-forward experts, stacked: ReLU, GELU, SwiGLU plain or clamped, with or without an output layer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch.nn.functional as F
from torch import Tensor

from moecli.errors import UsageError
from moecli.experts.experts import Experts
from moecli.experts.linear import Linear
from moecli.plan import Groups
from moecli.types import PositiveInt, Probability


def swiglu(up: Tensor, gate: Tensor) -> Tensor:
    return F.silu(up) * gate


def clamped_swiglu(up: Tensor, gate: Tensor, limit: float = 7.0, slope: float = 1.702) -> Tensor:
    up, gate = up.clamp(max=limit), gate.clamp(-limit, limit)
    return up * (slope * up).sigmoid() * (gate + 1)


PLAIN: dict[str, Callable[[Tensor], Tensor]] = {"relu": F.relu, "gelu": F.gelu}
GATED: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"swiglu": swiglu, "clamped_swiglu": clamped_swiglu}


class FeedForward(Experts):
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
        activation: Literal["relu", "gelu", "swiglu", "clamped_swiglu"] = "relu",
        output: bool = True,
        bias: bool = True,
        dropout: Probability = 0.0,
    ):
        super().__init__()
        if activation in GATED and not output:
            raise UsageError(
                f"expert.activation={activation} with expert.output=false: a gated product is made to be projected. "
                "Set expert.output=true, or expert.activation=relu"
            )
        hidden = hidden if output else out
        self.num_experts, self.activation, self.bias, self.dropout = num_experts, activation, bias, dropout
        self.up = Linear(dim, hidden, num_experts, bias)
        self.gate = Linear(dim, hidden, num_experts, bias) if activation in GATED else None
        self.down = Linear(hidden, out, num_experts, bias) if output else None

    def forward(self, rows: Tensor, groups: Groups) -> Tensor:  # (R, D) -> (R, Y)
        hidden = self._activated(self.up(rows, groups), rows, groups)  # (R, F)
        hidden = F.dropout(hidden, self.dropout, self.training)
        return hidden if self.down is None else self.down(hidden, groups)

    def _activated(self, up: Tensor, rows: Tensor, groups: Groups) -> Tensor:  # (R, F), (R, D) -> (R, F)
        if self.gate is None:
            return PLAIN[self.activation](up)
        return GATED[self.activation](up, self.gate(rows, groups))

    def flops(self) -> int:
        return sum(part.flops() for part in self.children() if isinstance(part, Linear))

    def twin(self, flops: float) -> Experts:
        """As many hidden units as ``flops`` pays for; without an output layer one is added to pay with."""
        _, dim, width = self.up.weight.shape
        out = width if self.down is None else self.down.weight.shape[-1]
        per_hidden = 2 * (dim * (1 if self.gate is None else 2) + out)
        hidden = max(1, round(flops / per_hidden))
        return FeedForward(dim, out, 1, hidden, self.activation, True, self.bias, self.dropout)
