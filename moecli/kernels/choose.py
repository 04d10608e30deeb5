"""Which kernel serves experts of matrices: one rule by shape, device and dtype."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from moecli.errors import UsageError
from moecli.kernels import layout
from moecli.kernels.layout import Layout
from moecli.kernels.matmul import padding

KERNELS = {
    "loop": "torch's own operators, expert by expert: the reference",
    "padded": "one batched product for all experts, each group padded to the largest",
    "grouped": "torch's grouped_mm over groups of any size",
    "each": "one expert after the other in the processor's cache, groups padded to 32 rows where that pays",
}
ALIGNED = 16  # bytes that grouped_mm wants rows to begin at a multiple of
FEW = 128  # rows of a group, on average, below which the calls for each expert cost more than they save
CACHE = 2**20  # hidden units of all rows that still fit into the cache
SMALL = 2**15  # numbers of a matrix so small that its calls cost more than padding
UNEVEN = 2  # largest group, as a multiple of the average one, that is still worth padding to
_forced: ContextVar[str | None] = ContextVar("kernel", default=None)


@contextmanager
def using(kernel: str | None) -> Iterator[None]:
    """Serve all experts of matrices by this kernel, wherever it can; None leaves it to the rule."""
    token = _forced.set(kernel)
    try:
        yield
    finally:
        _forced.reset(token)


def chosen(plan: Any, x: Tensor, widths: tuple[int, ...]) -> str:
    """The name in ``KERNELS`` for a plan, x (N, D) and the widths D, F, Y of the experts' matrices.

    Raises UsageError for a forced kernel that cannot serve them.
    """
    forced = _forced.get()
    if forced == "grouped" and not can_group(x, widths):
        raise UsageError(
            f"--kernel grouped: grouped_mm takes float32, float16 and bfloat16 of widths that are multiples of "
            f"{ALIGNED} bytes, not {x.dtype} of widths {', '.join(map(str, widths))}. Choose another kernel"
        )
    return forced or _best(plan, x, widths)


def _best(plan: Any, x: Tensor, widths: tuple[int, ...]) -> str:
    """By what was measured: ``python benchmarks/kernels.py --rule``."""
    rows, units = len(plan.token), len(plan.token) * widths[1]
    if x.device.type != "cpu":
        return "grouped" if can_group(x, widths) else "each" if x.is_cuda else "loop"
    if x.dtype == torch.bfloat16:
        even = int(plan.groups.counts.max()) * plan.num_experts <= UNEVEN * rows
        return "padded" if even and (units < 2 * CACHE or widths[0] * widths[1] <= SMALL) else "each"
    if units >= CACHE and rows >= FEW * plan.num_experts:
        return "each"
    return "grouped" if can_group(x, widths) else "loop"


def can_group(x: Tensor, widths: tuple[int, ...]) -> bool:
    """Whether torch here has ``grouped_mm`` for these."""
    types = (torch.bfloat16,) if x.is_cuda else (torch.float32, torch.bfloat16, torch.float16)
    fits = all(width * x.element_size() % ALIGNED == 0 for width in widths)
    return hasattr(F, "grouped_mm") and x.dtype in types and fits


def laid_out(kernel: str, plan: Any, x: Tensor, widths: tuple[int, ...]) -> Layout:
    """The rows of a sparse plan as a kernel wants them."""
    if plan.even and kernel == "padded":
        return layout.even(plan.token, plan.num_experts, plan.num_tokens)
    where = plan.token, plan.expert, plan.groups.counts, plan.num_tokens
    if kernel == "grouped":
        return layout.ragged(*where)
    return (layout.padded if kernel == "padded" else layout.each)(*where, padding(x, widths[0] * widths[1]))
