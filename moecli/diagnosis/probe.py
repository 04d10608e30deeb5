"""What only a live model can show, as numbers: who hears of the future, what trains the router, what its choice is worth.

Every function leaves the model as it was.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from moecli.mixture import Mixture, MixtureDensity
from moecli.models.model import Known, Layer, Model
from moecli.plan import Dense, Plan, Slots
from moecli.routing import Router, Routing
from moecli.tasks.kinds import Kind, Scores
from moecli.tasks.task import Task
from moecli.training.evaluate import evaluate

SEQUENCES = 4  # of the test split, whose suffixes are changed one after the other
MOVED = 1e-6  # an output that moves by more is not the rounding of float64
BATCHES = 4  # of training, for the size of gradients
SHUFFLES = 8  # of a layer's choices
RESAMPLES = 400  # of the test split, for an interval
FEWEST_DOCUMENTS = 8  # below which resampling documents tells nothing, so that examples are resampled

ExampleLoss = Callable[[Tensor | Mixture, Tensor], Tensor]


# -- causality --------------------------------------------------------------------------------


@dataclass(frozen=True)
class Leak:
    """How far outputs moved when only later tokens changed."""

    most: float  # the largest change of an output, computed in float64
    moved: int  # places with an output that moved by more than ``MOVED``
    places: int  # that were looked at

    @property
    def found(self) -> bool:
        return self.moved > 0


@torch.no_grad()
def leak(model: Model, task: Task, device: torch.device) -> Leak:
    """Put the suffix of one real test sequence in place of another's, and look at the outputs before it."""
    precise = copy.deepcopy(model).double().eval()
    index = torch.arange(min(2 * SEQUENCES, task.sizes["test"]))
    batch = task.batch("test", index).to(device)
    x, known = batch.x, batch.known  # (B, T); what is known stays, or a label would tell the suffix
    before = _outputs(precise, x, known)  # (B, T, Y)
    given = x.shape[1] - before.shape[1]  # a source, which all outputs may know
    gaps = [
        (_outputs(precise, changed, known)[row, : start - given] - before[row, : start - given]).abs().amax(-1)
        for row, start, changed in _suffixes(x, given)
    ]
    gap = torch.cat(gaps)  # one a place
    return Leak(float(gap.max()), int((gap > MOVED).sum()), len(gap))


def _outputs(model: Model, x: Tensor, known: Known) -> Tensor:
    prediction = model(x, known).prediction
    return prediction.mean if isinstance(prediction, Mixture) else prediction


