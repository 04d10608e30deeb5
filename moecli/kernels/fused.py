"""Experts of one or two layers as one function with a derivative of its own.

y_n = sum over the edges of token n of w act(x_n U_e [, x_n G_e]) V_e.  Rows are gathered stretch by stretch and never
kept; what is kept for the backward pass is x and the hidden units before their activation.  A weight's gradient is
written where it stays, and the gradient of an edge's log-weight is <dh, h> of its weighted hidden units, so that no
expert's output is kept either.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from moecli.kernels.activations import Activation
from moecli.kernels.layout import Layout, Stretch


class Matrices(NamedTuple):
    """Of all experts: (E, D, F) and (E, F) up, likewise gate where the activation is gated, (E, F, Y) and (E, Y) down."""

    up: Tensor
    up_bias: Tensor | None = None
    gate: Tensor | None = None
    gate_bias: Tensor | None = None
    down: Tensor | None = None
    down_bias: Tensor | None = None

    @property
    def inward(self) -> list[tuple[Tensor, Tensor | None]]:
        """What reads x: up, and gate where there is one."""
        return [(self.up, self.up_bias)] + ([] if self.gate is None else [(self.gate, self.gate_bias)])


@dataclass(frozen=True)
class Work:
    """What is to be done: over which rows, and whether they come back as rows or summed over each token's edges.

    ``reference(x, log_weight, *matrices)`` is the same by torch's own operators, for derivatives of derivatives.
    """

    layout: Layout
    activation: Activation
    combined: bool
    reference: Callable[..., Tensor]


def apply(work: Work, x: Tensor, log_weight: Tensor, matrices: Matrices) -> Tensor:
    """x (N, D), log_weight (R,) -> (N, Y), or where not ``combined`` (R, Y)."""
    if torch.is_grad_enabled():
        return _Fused.apply(work, x, log_weight, *matrices)
    return _forward(work, x, _weight(work, x, log_weight), matrices)[0]


def _weight(work: Work, x: Tensor, log_weight: Tensor) -> Tensor:  # (R,) -> (P,)
    return work.layout.spread(log_weight.exp().to(x.dtype))


def _forward(work: Work, x: Tensor, weight: Tensor, matrices: Matrices) -> tuple[Tensor, list[Tensor]]:
    """The answer, and the hidden units of each stretch before their activation."""
    layout, kept, y = work.layout, list[Tensor](), _Whole(work.layout)
    for stretch in layout.stretches:
        rows = x.index_select(0, layout.token[stretch.places])
        before = [stretch.product(rows, *pair) for pair in matrices.inward]
        hidden = work.activation.value(*before)
        y.put(stretch, hidden if matrices.down is None else stretch.product(hidden, matrices.down, matrices.down_bias))
        kept += before
    return layout.combine(y.value, weight) if work.combined else layout.gather(y.value), kept


class _Whole:
    """A tensor (P, ...) of parts that come stretch by stretch, each copied while it is in the cache."""

    def __init__(self, layout: Layout):
        self.layout, self.value = layout, torch.empty(0)

    def put(self, stretch: Stretch, part: Tensor) -> None:
        if len(self.layout.stretches) == 1:
            self.value = part
            return
        if not len(self.value):
            self.value = part.new_empty(self.layout.num_places, *part.shape[1:])
        self.value[stretch.places] = part


class _Fused(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, work: Work, x: Tensor, log_weight: Tensor, *matrices: Tensor | None) -> Tensor:
        weight = _weight(work, x, log_weight)
        y, kept = _forward(work, x, weight, Matrices(*matrices))  # type: ignore[arg-type]
        ctx.work = work
        ctx.save_for_backward(x, log_weight, *matrices, weight, *kept)
        return y

    @staticmethod
    def backward(ctx: Any, d: Tensor) -> tuple[Any, ...]:
        x, log_weight, *rest = ctx.saved_tensors
        matrices, weight, kept = Matrices(*rest[:6]), rest[6], rest[7:]
        if torch.is_grad_enabled():
            return None, *_differentiable(ctx, d, [x, log_weight, *matrices])
        wanted = dict(zip(("x", "log_weight", *Matrices._fields), ctx.needs_input_grad[1:], strict=True))
        return None, *_Backward(ctx.work, x, weight, matrices, wanted).run(d.contiguous(), kept)


class _Backward:
    """One backward pass: the gradients that are wanted, filled stretch by stretch."""

    def __init__(self, work: Work, x: Tensor, weight: Tensor, matrices: Matrices, wanted: dict[str, bool]):
        self.work, self.x, self.weight, self.matrices, self.wanted = work, x, weight, matrices, wanted
        self.of = dict[str, Tensor]()
        self.of_x, self.of_log_weight = _Whole(work.layout), _Whole(work.layout)
        self.spare = x.new_empty(work.activation.spare, work.layout.largest, matrices.up.shape[-1])

    def run(self, d: Tensor, kept: Sequence[Tensor]) -> list[Tensor | None]:
        """d (N, Y) or (R, Y) -> the gradients of x, log_weight and the six matrices."""
        layout, number = self.work.layout, len(self.matrices.inward)
        d = d if self.work.combined else layout.spread(d)
        for index, stretch in enumerate(layout.stretches):
            self._stretch(stretch, d, kept[index * number : (index + 1) * number])
        of_x = layout.combine(self.of_x.value) if self.wanted["x"] else None
        of_log_weight = layout.gather(self.of_log_weight.value) if self._weighs else None
        return [of_x, of_log_weight, *(self.of.get(name) for name in Matrices._fields)]

    def _stretch(self, stretch: Stretch, d: Tensor, before: Sequence[Tensor]) -> None:
        token = self.work.layout.token[stretch.places]
        dy = d[stretch.places]
        if self.work.combined:
            dy = d.index_select(0, token).mul_(self.weight[stretch.places, None])
        down = self.matrices.down
        dh = dy if down is None else stretch.product(dy, down.mT)
        spare = self.spare[:, : len(dh)].unbind()
        hidden, *inward = self.work.activation.derivative(dh, spare, *before)
        if self._weighs:
            self.of_log_weight.put(stretch, self._log_weight(stretch, dy, dh, hidden))
        if down is not None:
            self._matrix("down", stretch, hidden, dy)
        rows = self.x.index_select(0, token)
        for name, du in zip(("up", "gate"), inward, strict=False):
            self._matrix(name, stretch, rows, du)
        if self.wanted["x"]:
            self.of_x.put(stretch, self._inputs(stretch, inward))

    @property
    def _weighs(self) -> bool:
        return self.work.combined and self.wanted["log_weight"]

    def _log_weight(self, stretch: Stretch, dy: Tensor, dh: Tensor, hidden: Tensor) -> Tensor:  # -> (P,)
        """<dy, y> by way of the hidden units, because y is not kept."""
        found = torch.linalg.vecdot(dh, hidden)
        bias = self.matrices.down_bias
        return found if bias is None else found.add_(torch.linalg.vecdot(dy, stretch.spread(bias)))

    def _matrix(self, name: str, stretch: Stretch, a: Tensor, b: Tensor) -> None:
        if self.wanted[name]:
            self.of[name] = stretch.gradient(a, b, self.of.get(name))
        if self.wanted[bias := f"{name}_bias"]:
            self.of[bias] = stretch.sums(b, self.of.get(bias))

    def _inputs(self, stretch: Stretch, inward: Sequence[Tensor]) -> Tensor:  # -> (P, D)
        first, *others = zip(inward, self.matrices.inward, strict=True)
        total = stretch.product(first[0], first[1][0].mT)
        for du, (matrix, _) in others:
            total = stretch.add_product(total, du, matrix.mT)
        return total


def _differentiable(ctx: Any, d: Tensor, inputs: Sequence[Tensor | None]) -> list[Tensor | None]:
    """The same gradients with a graph of their own; aliases of the inputs keep paths between inputs out of it."""
    aliases = [None if t is None else t.view_as(t) for t in inputs]
    wanted = [t for t, want in zip(aliases, ctx.needs_input_grad[1:], strict=True) if want]
    found = iter(torch.autograd.grad(ctx.work.reference(*aliases), wanted, d, create_graph=True, allow_unused=True))  # type: ignore[arg-type]
    return [next(found) if want else None for want in ctx.needs_input_grad[1:]]
