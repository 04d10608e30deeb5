"""What hidden units do, with derivatives in as few passes over memory as torch's operators allow."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

aten: Any = torch.ops.aten
Derivative = Callable[..., tuple[Tensor, ...]]


@dataclass(frozen=True)
class Activation:
    """``value(up)``, or ``value(up, gate)`` of a gated one: (R, F) -> (R, F).

    ``derivative(d, spare, up[, gate])``, d the gradient of the value, gives the value again, and the gradients of its
    inputs.  It may put them into ``spare`` tensors (R, F) that it is given: memory that was written
    before is several times as fast as what the system has yet to hand out.
    """

    value: Callable[..., Tensor]
    derivative: Derivative
    gated: bool = False
    spare: int = 0


def swiglu(up: Tensor, gate: Tensor) -> Tensor:
    return F.silu(up) * gate


def clamped_swiglu(up: Tensor, gate: Tensor, limit: float = 7.0, slope: float = 1.702) -> Tensor:
    up, gate = up.clamp(max=limit), gate.clamp(-limit, limit)
    return up * (slope * up).sigmoid() * (gate + 1)


def _d_none(d: Tensor, spare: Sequence[Tensor], up: Tensor) -> tuple[Tensor, ...]:
    return up, d


def _d_relu(d: Tensor, spare: Sequence[Tensor], up: Tensor) -> tuple[Tensor, ...]:
    value = torch.clamp_min(up, 0, out=spare[0])
    return value, aten.threshold_backward.grad_input(d, up, 0, grad_input=spare[1])


def _d_gelu(d: Tensor, spare: Sequence[Tensor], up: Tensor) -> tuple[Tensor, ...]:
    return aten.gelu.out(up, out=spare[0]), aten.gelu_backward.grad_input(d, up, grad_input=spare[1])


def _d_swiglu(d: Tensor, spare: Sequence[Tensor], up: Tensor, gate: Tensor) -> tuple[Tensor, ...]:
    silu = aten.silu.out(up, out=spare[0])
    value = torch.mul(silu, gate, out=spare[1])
    d_up = torch.mul(d, gate, out=spare[2])
    return value, aten.silu_backward.grad_input(d_up, up, grad_input=d_up), silu.mul_(d)


def by_autograd(value: Callable[..., Tensor]) -> Derivative:
    """The derivative of any value, from a small graph of its own."""

    def derivative(d: Tensor, spare: Sequence[Tensor], *inputs: Tensor) -> tuple[Tensor, ...]:
        with torch.enable_grad():
            fresh = [x.detach().requires_grad_() for x in inputs]
            found = value(*fresh)
            return found.detach(), *torch.autograd.grad(found, fresh, d)

    return derivative


ACTIVATIONS = {
    "none": Activation(lambda up: up, _d_none),
    "relu": Activation(F.relu, _d_relu, spare=2),
    "gelu": Activation(F.gelu, _d_gelu, spare=2),
    "swiglu": Activation(swiglu, _d_swiglu, gated=True, spare=3),
    "clamped_swiglu": Activation(clamped_swiglu, by_autograd(clamped_swiglu), gated=True),
}