def _suffixes(x: Tensor, given: int = 0) -> Iterator[tuple[int, int, Tensor]]:
    """(row, start, x with the row's places from ``start`` on taken from another row): x (B, given + T)."""
    other, length = x.roll(1, 0) if len(x) > 1 else x.flip(1), x.shape[1] - given
    for row in range(min(SEQUENCES, len(x))):
        for start in sorted({given + 1, given + length // 2, given + length - 1}):
            changed = x.clone()
            changed[row, start:] = other[row, start:]
            yield row, start, changed


# -- what trains the router -------------------------------------------------------------------


def gradient_ratios(
    model: Model, task: Task, loss: ExampleLoss, device: torch.device, batch_size: int, seed: int = 0
) -> dict[str, float]:
    """Per layer, the root mean square of the task's gradient at the router's parameters over that at the experts'.

    The task's loss alone, without auxiliary terms, over ``BATCHES`` training batches.  NaN where the
    router has no parameters, or where no gradient reaches the experts either.
    """
    sides = {name: (list(layer.router.parameters()), list(_work(layer))) for name, layer in model.mixtures.items()}
    total: dict[nn.Parameter, float] = {}
    with _training(model, seed):
        for step in range(BATCHES):
            batch = task.train_batch(step, batch_size, seed).to(device)
            value = loss(model(batch.x, batch.known).prediction, batch.target).mean()
            for parameter, square in _squares(value, model).items():
                total[parameter] = total.get(parameter, 0.0) + square
    return {name: _ratio(*(_mean(total, side) for side in both)) for name, both in sides.items()}


def _squares(value: Tensor, model: Model) -> dict[nn.Parameter, float]:
    """The gradient's sum of squares at each parameter that it reaches."""
    reached = [p for p in model.parameters() if p.requires_grad]
    grads = torch.autograd.grad(value, reached, allow_unused=True)
    return {p: float(g.double().square().sum()) for p, g in zip(reached, grads, strict=True) if g is not None}


def _mean(squares: dict[nn.Parameter, float], parameters: list[nn.Parameter]) -> float:
    """Per number of these parameters; what no gradient reaches counts as zero.  NaN without parameters."""
    if not parameters:
        return math.nan
    return sum(squares.get(p, 0.0) for p in parameters) / sum(p.numel() for p in parameters)


def _work(layer: Layer) -> Iterator[nn.Parameter]:
    yield from layer.experts.parameters()
    if isinstance(layer, MixtureDensity):
        yield from layer.family.parameters()


def _ratio(router: float, experts: float) -> float:
    return math.sqrt(router / experts) if experts > 0 else math.nan


@contextmanager
def _training(model: Model, seed: int) -> Iterator[None]:
    """The model as it trains, its noise drawn from ``seed``."""
    was_training = model.training
    model.train()
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        try:
            yield
        finally:
            model.train(was_training)


# -- what the router's choice is worth --------------------------------------------------------


def permuted(plan: Plan, order: Tensor) -> Plan:
    """The plan with token n served as token ``order[n]`` was: (N,) a permutation.

    Every expert keeps its load and every weight, and whom it meets is left to chance.  Raises TypeError
    for slots, whose rows belong to no token.
    """
    if isinstance(plan, Slots):
        raise TypeError("slots average tokens: there is no choice to permute")
    if isinstance(plan, Dense):
        return Dense(plan.log_weight[order])
    return replace(plan, token=order.argsort()[plan.token])


@contextmanager
def shuffled(router: Router, seed: int) -> Iterator[None]:
    """While it lasts, the router's choices go to other tokens of the batch, drawn from ``seed``."""
    draw = torch.Generator().manual_seed(seed)

    def permute(_: nn.Module, __: tuple, routing: Routing) -> Routing:
        order = torch.randperm(len(routing.probs), generator=draw).to(routing.probs.device)
        return replace(routing, plan=permuted(routing.plan, order))

    hook = router.register_forward_hook(permute)
    try:
        yield
    finally:
        hook.remove()


@dataclass(frozen=True)
class Worth:
    """What the headline metric on test loses when choices are shuffled; positive is worse without the router."""

    learned: float
    shuffled: float  # mean over shuffles
    loss: float  # of the metric, turned so that more is worse
    low: float  # 95 % interval of the loss, over shuffles and units
    high: float
    units: int
    unit: str  # document or example: what was resampled


def worth(model: Model, task: Task, layer: str, device: torch.device, shuffles: int = SHUFFLES) -> Worth:
    """The learned routing of a layer against the same choices shuffled among the tokens of each batch.

    The interval is a percentile bootstrap: each resample draws test documents (examples, where there
    are fewer than eight documents) and one of the shuffles.
    """
    learned = evaluate(model, task, "test", device).scores
    others = []
    for seed in range(shuffles):
        with shuffled(model.mixtures[layer].router, seed):
            others.append(evaluate(model, task, "test", device).scores)
    document = torch.cat([batch.document for batch in task.batches("test", 256)]).numpy()
    return compare(task.kind, learned, others, document)


def compare(kind: Kind, learned: Scores, others: list[Scores], document: NDArray[np.integer]) -> Worth:
    """Scores per example of the learned and of the shuffled choices -> what the shuffles lose."""
    sign = 1.0 if kind.higher_is_better else -1.0

    def metric(scores: Scores) -> float:
        return kind.summarise(scores)[kind.headline]

    here = metric(learned)
    there = float(np.mean([metric(other) for other in others]))
    members, unit = _units(document)
    draw = np.random.default_rng(0)
    losses = []
    for _ in range(RESAMPLES):
        other = others[draw.integers(len(others))]
        picked = torch.from_numpy(np.concatenate([members[i] for i in draw.integers(len(members), size=len(members))]))
        losses.append(sign * (metric(_of(learned, picked)) - metric(_of(other, picked))))
    low, high = np.quantile(losses, [0.025, 0.975]).tolist()
    return Worth(here, there, sign * (here - there), low, high, len(members), unit)


def _of(scores: Scores, index: Tensor) -> Scores:
    return {name: score[index] for name, score in scores.items()}


def _units(document: NDArray[np.integer]) -> tuple[list[NDArray], str]:
    """The examples of each document, or each example where there are too few documents."""
    order = np.argsort(document, kind="stable")
    members = np.split(order, np.flatnonzero(np.diff(document[order])) + 1)
    if len(members) < FEWEST_DOCUMENTS:
        return list(np.arange(len(document))[:, None]), "example"
    return members, "example" if len(members) == len(document) else "document"
