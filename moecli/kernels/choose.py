"""Which kernel serves experts of matrices: one rule by shape, device and dtype."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch
import torch.nn.functional as F
from torch import Tensor

from moecli.errors import UsageError
from moecli.kernels import layout
from moecli.kernels.layout import Layout
from moecli.kernels.matmul import PAD, padding
from moecli.plan import Sparse

KERNELS = {
    "loop": "torch's own operators, expert by expert: the reference",
    "padded": "one batched product for all experts, each group padded to the largest",
    "grouped": "torch's grouped_mm over groups of any size",
    "each": "one expert after the other in the processor's cache, groups padded to 32 rows where that pays",
}
ALIGNED = 16  # bytes that grouped_mm wants rows to begin at a multiple of
FEW = 128  # rows of a group, on average, below which the calls for each expert cost more than they save
CACHE = 2**20  # hidden units of all rows that still fit into the cache
TINY, SMALL = 2**16, 2**18  # bytes of a matrix so small that its calls cost more than padding, or than much padding
UNEVEN = 2  # largest group, as a multiple of the average one, that is still worth padding to
_forced: ContextVar[str | None] = ContextVar("kernel", default=None)
_seen: ContextVar[set[str] | None] = ContextVar("seen", default=None)


@contextmanager
def using(kernel: str | None) -> Iterator[None]:
    """Serve all experts of matrices by this kernel, wherever it can; None leaves it to the rule."""
    token = _forced.set(kernel)
    try:
        yield
    finally:
        _forced.reset(token)


@contextmanager
def watching() -> Iterator[set[str]]:
    """What is yielded holds the kernels that were chosen meanwhile: none where nothing but the loop can serve."""
    seen: set[str] = set()
    token = _seen.set(seen)
    try:
        yield seen
    finally:
        _seen.reset(token)


def chosen(plan: Sparse, x: Tensor, widths: tuple[int, ...]) -> str:
    """The name in ``KERNELS`` for a plan, x (N, D) and the widths D, F, Y of the experts' matrices.

    Raises UsageError for a forced kernel that cannot serve them.
    """
    forced = _forced.get()
    if forced == "grouped" and not can_group(x, widths):
        raise UsageError(
            f"--kernel grouped: grouped_mm takes float32, float16 and bfloat16 of widths that are multiples of "
            f"{ALIGNED} bytes, not {str(x.dtype)[6:]} of widths {', '.join(map(str, widths))}. Choose another kernel"
        )
    kernel = forced or _best(plan, x, widths)
    if (seen := _seen.get()) is not None:
        seen.add(kernel)
    return kernel


def _best(plan: Sparse, x: Tensor, widths: tuple[int, ...]) -> str:
    """By what was measured: ``python benchmarks/kernels.py --rule``."""
    without = "grouped" if can_group(x, widths) else "loop"
    if x.device.type != "cpu":
        return "each" if x.is_cuda and without == "loop" else without
    rows, half = len(plan.token), x.dtype == torch.bfloat16
    units, few = rows * widths[1], rows < FEW * plan.num_experts
    parallel = torch.get_num_threads() > 1  # which batched products keep busy; bfloat16's code is compiled once for all
    size = widths[0] * widths[1] * x.element_size()
    narrow = size <= TINY or (size <= SMALL and (few or (parallel and units < 2 * CACHE)))
    if narrow and (half or parallel) and _is_even(plan):
        return "padded"
    return "each" if not few and (half or units >= CACHE) else without


def _is_even(plan: Sparse) -> bool:
    mean = len(plan.token) / plan.num_experts
    return int(plan.groups.counts.max()) <= max(UNEVEN * mean, PAD)


def can_group(x: Tensor, widths: tuple[int, ...]) -> bool:
    """Whether torch here has ``grouped_mm`` for these."""
    types = (torch.bfloat16,) if x.is_cuda else (torch.float32, torch.bfloat16, torch.float16)
    fits = all(width * x.element_size() % ALIGNED == 0 for width in widths)
    return hasattr(F, "grouped_mm") and x.dtype in types and fits


def laid_out(kernel: str, plan: Sparse, x: Tensor, widths: tuple[int, ...]) -> Layout:
    """The rows of a sparse plan as a kernel wants them."""
    if plan.even and kernel == "padded":
        return layout.even(plan.token, plan.num_experts, plan.num_tokens)
    where = plan.token, plan.expert, plan.groups.counts, plan.num_tokens
    if kernel == "grouped":
        return layout.ragged(*where)
    return (layout.padded if kernel == "padded" else layout.each)(*where, padding(x, widths[0] * widths[1]))
