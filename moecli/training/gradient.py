"""Gradient descent on minibatches: the loop, with evaluation, checkpoints and early stopping."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from fnmatch import fnmatch
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from moecli.errors import Interrupted, NumericalFailure, UsageError
from moecli.losses.objective import Objective, Totals
from moecli.losses.places import is_scored
from moecli.mixture import Output
from moecli.models.model import Model
from moecli.models.size import sample
from moecli.record import checkpoint
from moecli.record.checkpoint import Saved
from moecli.record.folder import require_room
from moecli.record.recorder import Recorder
from moecli.routing import Router, Usage
from moecli.tasks.task import Batch, Task
from moecli.training.evaluate import evaluate
from moecli.training.health import Health
from moecli.training.schedules import Constant
from moecli.training.stop import listening
from moecli.types import NonNegativeFloat, PositiveFloat, PositiveInt

LOOK = 4  # steps between two looks at who works
POINTS = 300  # of a curve, at about
MOST_STACKED = 128  # runs that train as one: each has four files open, of 1,024 that a process usually may


@dataclass
class Best:
    """The evaluation that the run is judged by: the latest of the best."""

    step: int = 0
    value: float = math.nan

    def improves(self, value: float, higher: bool) -> bool:
        """NaN is never best."""
        return math.isnan(self.value) or (value >= self.value if higher else value <= self.value)


@dataclass
class Job:
    """Everything one training works on."""

    model: Model
    task: Task
    objective: Objective
    optimizer: Callable[[list[dict[str, Any]]], torch.optim.Optimizer]
    schedule: Constant
    record: Recorder
    seed: int
    device: torch.device
    prepared: bool = False  # the tables of its routers came with the weights that it begins from


class Gradient:
    """Steps of an optimizer on the total loss; the best checkpoint by the task's headline metric counts."""

    needs: ClassVar[frozenset[str]] = frozenset()
    gives: ClassVar[frozenset[str]] = frozenset()
    uses: ClassVar[frozenset[str]] = frozenset({"optimizer", "schedule", "auxiliary", "objective"})

    def __init__(
        self,
        steps: PositiveInt = 1500,
        batch_size: PositiveInt = 128,
        eval_every: PositiveInt | None = None,
        checkpoint_every: PositiveInt | None = None,
        clip: PositiveFloat | None = 1.0,
        patience: PositiveInt | None = None,
        micro_batches: PositiveInt = 1,
        router_rate: NonNegativeFloat = 1.0,
        autocast: Literal["none", "bfloat16"] = "none",
        phases: list[dict[str, Any]] | None = None,
        stack: PositiveInt = 1,
    ):
        """``stack``: how many runs of a sweep train as one (moecli/training/stack.py); a run by itself is one."""
        if stack > MOST_STACKED:
            raise UsageError(
                f"trainer.stack={stack}: each run keeps files open, so at most {MOST_STACKED} train as one. Lower it"
            )
        self.steps, self.batch_size, self.clip, self.patience = steps, batch_size, clip, patience
        self.eval_every = eval_every or max(1, steps // 10)
        self.checkpoint_every = checkpoint_every or self.eval_every
        self.micro_batches, self.router_rate = micro_batches, router_rate
        self.autocast, self.phases = autocast == "bfloat16", _starts(phases or [], steps)

    def fit(self, job: Job, saved: Saved | None = None) -> Best:
        """Train ``job.model`` in place, on from a checkpoint where one is given; returns the best evaluation.

        Raises NumericalFailure before the step that a loss or gradient is not finite in, and Interrupted
        with everything saved where a signal asked to stop.
        """
        with listening() as stop:
            loop = Loop(self, job, saved)
            for step in range(loop.first, self.steps):
                if self.patience and loop.since_best >= self.patience:
                    break
                loop.train(step)
                loop.keep(step + 1)
                if stop.signal is not None:
                    loop.save(step + 1)
                    raise Interrupted(f"stopped after step {step + 1} of {self.steps}", 128 + stop.signal)
            return loop.best


def prepare(job: Job, size: int) -> None:
    """Let each router build its tables and starts from the tokens of the first ``size`` examples."""
    first = job.task.train_batch(0, size, job.seed).to(job.device)
    for name, tokens in sample(job.model, first.x, first.known).items():
        job.model.mixtures[name].router.prepare(tokens)


class Judge:
    """Evaluates on the validation split, saves, and remembers which step was best."""

    def __init__(self, job: Job):
        self.job, self.best, self.since_best = job, Best(), 0

    def evaluate(self, step: int) -> None:
        job, kind = self.job, self.job.task.kind
        found = evaluate(job.model, job.task, "valid", job.device, trace=True)
        for name, parts in found.tokens.items():
            job.record.trace.tokens(step, "valid", name, parts)
        value = found.metrics[kind.headline]
        better = self.best.improves(value, kind.higher_is_better)
        self.since_best = 0 if better and value != self.best.value else self.since_best + 1
        self.best = Best(step, value) if better else self.best
        chance = job.task.chance("valid").get(kind.headline, math.nan)
        note = f"valid {kind.headline} {value:.3f} (chance {chance:.3f}, best {self.best.value:.3f})"
        job.record.evaluated(step, "valid", found.metrics, note)
        self.save(step)

    def recall(self, saved: Saved) -> None:
        """What was best, and the record cut to where it stood."""
        best_step, value = saved.state["best"]
        self.best = Best(int(best_step), math.nan if value is None else float(value))
        self.since_best = int(saved.state["since_best"])
        self.job.record.rewind(saved.step, saved.state["position"])

    def save(self, step: int, **more: dict[str, Tensor]) -> None:
        record, best = self.job.record, self.best
        tensors = {"model": self.job.model.state_dict(), "random": random_state(), **more}
        state = {"best": [best.step, best.value], "since_best": self.since_best, "position": record.position()}
        checkpoint.save(record.folder, step, tensors, state)
        checkpoint.prune(record.folder, best.step)


def random_state() -> dict[str, Tensor]:
    """Of every generator that noise and dropout draw from."""
    cuda = (
        {f"cuda{i}": state for i, state in enumerate(torch.cuda.get_rng_state_all())}
        if torch.cuda.is_available()
        else {}
    )
    return {"cpu": torch.get_rng_state(), **cuda}


def restore_random_state(tensors: dict[str, Tensor]) -> None:
    torch.set_rng_state(tensors["cpu"].clone())
    for index in range(torch.cuda.device_count() if torch.cuda.is_available() else 0):
        if f"cuda{index}" in tensors:
            torch.cuda.set_rng_state(tensors[f"cuda{index}"].clone(), index)


class Loop(Judge):
    """The state of one training."""

    def __init__(self, plan: Gradient, job: Job, saved: Saved | None):
        super().__init__(job)
        self.plan, self.first = plan, saved.step if saved else 0
        self.refresh: Callable[[], None] = lambda: None  # who steps for this loop brings its optimizer up to date
        self.optimizer = job.optimizer(by_rate(job.model, plan.router_rate))
        self.rates = [group["lr"] * group.get("rate", 1.0) for group in self.optimizer.param_groups]
        self.routers = {name: layer.router for name, layer in job.model.mixtures.items()}
        self.health = Health({name: router.masked for name, router in self.routers.items()})
        self.stateful = {n: r for n, r in self.routers.items() if type(r).after_step is not Router.after_step}
        self.note_every = min(LOOK * max(1, plan.steps // (LOOK * POINTS)), LOOK * math.ceil(plan.eval_every / LOOK))
        for patterns in plan.phases.values():
            _chosen(job.model, patterns)  # refused now, not when their phase begins
        job.record.begin(plan.steps, self.first)
        if saved is not None:
            self._go_on(saved)
        elif not job.prepared:
            prepare(job, plan.batch_size)

    def _go_on(self, saved: Saved) -> None:
        """Everything as it was when the checkpoint was written."""
        source = str(self.job.record.folder)
        checkpoint.restore(self.job.model, saved.tensors["model"], source)
        with checkpoint.complete(source):
            checkpoint.restore_optimizer(self.optimizer, saved.tensors["optimizer"], source)
            restore_random_state(saved.tensors["random"])
            self.recall(saved)
        begun = [start for start in self.plan.phases if start < saved.step]
        if begun:
            _thaw(self.job.model, self.plan.phases[max(begun)])

    def keep(self, step: int) -> None:
        """Evaluate or save, where it is time to.

        Also after the first step of an attempt: one that is killed again and again still gets on, and a
        disk that is too small is found at once.
        """
        if self._is_judged(step):
            self.evaluate(step)
        elif self._is_saved(step):
            self.save(step)
        if step == self.first + 1 < self.plan.steps:
            self._require_room(step)

    def is_due(self, step: int) -> bool:
        """Whether ``keep`` has anything to do."""
        return self._is_judged(step) or self._is_saved(step)

    def _is_judged(self, step: int) -> bool:
        return step % self.plan.eval_every == 0 or step == self.plan.steps

    def _is_saved(self, step: int) -> bool:
        return step % self.plan.checkpoint_every == 0 or step == self.first + 1

    def _require_room(self, step: int) -> None:
        """For the checkpoints that will stand beside this one: the latest, the best, and one being written."""
        folder = self.job.record.folder
        size = sum(file.stat().st_size for file in (folder / "checkpoints" / f"step-{step:08d}").iterdir())
        more = checkpoint.KEEP + 2 - len(checkpoint.steps(folder))
        require_room(folder, more * size, f"{more} checkpoints")

    def train(self, step: int) -> None:
        job = self.job
        if step in self.plan.phases:
            _thaw(job.model, self.plan.phases[step])
        rate = job.schedule(step, self.plan.steps)
        for group, top in zip(self.optimizer.param_groups, self.rates, strict=True):
            group["lr"] = top * rate
        batch = job.task.train_batch(step, self.plan.batch_size, job.seed).to(job.device)
        looking = step % LOOK == 0
        self.optimizer.zero_grad()
        losses, usages = self._descend(batch, looking)
        norm = self._checked(losses["total"], step)
        self.optimizer.step()
        for name, router in self.stateful.items():
            router.after_step(usages[name])
        if looking:
            self.look(step, {**losses, "grad_norm": norm}, usages)

    def _descend(self, batch: Batch, looking: bool) -> tuple[dict[str, Tensor], dict[str, Usage]]:
        """The gradient of the batch, taken in micro-batches; the losses are means over all of its examples."""
        parts = batch.parts(self.plan.micro_batches) if self.plan.micro_batches > 1 else [batch]
        whole = self._whole(parts) if len(parts) > 1 and self.job.objective.across else None
        losses: dict[str, Tensor] = {}
        usages: dict[str, Usage] = {}
        for part in parts:
            share = _weight(part) / _weight(batch) if len(parts) > 1 else 1.0
            output = self._forward(part)
            found = self.job.objective(output, part.target, part.weight, share, whole)
            found["total"].backward()
            for name, value in found.items():
                value = value.detach() * (1.0 if name == "total" else share)
                losses[name] = losses[name] + value if name in losses else value
            for name, routing in output.routings.items():
                if looking or name in self.stateful:
                    usages[name] = usages[name] + routing.usage if name in usages else routing.usage
        return losses, usages

    def _whole(self, parts: list[Batch]) -> Totals:
        """The evidence of all micro-batches, from a first pass that draws the same noise as the second."""
        before = random_state()
        whole: Totals = {}
        with torch.no_grad():
            for part in parts:
                for key, evidence in self.job.objective.totals(self._forward(part)).items():
                    whole[key] = whole[key] + evidence if key in whole else evidence
        restore_random_state(before)
        return whole

    def _forward(self, batch: Batch) -> Output:
        with torch.autocast(self.job.device.type, torch.bfloat16, enabled=self.plan.autocast):
            return self.job.model(batch.x, batch.known)

    def _checked(self, total: Tensor, step: int) -> Tensor:
        """The gradient's norm, clipped; refuses to go on with a loss or gradient that is not finite."""
        clip = self.plan.clip or math.inf
        norm = nn.utils.clip_grad_norm_(self.job.model.parameters(), clip)
        require_finite(total.item(), norm.item(), step)
        return norm

    def look(self, step: int, values: dict[str, Tensor], usages: dict[str, Usage]) -> None:
        for name, usage in usages.items():
            for finding in self.health.see(name, usage):
                self.job.record.warn(f"step {step}: {finding}")
        if step % self.note_every == 0:
            self.job.record.step(step, {n: v.item() for n, v in values.items()}, usages)

    def save(self, step: int, **more: dict[str, Tensor]) -> None:
        self.refresh()
        super().save(step, optimizer=checkpoint.optimizer_tensors(self.optimizer))


def require_finite(total: float, norm: float, step: int) -> None:
    """Raises NumericalFailure for a loss or a gradient's norm that is not finite, before the step that it would spoil."""
    if not (math.isfinite(total) and math.isfinite(norm)):
        raise NumericalFailure(
            f"step {step}: the loss is {total:.3g} and its gradient's norm {norm:.3g}; the weights were left as they "
            "were before it. Lower optimizer.lr or trainer.clip, and check the data for extremes"
        )


def _weight(batch: Batch) -> float:
    """How much a batch's examples count together, sequences by their scored places."""
    if batch.weight is not None:
        return float(batch.weight.sum())
    scored = is_scored(batch.target)
    return len(batch.x) if scored is None else float(scored.sum())


def by_rate(model: Model, rate: float) -> list[dict[str, Any]]:
    """Parameters in groups for the optimizer: the routers' learn at ``rate`` times the others' rate; 0 freezes them."""
    routers = {id(p) for layer in model.mixtures.values() for p in layer.router.parameters()}
    if rate == 1.0 or not routers:
        return [{"params": list(model.parameters())}]
    others = [p for p in model.parameters() if id(p) not in routers]
    own = [p.requires_grad_(rate > 0) for p in model.parameters() if id(p) in routers]
    return [{"params": others}, {"params": own, "rate": rate}]


def _starts(phases: list[dict[str, Any]], steps: int) -> dict[int, list[str]]:
    """{first step: patterns of the parameters that train from there}.  Raises UsageError for another shape."""
    starts, at = {}, 0
    for number, phase in enumerate(phases):
        if (
            set(phase) != {"steps", "train"}
            or not isinstance(phase["steps"], int)
            or not isinstance(phase["train"], list)
        ):
            raise UsageError(
                f"trainer.phases[{number}]={phase}: a phase is {{steps: N, train: [PATTERN, ...]}}. "
                "Write for example {steps: 500, train: ['*gate*']}"
            )
        starts[at] = phase["train"]
        at += phase["steps"]
    if phases and at != steps:
        raise UsageError(f"trainer.phases: their steps add up to {at}, and trainer.steps is {steps}. Make them equal")
    return starts


def _chosen(model: nn.Module, patterns: list[str]) -> set[str]:
    """Names of the parameters that match a pattern.  Raises UsageError where none does."""
    named = dict(model.named_parameters())
    chosen = {name for name in named if any(fnmatch(name, pattern) for pattern in patterns)}
    if not chosen:
        raise UsageError(f"trainer.phases: no parameter matches {patterns}. There are: {', '.join(list(named)[:8])} …")
    return chosen


def _thaw(model: nn.Module, patterns: list[str]) -> None:
    """Let the parameters that match a pattern train, and no others."""
    chosen = _chosen(model, patterns)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in chosen)
        parameter.grad = None if name not in chosen else parameter.grad
