"""Scores a model on a split, and notes who served which token."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch

from moecli.models.model import Model
from moecli.record.trace import assignments
from moecli.routing import Remove, Usage
from moecli.tasks.task import Batch, Task

MOST_TOKENS = 20_000  # noted of a split at one evaluation, in whole sequences spread evenly, always the same ones


@dataclass
class Evaluation:
    """What one pass over a split found."""

    metrics: dict[str, float]
    scores: dict[str, torch.Tensor]  # per example, as the task's kind made them
    usage: dict[str, Usage] = field(default_factory=dict)
    tokens: dict[str, list[dict[str, np.ndarray]]] = field(default_factory=dict)  # per layer, a part a batch


@torch.no_grad()
def evaluate(
    model: Model, task: Task, split: str, device: torch.device, trace: bool = False, size: int = 256
) -> Evaluation:
    """All of ``split`` in batches of at most ``size`` examples; with ``trace`` also who served whom."""
    was_training = model.training
    model.eval()
    scores: list[dict[str, torch.Tensor]] = []
    result = Evaluation({}, {})
    seen = 0
    for batch in (b.to(device) for b in task.batches(split, size)):
        output = model(batch.x, batch.known)
        found = task.kind.score(output.prediction, batch.target)
        found |= {} if batch.weight is None else {"weight": batch.weight}
        scores.append({k: v.cpu() for k, v in found.items()})
        symbols = _predicted(output.prediction) if trace else None
        for name, routing in output.routings.items() if trace else ():
            result.usage[name] = routing.usage + result.usage[name] if name in result.usage else routing.usage
            tokens = task.sizes[split] * len(routing.example) // len(batch.x)  # in the whole split
            every = math.ceil(tokens / MOST_TOKENS)
            noted = assignments(routing, _placed(batch, model), seen, every, symbols)
            result.tokens.setdefault(name, []).append(noted)
        seen += len(batch.x)
    model.train(was_training)
    result.scores = {name: torch.cat([part[name] for part in scores]) for name in scores[0]}
    result.metrics = task.kind.summarise(result.scores)
    return result


def _predicted(prediction: Any) -> torch.Tensor | None:
    """The likeliest next symbol at every place (B, T); None where tokens are no symbols."""
    return prediction.argmax(-1) if isinstance(prediction, torch.Tensor) and prediction.ndim == 3 else None


def _placed(batch: Batch, model: Model) -> Batch:
    """With each token's position among the labels, where the model has names for positions."""
    if not model.positions:
        return batch
    position = torch.arange(len(model.positions), device=batch.x.device).expand(len(batch.x), -1)
    return replace(batch, labels={**batch.labels, "position": position})


@contextmanager
def without(model: Model, layer: str, expert: int) -> Iterator[None]:
    """The model with one expert taken out; what is left of each token's weights keeps their sum."""
    router = model.mixtures[layer].router
    before = router.filters
    router.filters = (*before, Remove(expert))
    try:
        yield
    finally:
        router.filters = before
