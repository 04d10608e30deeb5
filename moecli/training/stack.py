"""Many small trainings as one: ``trainer.stack`` of a sweep, for runs that differ in seed, rates and weights alone.

Each run keeps its own loop, record and checkpoints; only the step is shared.  One forward and backward pass over the
stacked models gives every run the gradient that it would have had, and one optimizer steps for all of them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor

from moecli.errors import Interrupted
from moecli.models.lanes import usages
from moecli.models.stacked import Stacked
from moecli.routing import Routing
from moecli.training.gradient import (
    LOOK,
    Best,
    Gradient,
    Job,
    Loop,
    random_state,
    require_finite,
    restore_random_state,
)
from moecli.training.stacked_objective import StackedObjective
from moecli.training.stacked_optimizer import StackedOptimizer, settings
from moecli.training.stop import listening


@dataclass(eq=False)
class Lane:
    """One of the trainings: the generators as its model left them, and the error that ended it."""

    plan: Gradient
    job: Job
    random: dict[str, Tensor] = field(default_factory=random_state)
    error: Exception | None = None
    loop: Any = None  # a Loop, from its beginning on

    def do(self, act: Callable[..., Any], *given: Any) -> None:
        """Whatever goes wrong is this run's own."""
        try:
            act(*given)
        except Exception as error:
            self.error = error

    def do_at_random(self, act: Callable[..., Any], *given: Any) -> None:
        """What a lane does with its own random numbers."""
        restore_random_state(self.random)
        self.do(act, self, *given)
        self.random = random_state()

    def begin(self) -> None:
        self.loop = Loop(self.plan, self.job, None)

    def keep(self, step: int) -> None:
        self.loop.keep(step)

    def leave(self, step: int, code: int) -> None:
        self.loop.save(step)
        raise Interrupted(f"stopped after step {step} of {self.plan.steps}", code)


def fit_together(lanes: Sequence[Lane]) -> list[Best | Exception]:
    """Train all in lock-step from their first step; the best evaluation of each, or the error that ended it.

    A run that fails leaves the others alone; where a signal asked to stop, all are saved and end with Interrupted.
    """
    with listening() as stop:
        for lane in lanes:
            lane.do_at_random(Lane.begin)
        stack = _standing(lanes)
        for step in range(lanes[0].plan.steps):
            if stack is None:
                break
            stack.train(step)
            if stack.lanes[0].loop.is_due(step + 1):
                stack.each(Lane.keep, step + 1)
            if stop.signal is not None:
                stack.each(Lane.leave, step + 1, 128 + stop.signal)
            if any(lane.error for lane in stack.lanes):
                stack = _standing(lanes)
    return [lane.error or lane.loop.best for lane in lanes]


def _standing(lanes: Sequence[Lane]) -> Stack | None:
    """Those that have not ended, as one; equal optimizers side by side."""
    left = [lane for lane in lanes if lane.error is None]
    for lane in left:
        lane.loop.refresh()  # who stood in another stack takes its optimizer's state along
    return Stack(sorted(left, key=lambda lane: settings(lane.loop))) if left else None


class Stack:
    """Runs whose next step is one."""

    def __init__(self, lanes: Sequence[Lane]):
        self.lanes, loops = lanes, [lane.loop for lane in lanes]
        self.plan, self.task, self.device = lanes[0].plan, lanes[0].job.task, lanes[0].job.device
        self.seeds = tuple(lane.job.seed for lane in lanes)
        self.model = Stacked([lane.job.model for lane in lanes])
        self.objective = StackedObjective([lane.job.objective for lane in lanes], self.device)
        self.leaves = [leaf for leaf, _ in self.model.leaves if leaf.requires_grad]
        clips = [lane.plan.clip or math.inf for lane in lanes]
        self.clip = torch.tensor(clips, dtype=torch.float64, device=self.device)
        self.optimizer = StackedOptimizer(loops, self.model)
        for number, loop in enumerate(loops):
            loop.refresh = partial(self.optimizer.hand_out, number, loop)

    def each(self, act: Callable[..., Any], *given: Any) -> None:
        for lane in self.lanes:
            if lane.error is None:
                lane.do_at_random(act, *given)

    def train(self, step: int) -> None:
        batch = self.task.train_batches(step, self.plan.batch_size, self.seeds).to(self.device)
        output = self.model(batch.x, batch.known)
        losses = self.objective(output, batch.target, batch.weight)
        found = torch.autograd.grad(losses["total"].sum(), self.leaves, allow_unused=True)
        grads = [None if grad is None else grad.contiguous() for grad in found]
        norm = self._clipped(grads)
        self._check(losses["total"].detach(), norm, step)
        self.optimizer.step(step, dict(zip(self.leaves, grads, strict=True)))  # also of a lane that ends with its error
        if step % LOOK == 0:
            self._look(step, {**losses, "grad_norm": norm}, output.routings)

    def _clipped(self, grads: Sequence[Tensor | None]) -> Tensor:
        """Each run's gradient to at most its norm, as ``clip_grad_norm_`` does; the norms before, (L,)."""
        own = [grad.view(len(self.lanes), -1) for grad in grads if grad is not None]
        norm = torch.stack([part.norm(dim=1) for part in own]).norm(dim=0)
        scale = (self.clip / (norm + 1e-6)).clamp_max(1.0)
        if bool((scale < 1).any()):
            for part in own:
                part.mul_(scale[:, None].to(part.dtype))
        return norm

    def _check(self, total: Tensor, norm: Tensor, step: int) -> None:
        """One number at a time would wait for the device at each."""
        for lane, loss, size in zip(self.lanes, total.tolist(), norm.tolist(), strict=True):
            lane.do(require_finite, loss, size, step)

    def _look(self, step: int, losses: Mapping[str, Tensor], routings: Mapping[str, Routing]) -> None:
        used = {name: usages(routing, len(self.lanes)) for name, routing in routings.items()}
        values = {name: value.detach().unbind() for name, value in losses.items()}
        for number, lane in enumerate(self.lanes):
            if lane.error is None:
                own = {name: value[number] for name, value in values.items()}
                lane.do(lane.loop.look, step, own, {name: of[number] for name, of in used.items()})
