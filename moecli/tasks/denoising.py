"""Images as a denoising task: noise is added in steps, the model says which, and from noise alone it makes images."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from moecli.errors import UsageError
from moecli.mixture import Mixture
from moecli.models.image import Pixels
from moecli.tasks.digits import Digits
from moecli.tasks.images import Images
from moecli.tasks.kinds import Kind, Prediction, Scores, Weights, mean
from moecli.tasks.task import SPLITS, Batch, Fact, Task, generator
from moecli.types import PositiveInt, Seed

FIRST, LAST = 0.1, 20.0  # the share of variance that noise takes in a step, times the number of steps
MOST_BINS = 10  # of the steps, for what specialisation is measured against
SAMPLES = 8  # of each class, for pictures


@dataclass(frozen=True)
class Noise(Kind):
    """Targets (N, D): the noise in each pixel, of variance one; whoever says 0 has a mean squared error of about one."""

    pixels: int
    headline = "mse"
    higher_is_better = False
    gives = frozenset({"real"})
    family = "gaussian"

    @property
    def out(self) -> int:
        return self.pixels

    def score(self, prediction: Prediction, target: Tensor) -> Scores:
        point = prediction.mean if isinstance(prediction, Mixture) else prediction
        return {"square": (point - target).square().mean(-1)}

    def summarise(self, scores: Scores) -> dict[str, float]:
        return {"mse": mean(scores["square"], scores.get("weight")).item()}

    def chance(self, train: Tensor, target: Tensor, weights: Weights = None) -> dict[str, float]:
        """Of predicting no noise."""
        return self.summarise(self.score(torch.zeros_like(target), target))

    def describe(self) -> str:
        return f"the noise in {self.pixels} pixels"


@dataclass(frozen=True)
class Steps:
    """T steps x_t = sqrt(1 - beta_t) x_(t-1) + sqrt(beta_t) noise (Ho et al., 2020), beta growing linearly.

    With T = 1000 beta goes from 1e-4 to 0.02 as in the paper; fewer steps are larger, so that the last image is as noisy.
    """

    number: int

    @cached_property
    def beta(self) -> Tensor:  # (T,) float64
        return (torch.linspace(FIRST, LAST, self.number, dtype=torch.float64) / self.number).clamp(max=0.999)

    @cached_property
    def signal(self) -> Tensor:
        """alpha-bar (T,) float64: the share of the variance that is still the image's after step t."""
        return (1 - self.beta).cumprod(0)

    def noisy(self, x: Tensor, step: Tensor, noise: Tensor) -> Tensor:
        """x_0 (B, D) after step (B,) at once: sqrt(abar_t) x_0 + sqrt(1 - abar_t) noise (eq. 4)."""
        signal = self.signal[step, None]
        return (signal.sqrt() * x + (1 - signal).sqrt() * noise).to(x.dtype)

    def back(self, x: Tensor, step: int, noise: Tensor, draw: torch.Generator) -> Tensor:
        """x_t (B, D) and the noise said to be in it -> a draw of x_(t-1) (eq. 7), the image it implies kept in -1..1."""
        beta, signal = self.beta[step].item(), self.signal[step].item()
        before = self.signal[step - 1].item() if step else 1.0
        image = ((x - (1 - signal) ** 0.5 * noise) / signal**0.5).clamp(-1, 1)
        mean = (before**0.5 * beta * image + (1 - beta) ** 0.5 * (1 - before) * x) / (1 - signal)
        return mean + (beta * (1 - before) / (1 - signal)) ** 0.5 * torch.randn(x.shape, generator=draw)


