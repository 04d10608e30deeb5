"""Images drawn uniformly, so that there is nothing to learn: a size and classes without any data."""

from __future__ import annotations

import hashlib
import math

import torch
import torch.nn.functional as F
from torch import Tensor

from moecli.models.image import Pixels
from moecli.tasks.denoising import Noise
from moecli.tasks.kinds import Classification
from moecli.tasks.task import SPLITS, Batch, Fact, Task, generator
from moecli.types import PositiveInt, Seed, SeveralRows


class RandomImages(Task):
    """Square images (B, C H W), their classes drawn by themselves; with ``noisy`` as task=denoising has them.

    Then x is (B, C H W + 1 + classes) and the target the noise in each pixel, drawn by itself too.
    An image is drawn when it is asked for, so that no size costs memory.
    """

    image: Pixels

    def __init__(
        self,
        channels: PositiveInt = 1,
        side: PositiveInt = 28,
        classes: PositiveInt = 10,
        noisy: bool = False,
        images: SeveralRows = 10_000,
        split_seed: Seed = 0,
    ):
        held = max(1, images // 100)
        self.sizes = {"train": images - 2 * held, "valid": held, "test": held}
        self.image = Pixels(channels, side, side, conditions=1 + classes if noisy else 0)
        self.kind = Noise(self.image.number) if noisy else Classification(tuple(map(str, range(classes))))
        self.classes, self.noisy, self.seed = classes, noisy, split_seed
        self.dim, self.out, self.family = self.image.number + self.image.conditions, self.kind.out, self.kind.family
        self.gives = frozenset({"items", "vectors", "noisy image" if noisy else "image"}) | self.kind.gives
        self.feature_names, self.label_names = [], {"class": list(map(str, range(classes)))}
        drawn = f"{channels} {side} {classes} {noisy} {images} {split_seed}"
        self.fingerprint = hashlib.sha256(drawn.encode()).hexdigest()

    def train_batch(self, step: int, size: int, seed: int) -> Batch:
        """``size`` of the training images, drawn anew at every step: a pure function of (seed, step)."""
        return self.batch("train", torch.randint(self.sizes["train"], (size,), generator=generator(seed, step)))

    def batch(self, split: str, index: Tensor) -> Batch:
        number = torch.as_tensor(index) + sum(self.sizes[before] for before in SPLITS[: SPLITS.index(split)])
        draws = [generator(self.seed, n) for n in number.tolist()]
        label = torch.cat([torch.randint(self.classes, (1,), generator=draw) for draw in draws])
        x = torch.stack([torch.rand(self.image.number, generator=draw) for draw in draws])
        if not self.noisy:
            return Batch(x, label, {"class": label}, number, number)
        share = torch.stack([torch.rand(1, generator=draw) for draw in draws])  # of the way to noise
        noise = torch.stack([torch.randn(self.image.number, generator=draw) for draw in draws])
        conditions = [share, F.one_hot(label, self.classes).float()]
        return Batch(torch.cat([x, *conditions], dim=-1), noise, {"class": label}, number, number)

    def chance(self, split: str) -> dict[str, float]:
        """Of whoever knows that all classes are alike, or that noise is around zero."""
        target = self.batch(split, torch.arange(self.sizes[split])).target
        return self.kind.chance(target if self.noisy else torch.arange(self.classes), target)

    def facts(self) -> list[Fact]:
        shown, least = self.image, "mse 1" if self.noisy else f"nll {math.log(self.classes):.3f} nats"
        return [
            Fact("images", ", ".join(f"{count} {split}" for split, count in self.sizes.items())),
            Fact("of", f"{shown.height} x {shown.width} pixels, {shown.channels} numbers each"),
            Fact("targets", self.kind.describe()),
            Fact("least to expect", f"{least}, which is chance"),
        ]
