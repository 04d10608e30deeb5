"""Experts that are one matrix, or two with an activation between: what kernels know how to serve."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor
from torch.func import functional_call

from moecli.experts.experts import Experts
from moecli.kernels import fused
from moecli.kernels.activations import ACTIVATIONS
from moecli.kernels.choose import chosen, laid_out
from moecli.kernels.fused import Matrices, Work
from moecli.plan import Plan, Sparse


class MatrixExperts(Experts):
    """A subclass names its parameters in the order of ``Matrices``, None for what it has not."""

    activation: str = "none"

    def matrices(self) -> list[str | None]:
        raise NotImplementedError

    @property
    def drops_out(self) -> bool:
        """Whether hidden units drop out now, which no kernel knows."""
        return False

    def rows(self, plan: Plan, x: Tensor) -> Tensor:  # (N, D) -> (R, Y)
        return self._served(plan, x, False, super().rows)

    def blend(self, plan: Plan, x: Tensor) -> Tensor:  # (N, D) -> (N, Y)
        return self._served(plan, x, True, super().blend)

    def _served(self, plan: Plan, x: Tensor, combined: bool, slow: Callable[[Plan, Tensor], Tensor]) -> Tensor:
        if not isinstance(plan, Sparse) or not len(plan.token) or x.ndim != 2 or self.drops_out:
            return slow(plan, x)
        x = _cast(x)
        named = dict(self.named_parameters())
        matrices = Matrices(*(None if name is None else named[name].to(x.dtype) for name in self.matrices()))  # type: ignore[arg-type]
        widths = (*matrices.up.shape[1:], *(matrices.down.shape[2:] if matrices.down is not None else ()))
        kernel = chosen(plan, x, widths)
        if kernel == "loop":
            rows = super().rows(plan, x)  # a slow blend would call our own rows, and choose again
            return plan.combine(rows) if combined else rows
        reference = self._reference(plan, combined)
        work = Work(laid_out(kernel, plan, x, widths), ACTIVATIONS[self.activation], combined, reference)
        with torch.autocast(x.device.type, enabled=False):
            return fused.apply(work, x, plan.log_weight, matrices)

    def _reference(self, plan: Sparse, combined: bool) -> Callable[..., Tensor]:
        """The same, (x, log_weight, *matrices) -> y, by the loop."""

        def reference(x: Tensor, log_weight: Tensor, *matrices: Tensor | None) -> Tensor:
            same = replace(plan, log_weight=log_weight)
            given = {name: m for name, m in zip(self.matrices(), matrices, strict=True) if name and m is not None}
            rows = functional_call(self, given, (same.dispatch(x), same.groups))
            return same.combine(rows) if combined else rows

        return reference


def _cast(x: Tensor) -> Tensor:
    """In the dtype that autocast multiplies in."""
    kind = x.device.type
    return x.to(torch.get_autocast_dtype(kind)) if torch.is_autocast_enabled(kind) else x
