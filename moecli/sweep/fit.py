"""Which trials can be: each is assembled before any is trained, and what does not go together is told at once."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from moecli.config import Composed, build
from moecli.errors import EnvironmentFailure, MoeError, UsageError
from moecli.run import Built, assemble
from moecli.sweep.plan import Plan, Point
from moecli.tasks.task import Task


def assembler() -> Callable[[Composed], Built]:
    """``assemble`` that reads a task's data once for all configurations which share it."""
    last: tuple[str, Task] | None = None

    def assembled(composed: Composed) -> Built:
        nonlocal last
        node = json.dumps(composed.config["task"], sort_keys=True, default=str)
        if last is None or last[0] != node:
            last = node, build(composed.config["task"])
        return assemble(composed, last[1])

    return assembled


def refuse_unfit(plan: Plan) -> None:
    """Mark the trials whose parts do not fit, and note the metric that trials are judged by.

    Values of the other keys are tried in each base until they have been seen to work once; a combination of
    them that nobody tried is refused when its run begins.  Raises the first refusal where no trial is left,
    and DataError where there are no data.
    """
    judge, seen = _Judge(), set[tuple[int, str, str]]()
    points = plan.points or [_first(plan, index) for index in range(len(plan.bases))]
    for at, point in enumerate(points):
        fresh = {(point.base, key, str(value)) for key, value in point.values.items()} | {(point.base, "", "")}
        if point.refused is None and not fresh <= seen:
            points[at] = judge.judged(plan, point)
            seen |= fresh if points[at].refused is None else set()
    if judge.first is not None and all(point.refused for point in points):
        raise judge.first
    if plan.points:
        plan.points = points
    else:
        plan.bases = [replace(base, refused=points[i].refused) for i, base in enumerate(plan.bases)]
    plan.metric, plan.higher_is_better = judge.metric()
    if plan.sampler == "tpe" and plan.metric is None:
        raise UsageError("--sampler tpe: the trials' tasks have no common metric. Search one task at a time")


def _first(plan: Plan, index: int) -> Point:
    """Any trial of a base, to stand for all."""
    base = plan.bases[index]
    values = {key: next(iter(typed.values())) for key, typed in base.typed.items()}
    return Point(index, index, base.words, values, base.refused)


class _Judge:
    def __init__(self) -> None:
        self.assemble, self.metrics = assembler(), set[tuple[str, bool]]()
        self.first: MoeError | None = None

    def judged(self, plan: Plan, point: Point) -> Point:
        try:
            kind: Any = self.assemble(plan.composed(point, plan.seeds[0])).task.kind
            self.metrics.add((f"valid/{kind.headline}", kind.higher_is_better))
            return point
        except (UsageError, EnvironmentFailure) as error:
            self.first = self.first or error
            return replace(point, refused=str(error))

    def metric(self) -> tuple[str | None, bool]:
        return next(iter(self.metrics)) if len(self.metrics) == 1 else (None, True)
