"""One optimizer that steps for L runs, whose own optimizers hold views of its state whenever they are looked at."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import torch
from torch import Tensor, nn

from moecli.models.stacked import Stacked
from moecli.training.gradient import Loop

# Those that step every number of a parameter by itself, so that a slice of a stack steps as it would alone.
ELEMENTWISE = frozenset(
    {"SGD", "Adam", "AdamW", "Adamax", "NAdam", "RAdam", "RMSprop", "Adagrad", "Adadelta", "ASGD", "Rprop"}
)


def settings(loop: Loop) -> str:
    """All that an optimizer's step depends on beside parameters and gradients."""
    groups = [{k: v for k, v in group.items() if k not in ("params", "lr")} for group in loop.optimizer.param_groups]
    return repr((loop.rates, groups, type(loop.job.schedule), vars(loop.job.schedule)))


class StackedOptimizer:
    """A group of parameters for each stretch of neighbours with the same settings."""

    def __init__(self, loops: Sequence[Loop], model: Stacked):
        self.groups: list[tuple[Loop, float]] = []  # whose schedule it follows, and the rate at its top
        self.parts: list[Part] = []
        groups, leaves = [], {own[0]: (leaf, own) for leaf, own in model.leaves}
        for stretch in _alike(loops):
            leader = loops[stretch.start]
            for index, (rate, group) in enumerate(zip(leader.rates, leader.optimizer.param_groups, strict=True)):
                firsts = [p for p in loops[0].optimizer.param_groups[index]["params"] if p.requires_grad]
                parts = [Part.of(*leaves[p], stretch) for p in firsts]
                groups.append({**group, "params": [part.value for part in parts]})
                self.groups.append((leader, rate))
                self.parts += parts
        kind: Any = type(loops[0].optimizer)
        self.inner: torch.optim.Optimizer = kind(groups)
        for part in self.parts:
            part.adopt(self.inner, loops)

    def step(self, step: int, grads: Mapping[nn.Parameter, Tensor | None]) -> None:
        for group, (loop, top) in zip(self.inner.param_groups, self.groups, strict=True):
            group["lr"] = top * loop.job.schedule(step, loop.plan.steps)
        for part in self.parts:
            part.take(grads[part.leaf])
        self.inner.step()

    def hand_out(self, number: int, loop: Loop) -> None:
        """Let run ``number``'s own optimizer have the state that it would have had by itself."""
        for part in self.parts:
            if number in range(part.stretch.start, part.stretch.stop):
                part.hand_out(self.inner, number, loop)


def _alike(loops: Sequence[Loop]) -> list[slice]:
    """Stretches of runs with the same settings."""
    found, start = [], 0
    for _, run in groupby(loops, key=settings):
        found.append(slice(start, start := start + len(list(run))))
    return found


@dataclass(eq=False)
class Part:
    """What an optimizer sees of a leaf: the lanes of one stretch."""

    leaf: nn.Parameter
    own: Sequence[nn.Parameter]  # of all runs
    stretch: slice
    value: Tensor

    @classmethod
    def of(cls, leaf: nn.Parameter, own: Sequence[nn.Parameter], stretch: slice) -> Part:
        return cls(leaf, own, stretch, leaf.detach()[_rows(leaf, own, stretch)])

    def take(self, grad: Tensor | None) -> None:
        self.value.grad = None if grad is None else grad[_rows(self.leaf, self.own, self.stretch)]

    def adopt(self, optimizer: torch.optim.Optimizer, loops: Sequence[Loop]) -> None:
        """Go on from the states of the runs' own optimizers, where they have one."""
        pairs = list(zip(loops, self.own, strict=True))[self.stretch]
        states = [loop.optimizer.state.get(parameter, {}) for loop, parameter in pairs]
        if all(states):
            optimizer.state[self.value] = {key: self._joined([state[key] for state in states]) for key in states[0]}

    def _joined(self, values: Sequence[Any]) -> Any:
        """A counter is the same for all."""
        if not isinstance(values[0], Tensor) or values[0].ndim == 0:
            return values[0].clone() if isinstance(values[0], Tensor) else values[0]
        return torch.stack(list(values)).view_as(self.value)

    def hand_out(self, optimizer: torch.optim.Optimizer, number: int, loop: Loop) -> None:
        parameter = self.own[number]
        state = {key: self._of_run(value, number) for key, value in optimizer.state.get(self.value, {}).items()}
        if state:
            loop.optimizer.state[parameter] = state

    def _of_run(self, value: Any, number: int) -> Any:
        if not isinstance(value, Tensor) or value.ndim == 0:
            return value
        return value.view(-1, *self.own[number].shape)[number - self.stretch.start]


def _rows(leaf: nn.Parameter, own: Sequence[nn.Parameter], stretch: slice) -> slice:
    """Along the leaf's first axis, which holds L runs or the L E experts of them."""
    each = len(leaf) // len(own)
    return slice(stretch.start * each, stretch.stop * each)
