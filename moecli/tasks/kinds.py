"""Kinds of targets: what a prediction is scored by, and what chance would score.

``score`` gives small per-example tensors that can be collected batch after batch; ``summarise``
turns all of them into metrics, each example by its ``weight`` where the scores have one.
Units: nll in nats, accuracy and errors as fractions.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.distributions import Independent, Normal

from moecli.losses.places import mean_scored
from moecli.mixture import Mixture

Prediction = Tensor | Mixture
Scores = dict[str, Tensor]
Weights = tuple[Tensor | None, Tensor | None] | None  # of training rows and of those that are scored
TINY = 1e-30
INTERVAL = (0.025, 0.975)  # quantiles that a prediction comes with
UNKNOWN = "\N{REPLACEMENT CHARACTER}"  # stands for every character that the vocabulary lacks


@dataclass(frozen=True)
class Kind:
    """What the targets are, and with it the loss, the metrics and the chance level."""

    headline: ClassVar[str]  # the metric a run is judged by
    higher_is_better: ClassVar[bool]
    gives: ClassVar[frozenset[str]]
    family: ClassVar[str]

    @property
    def out(self) -> int:
        raise NotImplementedError

    def support(self, target: Tensor) -> frozenset[str]:
        """What the values of all targets allow beside ``gives``."""
        return frozenset()

    def score(self, prediction: Prediction, target: Tensor) -> Scores:
        raise NotImplementedError

    def summarise(self, scores: Scores) -> dict[str, float]:
        raise NotImplementedError

    def chance(self, train: Tensor, target: Tensor, weights: Weights = None) -> dict[str, float]:
        """Metrics on ``target`` of the best constant guess from ``train``; ``weights`` of both where they have some."""
        raise NotImplementedError

    def answer(self, prediction: Prediction) -> dict[str, list[Any]]:
        """What a user reads of predictions for new rows: columns of one value a row."""
        raise NotImplementedError

    def describe(self) -> str:
        raise NotImplementedError


def class_log_probs(prediction: Prediction) -> Tensor:
    """Logits or a categorical mixture -> log p(class): (..., C)."""
    if isinstance(prediction, Mixture):
        return prediction.mean.clamp_min(TINY).log()
    return prediction.float().log_softmax(-1)


@dataclass(frozen=True)
class Classification(Kind):
    """Targets (N,) int64 in ``classes``."""

    classes: tuple[str, ...]
    headline = "accuracy"
    higher_is_better = True
    gives = frozenset({"classes"})
    family = "categorical"

    @property
    def out(self) -> int:
        return len(self.classes)

    def score(self, prediction: Prediction, target: Tensor) -> Scores:
        log_probs = class_log_probs(prediction)  # (N, C)
        confidence, predicted = log_probs.max(-1)
        nll = -log_probs.gather(-1, target[:, None])[:, 0]
        return {"nll": nll, "target": target, "predicted": predicted, "confidence": confidence.exp()}

    def summarise(self, scores: Scores) -> dict[str, float]:
        correct, weight = scores["predicted"] == scores["target"], scores.get("weight")
        return {
            "accuracy": mean(correct, weight).item(),
            "macro_f1": macro_f1(scores["predicted"], scores["target"], self.out, weight),
            "nll": mean(scores["nll"], weight).item(),
            "calibration_error": calibration_error(scores["confidence"], correct, weight=weight),
        }

    def chance(self, train: Tensor, target: Tensor, weights: Weights = None) -> dict[str, float]:
        of_train, of_target = weights or (None, None)
        count = train.bincount(of_train, minlength=self.out).double()
        guess = (count / count.sum()).clamp_min(TINY).log().expand(len(target), -1)
        metrics = self.summarise(weighted(self.score(guess, target), of_target))
        return {name: metrics[name] for name in ("accuracy", "macro_f1", "nll")}

    def answer(self, prediction: Prediction) -> dict[str, list[Any]]:
        confidence, predicted = class_log_probs(prediction).max(-1)
        return {"predicted": [self.classes[c] for c in predicted.tolist()], "probability": confidence.exp().tolist()}

    def describe(self) -> str:
        return f"{self.out} classes: {', '.join(self.classes[:12])}{' …' if self.out > 12 else ''}"


@dataclass(frozen=True)
class Regression(Kind):
    """Targets (N, Y) float; target * ``scale`` + ``center`` is in the user's units (both (Y,), or nothing to do)."""

    targets: tuple[str, ...]
    scale: tuple[float, ...] = (1.0,)
    center: tuple[float, ...] = (0.0,)
    headline = "r2"
    higher_is_better = True
    gives = frozenset({"real"})
    family = "gaussian"

    @property
    def out(self) -> int:
        return len(self.targets)

    def support(self, target: Tensor) -> frozenset[str]:
        whole = target == target.round()
        holds = {
            "binary": (target == 0) | (target == 1),
            "counts": whole & (target >= 0),
            "positive": target > 0,
        }
        return frozenset(word for word, where in holds.items() if bool(where.all()))

    def score(self, prediction: Prediction, target: Tensor) -> Scores:
        if isinstance(prediction, Mixture):
            return {"target": target, "mean": prediction.mean, "nll": -prediction.log_prob(target)}
        return {"target": target, "mean": prediction}

    def summarise(self, scores: Scores) -> dict[str, float]:
        scale = torch.tensor(self.scale, dtype=torch.float64)
        target, prediction = scores["target"].double(), scores["mean"].double()
        error, weight = (prediction - target).cpu() * scale, scores.get("weight")  # (N, Y) in the targets' units
        square = mean(error.square(), weight)  # (Y,)
        spread = mean(((target - mean(target, weight)).cpu() * scale).square(), weight)
        metrics = {
            "r2": (1 - square / spread).mean().item() if bool((spread > 0).all()) else math.nan,
            "rmse": square.mean().sqrt().item(),
            "mae": mean(error.abs(), weight).mean().item(),
        }
        if "nll" in scores:  # the density of the targets in their own units
            metrics["nll"] = mean(scores["nll"], weight).item() + scale.log().sum().item()
        return metrics

    def chance(self, train: Tensor, target: Tensor, weights: Weights = None) -> dict[str, float]:
        of_train, of_target = weights or (None, None)
        center = mean(train, of_train)
        spread = mean((train - center).square(), of_train).sqrt().clamp_min(1e-6)
        guess = Independent(Normal(center.to(train).expand_as(target), spread.to(train)), 1)
        scores = {"target": target, "mean": guess.mean, "nll": -guess.log_prob(target)}
        return self.summarise(weighted(scores, of_target))

    def answer(self, prediction: Prediction) -> dict[str, list[Any]]:
        """The mean, and for a density its standard deviation and 95 % interval, in the user's units."""
        scale, center = torch.tensor(self.scale), torch.tensor(self.center)
        point = prediction.mean if isinstance(prediction, Mixture) else prediction
        mean = point.cpu() * scale + center
        columns = {f"predicted {name}": mean[:, i].tolist() for i, name in enumerate(self.targets)}
        if isinstance(prediction, Mixture):
            spread = prediction.variance.sqrt().cpu() * scale
            columns |= {f"sd {name}": spread[:, i].tolist() for i, name in enumerate(self.targets)}
            for p in INTERVAL:
                bound = prediction.quantile(p)
                if bound is not None:
                    bound = bound.cpu() * scale + center
                    columns |= {f"{p:.1%} {name}": bound[:, i].tolist() for i, name in enumerate(self.targets)}
        return columns

    def describe(self) -> str:
        return f"{self.out} real: {', '.join(self.targets)}"


