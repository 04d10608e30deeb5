"""Expectation-maximisation for classical mixtures: responsibilities, then each part fitted to them."""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from moecli.errors import Interrupted, NumericalFailure
from moecli.families.family import EMPTY
from moecli.mixture import MixtureDensity
from moecli.record import checkpoint
from moecli.record.checkpoint import Saved
from moecli.tasks.task import Batch, generator
from moecli.training.evidence import VARIANTS, Evidence, observe
from moecli.training.gradient import Best, Job, Judge
from moecli.training.maximise import maximise
from moecli.training.order import reordered
from moecli.training.stop import listening
from moecli.types import NonNegativeFloat, PositiveInt

FALL = 1e-9  # relative: a criterion that falls by less fell by rounding
SAME = 1e-4  # nats a row: restarts that differ by less found the same fit
RAISES = {
    "soft": "likelihood",
    "hard": "classification likelihood",
    "balanced": "classification likelihood under equal shares",
}


class Em:
    """EM on all training rows, in float64 (Dempster et al., 1977; Jordan & Jacobs, 1994).

    ``variant`` says what an E-step gives each row's experts: ``soft`` their posterior, ``hard`` all to the
    likeliest, ``sampled`` all to one drawn from the posterior, ``balanced`` all to one in equal shares.
    Each but ``sampled`` raises a quantity of its own at every iteration (``RAISES``), stops where it rises by
    less than ``tolerance`` a row, and says so where it falls; ``sampled`` raises none, runs through, and
    keeps the likeliest parameters that it visited.

    ``restarts`` climbs from so many starts and keeps the best: the model's own, then random cells of rows.
    Experts without a closed form take ``inner`` steps of L-BFGS in each M-step.  With ``truncate`` a router
    may leave edges out, and EM gives nothing to an expert that it does not ask: then nothing is promised to rise.
    """

    needs: frozenset[str] = frozenset({"every edge", "gate fit", "family fit"})
    gives: frozenset[str] = frozenset()
    uses: frozenset[str] = frozenset()

    def __init__(
        self,
        steps: PositiveInt = 100,
        tolerance: NonNegativeFloat = 1e-6,
        variant: Literal["soft", "hard", "sampled", "balanced"] = "soft",
        restarts: PositiveInt = 1,
        inner: PositiveInt = 10,
        truncate: bool = False,
        checkpoint_every: PositiveInt | None = None,
    ):
        self.steps, self.tolerance, self.variant, self.restarts = steps, tolerance, variant, restarts
        self.inner, self.truncate = inner, truncate
        self.checkpoint_every = checkpoint_every or max(1, steps // 10)
        if truncate:
            self.needs = self.needs - {"every edge"} | {"density", "independent"}

    @property
    def raises(self) -> str | None:
        """The quantity that no iteration lowers, or None where none is promised."""
        return None if self.truncate else RAISES.get(self.variant)

    def fit(self, job: Job, saved: Saved | None = None) -> Best:
        """Fit ``job.model`` in place, on from a checkpoint where one is given.

        Raises NumericalFailure where the likelihood is not finite, and Interrupted with everything saved
        where a signal asked to stop.
        """
        return climbed(self, _Run(self, job, saved))


@dataclass(frozen=True)
class Step:
    """One iteration: what its E-step found, and the mean over rows of the quantity that the variant raises."""

    evidence: Evidence
    resp: Tensor  # (N, E)
    criterion: float

    @property
    def work(self) -> Tensor:
        """What the M-step fits to: (N, E), each row's responsibilities times its weight."""
        return self.resp if self.evidence.weight is None else self.resp * self.evidence.weight[:, None]

    @property
    def nll(self) -> float:
        return self.evidence.nll

    @property
    def joint_nll(self) -> float:
        return self.evidence.joint_nll


@torch.no_grad()
def em_step(
    layer: MixtureDensity,
    x: Tensor,
    y: Tensor,
    variant: str = "soft",
    draw: int = 0,
    inner: int = 10,
    weight: Tensor | None = None,
) -> Step:
    """One iteration in place: x (N, *item), y (N, ...), weight (N,).  Each M-step raises its own part of the bound."""
    step = expect(layer, x, y, variant, draw, weight)
    maximise(layer, x, y, step.work, step.evidence.density, inner)
    return step


def expect(layer: MixtureDensity, x: Tensor, y: Tensor, variant: str, draw: int, weight: Tensor | None = None) -> Step:
    """The E-step of a variant; ``draw`` seeds the one that samples."""
    evidence = observe(layer, x, y, weight)
    # what equal shares maximise is a sum over rows, in which each counts by its weight
    joint = evidence.joint if weight is None or variant != "balanced" else evidence.joint * weight[:, None]
    resp = VARIANTS[variant](joint, generator(draw))
    criterion = -evidence.joint_nll if variant == "soft" else evidence.bound(resp)  # soft: the bound is tight
    return Step(evidence, resp, criterion)


class Ascent:
    """EM from one start, one iteration at a time."""

    def __init__(self, plan: Em, layer: MixtureDensity, x: Tensor, y: Tensor, seed: int, weight: Tensor | None = None):
        self.plan, self.layer, self.x, self.y, self.seed, self.weight = plan, layer, x, y, seed, weight
        self.reached = -math.inf  # the criterion, or for ``sampled`` the likelihood, at its highest
        self.best = {name: value.clone() for name, value in layer.state_dict().items()}  # where it was so high
        self.news: list[str] = []  # what a user should know of the last iteration
        self.said: set[str] = set()

    def iterate(self, number: int) -> tuple[Step, bool]:
        """(the iteration, whether the climb ends with it)."""
        plan, self.news = self.plan, []
        draw = generator(self.seed, number).initial_seed()
        step = expect(self.layer, self.x, self.y, plan.variant, draw, self.weight)
        value = step.criterion if plan.variant != "sampled" else -step.joint_nll
        if not (math.isfinite(value) and math.isfinite(step.joint_nll)):
            raise NumericalFailure(
                f"iteration {number}: the likelihood is not finite. Raise family.min_scale, or standardise, and check "
                "the data for extremes"
            )
        if plan.raises and value < self.reached - FALL * (1 + abs(value)):
            self._say("fall", f"iteration {number}: the {plan.raises} fell by {self.reached - value:.2g} nats a row")
        ended = plan.variant != "sampled" and value - self.reached < plan.tolerance
        if value >= self.reached or plan.variant != "sampled":
            self.reached = max(self.reached, value) if plan.raises else value
            self.best = {name: tensor.clone() for name, tensor in self.layer.state_dict().items()}
        if not ended:
            maximise(self.layer, self.x, self.y, step.work, step.evidence.density, plan.inner)
            self._look(number, step.work)
        return step, ended

    def _look(self, number: int, resp: Tensor) -> None:
        for expert in (resp.sum(0) < max(EMPTY, 0.5 if self.plan.variant != "soft" else 0)).nonzero()[:, 0].tolist():
            self._say(
                f"empty {expert}", f"iteration {number}: e{expert} serves no rows and stays as it is. Use fewer experts"
            )
        for expert in self.layer.family.cornered().nonzero()[:, 0].tolist():
            rows = float(resp[:, expert].sum())
            text = f"iteration {number}: e{expert} has closed in on {rows:.1f} rows, and its spread stands at its bound"
            self._say(f"cornered {expert}", f"{text}. Use fewer experts, or raise family.min_scale")

    def _say(self, kind: str, text: str) -> None:
        if kind not in self.said:
            self.said.add(kind)
            self.news.append(text)


class Precise(Judge):
    """A float64 copy of the layer is fitted; the model takes its parameters before whatever reads them."""

    first = 0  # the iteration that this attempt begins with

    def __init__(self, job: Job):
        super().__init__(job)
        self.own: MixtureDensity = job.model.mixtures["layer0"]  # type: ignore[assignment]  # needs: family fit
        self.layer = copy.deepcopy(self.own).double().eval()
        job.record.refresh = self._hand_over

    def iterate(self, number: int) -> bool:
        """One iteration, recorded; true where it is the last."""
        raise NotImplementedError

    def finish(self, step: int) -> None:
        """What follows the last iteration."""
        self.evaluate(step)

    def memory(self) -> dict[str, dict[str, Tensor]]:
        """What a checkpoint holds beside the model: exact parameters, and whatever else the next step needs."""
        return {"em": self.layer.state_dict()}

    def go_on(self, saved: Saved) -> None:
        """Everything as it was when the checkpoint was written."""
        source = str(self.job.record.folder)
        with checkpoint.complete(source):
            checkpoint.restore(self.layer, saved.tensors["em"], source)
            self.recall(saved)

    def save(self, step: int, **more: dict[str, Tensor]) -> None:
        self._hand_over()
        super().save(step, **self.memory(), **more)

    def evaluate(self, step: int) -> None:
        self._hand_over()
        super().evaluate(step)

    def _hand_over(self) -> None:
        own = self.own.state_dict()
        exact = {name: tensor.to(own[name].dtype) for name, tensor in self.layer.state_dict().items()}
        checkpoint.restore(self.own, exact, str(self.job.record.folder))


class Climbing(Protocol):
    """What ``climbed`` asks of a trainer."""

    steps: int
    checkpoint_every: int


def climbed(plan: Climbing, run: Precise) -> Best:
    """Iterate until the climb ends or ``plan.steps`` are done, saving as often as the plan says.

    Raises Interrupted with everything saved where a signal asked to stop.
    """
    with listening() as stop:
        for step in range(run.first, plan.steps):
            if run.iterate(step) or step + 1 == plan.steps:
                run.finish(step + 1)
                break
            if stop.signal is not None:
                run.save(step + 1)
                raise Interrupted(f"stopped after iteration {step + 1} of {plan.steps}", 128 + stop.signal)
            if (step + 1) % plan.checkpoint_every == 0:
                run.save(step + 1)
        return run.best


def precise(batch: Batch, device: torch.device) -> tuple[Tensor, Tensor, Tensor | None]:
    """Inputs, real targets and weights in float64; classes as they are."""
    batch = batch.to(device)
    y = batch.target.double() if batch.target.is_floating_point() else batch.target
    return batch.x.double(), y, None if batch.weight is None else batch.weight.double()


class _Run(Precise):
    """The state of one training."""

    def __init__(self, plan: Em, job: Job, saved: Saved | None):
        super().__init__(job)
        self.plan, self.first = plan, saved.step if saved else 0
        self.x, self.y, self.weight = precise(job.task.train_batch(0, job.task.sizes["train"], job.seed), job.device)
        job.record.begin(plan.steps, self.first)
        if saved is None and plan.restarts > 1:
            self.layer = self._search()
        self.ascent = self._ascent(self.layer)
        if saved is not None:
            self.go_on(saved)

    def _ascent(self, layer: MixtureDensity) -> Ascent:
        return Ascent(self.plan, layer, self.x, self.y, self.job.seed, self.weight)

    def _search(self) -> MixtureDensity:
        """The start that leads highest; climbing from it again is what is recorded."""
        starts = [self.layer, *(self._start(number) for number in range(1, self.plan.restarts))]
        reached = [self._top(copy.deepcopy(layer)) for layer in starts]
        best = max(range(len(reached)), key=reached.__getitem__)
        equal = sum(value >= reached[best] - SAME for value in reached)
        self.job.record.metrics.append(
            {"step": 0, "split": "train", "name": f"restart{n}", "value": -value} for n, value in enumerate(reached)
        )
        self.job.record.view.say(
            f"{equal} of {len(reached)} restarts reached the best, {-reached[best]:.6f} nats a row"
        )
        return starts[best]

    def _start(self, number: int) -> MixtureDensity:
        """The layer fitted to random cells."""
        layer = copy.deepcopy(self.layer)
        cells = scattered(self.x, self.y, layer.experts.num_experts, generator(self.job.seed, number, 1))
        cells = cells if self.weight is None else cells * self.weight[:, None]
        maximise(layer, self.x, self.y, cells, observe(layer, self.x, self.y).density, self.plan.inner)
        return layer

    def _top(self, layer: MixtureDensity) -> float:
        """Where EM leads from here: the mean over rows of what the variant raises; -inf where it breaks down."""
        ascent = self._ascent(layer)
        try:
            for number in range(self.plan.steps):
                if ascent.iterate(number)[1]:
                    break
        except NumericalFailure:
            return -math.inf
        return ascent.reached

    def go_on(self, saved: Saved) -> None:
        super().go_on(saved)
        self.ascent.reached = saved.tensors["em_best"].pop("reached").item()
        self.ascent.best = {name: value.clone() for name, value in saved.tensors["em_best"].items()}

    def memory(self) -> dict[str, dict[str, Tensor]]:
        reached = torch.tensor(self.ascent.reached, dtype=torch.float64)
        return {**super().memory(), "em_best": {**self.ascent.best, "reached": reached}}

    def iterate(self, number: int) -> bool:
        step, ended = self.ascent.iterate(number)
        values = {"loss": step.nll, "joint_nll": step.joint_nll}
        if self.plan.variant in ("hard", "balanced"):
            values["classification_nll"] = -step.criterion
        self.job.record.step(number, values, {"layer0": step.evidence.usage})
        for text in self.ascent.news:
            self.job.record.warn(text)
        return ended

    def finish(self, step: int) -> None:
        if self.plan.variant == "sampled":
            checkpoint.restore(self.layer, self.ascent.best, str(self.job.record.folder))
        if self.plan.raises is None:
            self.job.record.view.say("this kind of EM raises no quantity at every iteration")
        self._order()
        super().finish(step)

    def _order(self) -> None:
        """Experts by falling share of the rows, so that fits from other starts have the same names for them."""
        evidence = observe(self.layer, self.x, self.y)
        resp = VARIANTS["soft"](evidence.joint, generator(0))
        share = resp.sum(0) if self.weight is None else self.weight @ resp
        order = share.argsort(descending=True, stable=True).cpu()
        layer = reordered(self.layer, order, self.x)
        if layer is not self.layer:
            self.layer = layer
            self.ascent.best = {name: value.clone() for name, value in layer.state_dict().items()}
            self.job.record.trace.relabel("layer0", order)
            renamed = ", ".join(f"e{old} is e{new}" for new, old in enumerate(order.tolist()) if old != new)
            self.job.record.view.say(f"experts by falling share: what was {renamed} from here on")


def scattered(x: Tensor, y: Tensor, num_experts: int, draw: torch.Generator) -> Tensor:
    """Responsibilities to begin from: (N, E), each row to the nearest of E rows drawn at random.

    Near in inputs and targets together, every column in units of its own spread; x (N, *item), y (N, ...).
    """
    target = y if y.is_floating_point() else one_hot(y)
    both = torch.cat([x.flatten(1), target.to(x)], -1)
    both = (both - both.mean(0)) / both.std(0, correction=0).clamp_min(1e-12)
    center = both[torch.randperm(len(both), generator=draw)[:num_experts].to(x.device)]
    nearest = torch.cat([torch.cdist(part, center).argmin(-1) for part in both.split(2**16)])
    return one_hot(nearest, num_experts).to(x)