class Denoising(Task):
    """x = (x_t, t / T, class as 0 and 1) (B, D + 1 + classes) -> the noise in x_t (B, D), by DDPM (Ho et al., 2020).

    x_t = sqrt(abar_t) x_0 + sqrt(1 - abar_t) noise, x_0 an image in -1..1.  In training every visit of an image draws
    its step and noise, a pure function of (seed, step of training); in evaluation an image keeps them.  Labels: the
    class, and the step in at most ten equal bins, from little noise to nothing else.
    """

    image: Pixels

    def __init__(
        self,
        path: str | None = None,
        classes: PositiveInt | None = None,
        steps: PositiveInt = 200,
        split_seed: Seed = 0,
    ):
        if path is None and classes is not None:
            raise UsageError(
                f"task.classes={classes} (task=denoising): the digits have ten. Leave it out, or give task.path"
            )
        self.images: Digits | Images = Digits(split_seed) if path is None else Images(path, classes, split_seed)
        self.steps, self.split_seed, clean = Steps(steps), split_seed, self.images.image
        self.image = Pixels(*clean[:3], conditions=1 + self.images.out)
        self.kind, self.sizes = Noise(clean.number), self.images.sizes
        self.dim, self.out, self.family = clean.number + self.image.conditions, clean.number, self.kind.family
        self.gives = frozenset({"items", "vectors", "noisy image"}) | self.kind.gives
        names = self.images.label_names["class"]
        self.feature_names = [*self.images.feature_names, "step", *(f"class = {name}" for name in names)]
        self.label_names = {"class": names, "step": bins(steps)}
        self.levels: dict[str, dict[str, float]] = {}  # of chance, once asked for
        self.fingerprint = hashlib.sha256(f"{self.images.fingerprint} {steps} {split_seed}".encode()).hexdigest()

    def batch(self, split: str, index: Tensor) -> Batch:
        """Each image with the step and noise that it keeps."""
        clean = self.images.batch(split, index)
        draws = [generator(self.split_seed, 6, SPLITS.index(split), i) for i in torch.as_tensor(index).tolist()]
        step = torch.cat([torch.randint(self.steps.number, (1,), generator=draw) for draw in draws])
        return self._noisy(clean, step, torch.stack([torch.randn(self.out, generator=draw) for draw in draws]))

    def train_batch(self, step: int, size: int, seed: int) -> Batch:
        clean, draw = self.images.train_batch(step, size, seed), generator(seed, step, 7)
        drawn = torch.randint(self.steps.number, (len(clean.x),), generator=draw)
        return self._noisy(clean, drawn, torch.randn(len(clean.x), self.out, generator=draw))

    def _noisy(self, clean: Batch, step: Tensor, noise: Tensor) -> Batch:
        x = self.conditioned(self.steps.noisy(2 * clean.x - 1, step, noise), step, clean.target)
        label = step * len(self.label_names["step"]) // self.steps.number
        return Batch(x, noise, {**clean.labels, "step": label}, clean.document, clean.row, clean.weight)

    def conditioned(self, x: Tensor, step: Tensor, number: Tensor) -> Tensor:
        """(B, D), (B,), (B,) -> (B, D + 1 + classes)."""
        kind = F.one_hot(number, self.images.out).to(x.dtype)
        return torch.cat([x, ((step + 1) / self.steps.number).to(x.dtype)[:, None], kind], dim=-1)

    def chance(self, split: str) -> dict[str, float]:
        if split not in self.levels:
            target = self.batch(split, torch.arange(self.sizes[split])).target
            self.levels[split] = self.kind.chance(target, target)
        return self.levels[split]

    def samples(self, predict: Callable[[Tensor], Tensor], seed: int) -> dict[str, Tensor]:
        """``SAMPLES`` images of each class from noise, through all steps backwards: a pure function of model and seed."""
        draw = generator(seed, 8)
        number = torch.arange(self.images.out).repeat_interleave(SAMPLES)
        x = torch.randn(len(number), self.out, generator=draw)
        for step in reversed(range(self.steps.number)):
            noise = predict(self.conditioned(x, torch.full_like(number, step), number))
            x = self.steps.back(x, step, noise, draw)
        return {"image": ((x + 1) / 2).clamp(0, 1).unflatten(-1, self.image[:3]), "class": number}

    def new_rows(self, file: Path) -> tuple[Tensor, dict[str, list[Any]]]:
        raise UsageError(
            f"{file} (task=denoising): there is nothing to predict of new images. Look at its samples: moe plot"
        )

    def facts(self) -> list[Fact]:
        chance = self.chance("test")["mse"]
        return [
            *(fact for fact in self.images.facts() if fact.name not in ("features", "targets", "chance on test")),
            Fact("targets", self.kind.describe()),
            Fact(
                "steps", f"{self.steps.number}; the image's share of the variance falls to {self.steps.signal[-1]:.2g}"
            ),
            Fact("chance on test", f"mse {chance:.3f}, predicting no noise"),
        ]


def bins(steps: int) -> list[str]:
    """Names of equal bins of 0 .. steps - 1: ``FIRST-LAST``."""
    number = min(MOST_BINS, steps)
    begins = [-(-index * steps // number) for index in range(number + 1)]
    return [f"{first}-{after - 1}" for first, after in pairwise(begins)]