@dataclass(frozen=True)
class Language(Kind):
    """Targets (N, T) int64: the next id at every place, -1 where none is scored; ``sizes`` are the symbols' bytes of UTF-8.

    Metrics are means over scored places: an example counts by how many it has.
    """

    symbols: tuple[str, ...]
    sizes: tuple[float, ...] = ()  # where a symbol is not written as its bytes
    headline = "nll"
    higher_is_better = False
    gives = frozenset({"classes"})
    family = "categorical"

    @property
    def out(self) -> int:
        return len(self.symbols)

    def score(self, prediction: Prediction, target: Tensor) -> Scores:
        log_probs = class_log_probs(prediction)  # (N, T, V)
        known = target.clamp_min(0)
        nll = -log_probs.gather(-1, known[..., None])[..., 0]
        correct = (log_probs.argmax(-1) == known).float()
        places = {"nll": nll, "correct": correct, "bytes": self._bytes(known)}  # (N, T) each
        return {**{n: mean_scored(v, target) for n, v in places.items()}, "scored": (target >= 0).sum(-1)}

    @property
    def widths(self) -> tuple[float, ...]:
        """Bytes of each symbol; an unknown one counts as one, so that bits per byte are never flattered."""
        return self.sizes or tuple(1 if s == UNKNOWN else len(s.encode(errors="replace")) for s in self.symbols)

    def _bytes(self, target: Tensor) -> Tensor:
        return torch.tensor(self.widths, dtype=torch.float32, device=target.device)[target]

    def summarise(self, scores: Scores) -> dict[str, float]:
        weight = _uneven(scores.get("scored"))
        nll = mean(scores["nll"], weight).item()
        return {
            "nll": nll,
            "bits_per_byte": nll / math.log(2) / mean(scores["bytes"], weight).item(),
            "perplexity": math.exp(min(nll, 700.0)),
            "accuracy": mean(scores["correct"], weight).item(),
        }

    def chance(self, train: Tensor, target: Tensor, weights: Weights = None) -> dict[str, float]:
        """The unigram distribution of the training text; train and target are flat ids, -1 where none is scored.

        ``weights`` say how often each id of train occurs.
        """
        target = target[target >= 0]
        known = train >= 0
        often = weights[0][known] if weights and weights[0] is not None else None
        count = train[known].bincount(often, minlength=self.out).double()
        log_share = (count / count.sum()).clamp_min(TINY).log()
        correct = (target == log_share.argmax()).float()
        return self.summarise({"nll": -log_share[target], "correct": correct, "bytes": self._bytes(target)})

    def smooth_chance(self, train: Tensor, target: Tensor) -> dict[str, float]:
        """The same, each symbol counted once more so that none is impossible."""
        return self.chance(torch.cat([train, torch.arange(self.out)]), target)

    def answer(self, prediction: Prediction) -> dict[str, list[Any]]:
        confidence, predicted = class_log_probs(prediction).flatten(0, 1).max(-1)
        return {"next": [self.symbols[c] for c in predicted.tolist()], "probability": confidence.exp().tolist()}

    def describe(self) -> str:
        return f"the next of {self.out} symbols at every place"


