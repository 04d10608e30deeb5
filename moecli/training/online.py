"""Online EM: sums over rows that forget, one batch after the other, for data that keep coming."""

from __future__ import annotations

from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor

from moecli.errors import Interrupted, NumericalFailure
from moecli.experts.least_squares import Normal
from moecli.record.checkpoint import Saved
from moecli.training.em import Precise, expect, precise
from moecli.training.evidence import locations
from moecli.training.gradient import Best, Job
from moecli.training.maximise import working_equations
from moecli.training.stop import listening
from moecli.types import PositiveInt


class OnlineEm:
    """Each batch counts with share (t + 1)^-power, what came before with the rest (Cappé & Moulines, 2009).

    Experts: recursive least squares with a growing memory (Jordan & Jacobs, 1994, section 4): their normal
    equations are averaged with those shares, and so are the family's statistics.  The gate has no sums to
    average: it moves the batch's share of the way to its own fit on the batch.  Nothing rises at every step.
    """

    needs: frozenset[str] = frozenset({"every edge", "gate fit", "expert fit", "family fit"})
    gives: frozenset[str] = frozenset()
    uses: frozenset[str] = frozenset()

    def __init__(
        self,
        steps: PositiveInt = 1000,
        batch_size: PositiveInt = 128,
        power: Annotated[float, Field(gt=0.5, le=1)] = 0.6,
        eval_every: PositiveInt | None = None,
    ):
        self.steps, self.batch_size, self.power = steps, batch_size, power
        self.eval_every = eval_every or max(1, steps // 10)

    def fit(self, job: Job, saved: Saved | None = None) -> Best:
        """Fit ``job.model`` in place, on from a checkpoint where one is given.

        Raises NumericalFailure where the likelihood is not finite, and Interrupted with everything saved
        where a signal asked to stop.
        """
        with listening() as stop:
            run = _Run(self, job, saved)
            for step in range(run.first, self.steps):
                run.train(step)
                if (step + 1) % self.eval_every == 0 or step + 1 == self.steps:
                    run.evaluate(step + 1)
                elif stop.signal is not None:
                    run.save(step + 1)
                if stop.signal is not None and step + 1 < self.steps:
                    raise Interrupted(f"stopped after step {step + 1} of {self.steps}", 128 + stop.signal)
            return run.best


class _Run(Precise):
    """The state of one training: the layer, and sums over rows per row."""

    def __init__(self, plan: OnlineEm, job: Job, saved: Saved | None):
        super().__init__(job)
        self.plan, self.first = plan, saved.step if saved else 0
        self.normal: Normal | None = None
        self.statistics: dict[str, Tensor] = {}
        job.record.begin(plan.steps, self.first)
        if saved is not None:
            self.go_on(saved)

    @torch.no_grad()
    def train(self, step: int) -> None:
        batch = self.job.task.train_batch(step, self.plan.batch_size, self.job.seed)
        x, y, weight = precise(batch, self.job.device)
        found, share = expect(self.layer, x, y, "soft", 0, weight), (step + 1) ** -self.plan.power
        if not torch.tensor(found.joint_nll).isfinite():
            raise NumericalFailure(
                f"step {step}: the likelihood is not finite. Raise trainer.batch_size or family.min_scale, and check "
                "the data for extremes"
            )
        self._fit(x, y, found.work, share)
        if step % max(1, self.plan.steps // 300) == 0:
            values = {"loss": found.nll, "joint_nll": found.joint_nll}
            self.job.record.step(step, values, {"layer0": found.evidence.usage})

    def _fit(self, x: Tensor, y: Tensor, resp: Tensor, share: float) -> None:
        layer = self.layer
        normal = working_equations(layer, x, y, resp) * (1 / len(x))
        self.normal = normal if self.normal is None else self.normal * (1 - share) + normal * share
        layer.experts.solve(self.normal)
        fresh = {k: v / len(x) for k, v in layer.family.statistics(locations(layer, x), y, resp).items()}
        self.statistics = {k: (1 - share) * self.statistics.get(k, v) + share * v for k, v in fresh.items()}
        layer.family.adopt(self.statistics)
        gate: Any = getattr(layer.router, "gate", None)
        if gate is not None:
            self._move(gate, x, resp, share)

    @staticmethod
    def _move(gate: Any, x: Tensor, resp: Tensor, share: float) -> None:
        """A share of the way to the gate's fit on this batch."""
        before = [p.clone() for p in gate.parameters()]
        gate.fit(x, resp, gate.inner)
        for parameter, old in zip(gate.parameters(), before, strict=True):
            parameter.copy_(old + share * (parameter - old))

    def memory(self) -> dict[str, dict[str, Tensor]]:
        assert self.normal is not None
        sums = {"gram": self.normal.gram, "cross": self.normal.cross, **self.statistics}
        return {**super().memory(), "sums": sums}

    def go_on(self, saved: Saved) -> None:
        super().go_on(saved)
        sums = {name: tensor.clone() for name, tensor in saved.tensors["sums"].items()}
        self.normal, self.statistics = Normal(sums.pop("gram"), sums.pop("cross")), sums
