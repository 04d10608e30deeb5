"""A hard mixture by turns: experts on rows of their own, the gate on the mixture's error, rows to the gate's choice."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor, nn

from moecli.errors import Interrupted, NumericalFailure, UsageError
from moecli.experts.workers import Pool, Stopped
from moecli.mixture import Mixture, MixtureDensity, Output
from moecli.plan import Sparse, even_shares
from moecli.record import checkpoint
from moecli.record.checkpoint import Saved
from moecli.routing import Tokens
from moecli.tasks.task import generator, order
from moecli.training.evidence import locations
from moecli.training.gradient import Best, Job, Judge, restore_random_state
from moecli.training.stop import Stop, listening
from moecli.types import NonNegativeInt, PositiveInt

AT_ONCE = 4096  # rows whose predictions are asked for together
GATE, EXPERTS = 2, 3  # what a round draws batches for, in the key of its generator


class Alternating:
    """Rounds of three turns (Collobert, Bengio & Bengio, 2002); the first parts are random and equal.

    1. Each expert is fitted to its part of the training rows: scikit-learn's in parallel processes, others by
       ``inner`` steps on -log p_e(y | x).  The family is fitted to what is left over.
    2. The gate takes ``inner`` steps on the objective of the whole mixture, the experts fixed.
    3. Each row, in order, goes to the expert that the gate likes best of those with fewer than N / M + c rows
       (c is ``slack``).

    It ends where no row moves.  No quantity is promised to rise, so the round with the best validation counts.
    """

    needs: frozenset[str] = frozenset({"every edge", "family fit"})
    gives: frozenset[str] = frozenset({"parts"})
    uses: frozenset[str] = frozenset({"optimizer", "schedule", "objective"})

    def __init__(
        self,
        rounds: PositiveInt = 20,
        slack: NonNegativeInt | None = None,
        inner: PositiveInt = 300,
        batch_size: PositiveInt = 128,
        jobs: PositiveInt | None = None,
    ):
        self.rounds, self.slack, self.inner, self.batch_size = rounds, slack, inner, batch_size
        self.jobs = jobs or os.cpu_count() or 1

    def fit(self, job: Job, saved: Saved | None = None) -> Best:
        """Fit ``job.model`` in place, on from a checkpoint where one is given.

        Raises UsageError for fewer rows than experts and for experts that have nothing to learn, NumericalFailure
        where a loss is not finite, and Interrupted where a signal asked to stop: then the last whole round is saved.
        """
        with listening() as stop, Pool(self.jobs) as pool:
            run = _Run(self, job, saved, pool, stop)
            number = run.first
            try:
                for number in range(run.first, self.rounds):
                    if run.settled:
                        break
                    run.round(number)
            except Stopped:
                said = f"stopped in round {number + 1} of {self.rounds}"
                raise Interrupted(said, 128 + int(stop.signal or 2)) from None
            return run.best

    def capacity(self, num_rows: int, num_experts: int) -> int:
        """Rows that one expert may have: N / M, rounded up, and the slack."""
        share = math.ceil(num_rows / num_experts)
        return share + (share // 4 if self.slack is None else self.slack)


def random_parts(num_rows: int, num_experts: int, draw: torch.Generator) -> Tensor:
    """The expert of each row, at random, in shares that differ by at most one: (N,) int64."""
    shares = torch.tensor(even_shares(num_rows, num_experts))
    return torch.arange(num_experts).repeat_interleave(shares)[torch.randperm(num_rows, generator=draw)]


def by_preference(logits: Tensor, capacity: int) -> Tensor:
    """Each row, in order, to the expert it likes best of those with room: logits (N, E) -> (N,) int64."""
    left, expert = [capacity] * logits.shape[1], []
    for liked in logits.argsort(dim=-1, descending=True, stable=True).tolist():
        expert.append(next(e for e in liked if left[e]))
        left[expert[-1]] -= 1
    return torch.tensor(expert)


class _Run(Judge):
    """The state of one training."""

    def __init__(self, plan: Alternating, job: Job, saved: Saved | None, pool: Pool, stop: Stop):
        super().__init__(job)
        self.plan, self.pool, self.stop, self.first = plan, pool, stop, saved.step if saved else 0
        self.layer = cast(MixtureDensity, job.model.mixtures["layer0"])  # needs: family fit
        self.gate: Any = getattr(self.layer.router, "gate", None)  # none where one expert stands alone
        batch = job.task.train_batch(0, job.task.sizes["train"], job.seed).to(job.device)
        self.x, self.y, self.weight = batch.x, batch.target, batch.weight
        self._refuse()
        self.part = random_parts(len(self.x), self.layer.experts.num_experts, generator(job.seed, 4))
        self.settled = False
        job.record.begin(plan.rounds, self.first)
        if saved is not None:
            self._go_on(saved)

    def _refuse(self) -> None:
        many = self.layer.experts.num_experts
        if len(self.x) < many:
            raise UsageError(
                f"num_experts={many} (trainer=alternating): there are only {len(self.x)} training rows, and each "
                "expert begins with at least one. Use fewer experts"
            )
        if self.weight is not None:
            raise UsageError(
                "task.weights (trainer=alternating): its experts are fitted to rows that all count the same. Leave "
                "the weights out, or use trainer=em"
            )
        if "part fit" not in self.layer.experts.gives and not learned(self.layer.experts):
            raise UsageError(
                "expert (trainer=alternating): these experts have no parameter to train, and take no rows of their "
                "own. Use expert=sklearn by itself, or expert=linear"
            )

    def _go_on(self, saved: Saved) -> None:
        """Everything as it was when the checkpoint was written."""
        source = str(self.job.record.folder)
        checkpoint.restore(self.job.model, saved.tensors["model"], source)
        with checkpoint.complete(source):
            restore_random_state(saved.tensors["random"])
            self.part = saved.tensors["alternating"]["part"].clone()
            self.settled = bool(saved.tensors["alternating"]["settled"])
            self.recall(saved)

    def save(self, step: int, **more: dict[str, Tensor]) -> None:
        super().save(step, alternating={"part": self.part, "settled": torch.tensor(self.settled)}, **more)

    def round(self, number: int) -> None:
        """Experts, gate, parts; recorded and saved.  Raises Stopped where a signal asked to stop."""
        self.job.model.train()
        self._fit_experts(number)
        loc = self._locations()
        self.layer.family.fit(loc, self.y, nn.functional.one_hot(self.part, loc.shape[1]).to(loc))
        self._fit_gate(number, loc)
        before = self.part
        if learned(self.gate):
            capacity = self.plan.capacity(len(self.x), loc.shape[1])
            self.part = by_preference(self._logits(), capacity)
        moved = float((self.part != before).double().mean())
        self.settled = moved == 0
        self._report(number, loc, before, moved)

    # -- the first turn ----------------------------------------------------------------------------

    def _fit_experts(self, number: int) -> None:
        experts: Any = self.layer.experts
        if "part fit" in experts.gives:
            for text in dict.fromkeys(experts.fit_parts(self.part, self.pool, lambda: self.stop.signal)):
                if text not in self.job.record.progress.warnings:
                    self.job.record.warn(text)
            return
        self._descend(experts, number, EXPERTS, self._loss_of_parts)

    def _loss_of_parts(self, index: Tensor) -> Tensor:
        """Mean of -log p_e(y | x) of rows (B,), each under the expert that it belongs to: ()."""
        plan = Sparse.from_choices(
            self.part[index, None].to(self.x.device), self.x.new_zeros(len(index), 1), self.layer.experts.num_experts
        )
        density = self.layer.family(self.layer.experts.rows(plan, self.x[index]), plan.groups)
        return -density.log_prob(plan.dispatch(self.y[index])).mean()

    @torch.no_grad()
    def _locations(self) -> Tensor:  # (N, E, Y)
        self.job.model.eval()
        return torch.cat([locations(self.layer, part) for part in self.x.split(AT_ONCE)])

    # -- the second turn ---------------------------------------------------------------------------

    def _fit_gate(self, number: int, loc: Tensor) -> None:
        def loss(index: Tensor) -> Tensor:
            return self.job.objective(self._output(index, loc), self.y[index])["total"]

        if learned(self.gate):
            self.gate.train()
            self._descend(self.gate, number, GATE, loss)
            self.gate.eval()

    def _output(self, index: Tensor, loc: Tensor) -> Output:
        """What the model says of rows (B,), where the experts' words (N, E, Y) are known already."""
        x, layer = self.x[index], self.layer
        routing = layer.router(Tokens.items(x))
        rows, groups = loc[index].transpose(0, 1).flatten(0, 1), routing.plan.groups  # (E B, Y)
        marginal = x.new_zeros(len(x)) if self.gate is None else self.gate.log_marginal(x)
        mixture = Mixture(routing, layer.family(rows, groups), layer.family.mean(rows, groups), marginal)
        return Output(mixture, {"layer0": routing})

    def _descend(self, module: nn.Module, number: int, turn: int, loss: Callable[[Tensor], Tensor]) -> None:
        """``inner`` steps on the loss of a batch of rows, the rate as the schedule has it within a round."""
        plan, optimizer = self.plan, self.job.optimizer([{"params": learned(module)}])
        rates = [group["lr"] for group in optimizer.param_groups]
        seed = generator(self.job.seed, number, turn).initial_seed()
        for step in range(plan.inner):
            if self.stop.signal:
                raise Stopped
            for group, top in zip(optimizer.param_groups, rates, strict=True):
                group["lr"] = top * self.job.schedule(step, plan.inner)
            value = loss(order(len(self.x), step, plan.batch_size, seed))
            if not math.isfinite(value.item()):
                raise NumericalFailure(
                    f"round {number}: the loss is {value.item():.3g}. Lower optimizer.lr, or check the data for extremes"
                )
            optimizer.zero_grad()
            value.backward()
            optimizer.step()

    # -- the third, and what is said of all --------------------------------------------------------

    @torch.no_grad()
    def _logits(self) -> Tensor:  # (N, E)
        return torch.cat([self.gate(part) for part in self.x.split(AT_ONCE)])

    @torch.no_grad()
    def _report(self, number: int, loc: Tensor, part: Tensor, moved: float) -> None:
        job, kind = self.job, self.job.task.kind
        output = self._output(torch.arange(len(self.x)), loc)
        error = kind.summarise(kind.score(output.prediction, self.y))[kind.headline]
        values = {
            "loss": float(job.objective(output, self.y)["loss"]),
            kind.headline: error,
            "reassigned": moved,
            "largest part": float(part.bincount().max()),
            "smallest part": float(part.bincount(minlength=loc.shape[1]).min()),
        }
        job.record.step(number, values, {"layer0": output.routings["layer0"].usage})
        self.evaluate(number + 1)


def learned(module: nn.Module | None) -> list[nn.Parameter]:
    """What there is in a part for gradient descent to change."""
    return [] if module is None else [p for p in module.parameters() if p.requires_grad]