def _uneven(weight: Tensor | None) -> Tensor | None:
    """Weights (N,), unless they are all the same."""
    return None if weight is None or bool((weight == weight[0]).all()) else weight


def mean(values: Tensor, weight: Tensor | None = None) -> Tensor:
    """Over examples (N, ...), each by its weight (N,): (...) float64."""
    if weight is None:
        return values.double().mean(0)
    return torch.tensordot(weight.double(), values.double(), 1) / weight.double().sum()


def weighted(scores: Scores, weight: Tensor | None) -> Scores:
    return scores if weight is None else {**scores, "weight": weight}


def macro_f1(predicted: Tensor, target: Tensor, num_classes: int, weight: Tensor | None = None) -> float:
    """Mean F1 over the classes that occur in the targets or the predictions."""
    table = confusion(predicted, target, num_classes, weight).double()
    hit, asked, real = table.diagonal(), table.sum(0), table.sum(1)
    seen = asked + real > 0
    return (2 * hit[seen] / (asked + real)[seen]).mean().item()


def confusion(predicted: Tensor, target: Tensor, num_classes: int, weight: Tensor | None = None) -> Tensor:
    """Counts (C, C), or sums of weights: row = truth, column = prediction."""
    index = target * num_classes + predicted
    return index.bincount(weight, minlength=num_classes**2).view(num_classes, num_classes)


def calibration_error(confidence: Tensor, correct: Tensor, bins: int = 15, weight: Tensor | None = None) -> float:
    """Expected |confidence - accuracy| over equal-width bins of confidence (Guo et al., 2017)."""
    place = (confidence * bins).long().clamp(0, bins - 1)
    gap = torch.zeros(bins, dtype=torch.float64, device=confidence.device)
    each = confidence.double() - correct.double()
    gap = gap.index_add(0, place, each if weight is None else each * weight)
    return gap.abs().sum().item() / (max(len(confidence), 1) if weight is None else weight.double().sum().item())
