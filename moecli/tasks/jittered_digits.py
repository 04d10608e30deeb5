"""Digits somewhere on a larger canvas: what is shown and where are two separate truths (Eigen et al., 2013)."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from moecli.errors import DataError
from moecli.models.image import Pixels
from moecli.tasks.digits import handwritten
from moecli.tasks.files import user_path
from moecli.tasks.idx import IMAGES, Pair, existing, read_pair
from moecli.tasks.kinds import Classification
from moecli.tasks.task import SPLITS, Batch, Fact, InMemory, Split, generator, three_way
from moecli.types import NonNegativeInt, PositiveInt, Seed

Array = np.ndarray

PLACES = [" ".join(filter(None, pair)) for pair in [(a, b) for a in ("up", "", "down") for b in ("left", "", "right")]]
PLACES[4] = "centre"


class JitteredDigits(InMemory):
    """Images (n, H, W) -> canvases (N, (H + 2 jitter)(W + 2 jitter)) in 0..1, ``copies`` of each at random places.

    Every row and column from -jitter to jitter is as likely.  Labels: the digit, and the translation in a
    grid of three by three, whose middle is whatever lies within a third of the jitter.  Copies of one
    image stay in one part of the split, and count as one document.  A folder of IDX files gives MNIST:
    where it has a t10k pair beside a train pair, the former is the test.  Canvases are kept as bytes.
    """

    def __init__(
        self,
        path: str | None = None,
        jitter: NonNegativeInt = 4,
        copies: PositiveInt = 4,
        split_seed: Seed = 0,
    ):
        images, digit, parts = scikit_digits(split_seed) if path is None else idx_folder(user_path(path), split_seed)
        self.origin = "scikit-learn's digits" if path is None else str(user_path(path))
        self.side = (images.shape[1] + 2 * jitter, images.shape[2] + 2 * jitter)
        self.jitter, self.copies, self.top = jitter, copies, int(images.max())
        document = torch.arange(len(images)).repeat_interleave(copies)
        offset = torch.randint(-jitter, jitter + 1, (len(document), 2), generator=generator(split_seed, 5))
        labels = {"class": torch.from_numpy(digit).long()[document], "translation": place(offset, jitter)}
        splits = {}
        for name in SPLITS:
            i = torch.isin(document, parts[name]).nonzero()[:, 0]
            canvas = torch.from_numpy(placed(images[document[i].numpy()], offset[i].numpy(), jitter))
            splits[name] = Split(canvas, labels["class"][i], {k: label[i] for k, label in labels.items()}, document[i])
        classes = [str(number) for number in range(10)]
        names = {"class": classes, "translation": list(PLACES)}
        self.adopt(splits, Classification(tuple(classes)), names, Pixels(1, *self.side))

    def batch(self, split: str, index: Tensor) -> Batch:
        drawn = super().batch(split, index)
        return replace(drawn, x=drawn.x.float() / self.top)

    def facts(self) -> list[Fact]:
        height, width = self.side
        size = f"{height} x {width} pixels, the digit up to {self.jitter} off the centre each way"
        return [
            Fact("data", self.origin),
            Fact("canvas", f"{size}; {self.copies} copies of an image"),
            *super().facts(),
        ]


def place(offset: Tensor, jitter: int) -> Tensor:
    """Offsets (N, 2) of rows and columns -> one of nine places (N,)."""
    third = (offset.float() / max(jitter, 1) * 1.5).round().clamp(-1, 1).long() + 1  # 0, 1 or 2 each way
    return third[:, 0] * 3 + third[:, 1]


def placed(images: Array, offset: Array, jitter: int) -> Array:
    """Each image (n, H, W) ``offset`` (n, 2) pixels off the centre of an empty canvas: (n, D) uint8."""
    count, height, width = images.shape
    canvas = np.zeros((count, height + 2 * jitter, width + 2 * jitter), np.uint8)
    row = (offset[:, 0] + jitter)[:, None, None] + np.arange(height)[:, None]
    column = (offset[:, 1] + jitter)[:, None, None] + np.arange(width)
    canvas[np.arange(count)[:, None, None], row, column] = images
    return canvas.reshape(count, -1)


Source = tuple[Array, Array, dict[str, Tensor]]  # images (n, H, W) uint8, digits (n,), the images of each part


def scikit_digits(seed: int) -> Source:
    images, digits = handwritten()
    return images, digits, three_way(len(digits), seed)


def idx_folder(root: Path, seed: int) -> Source:
    """MNIST's own files, plain or gzipped.  Raises DataError where none are there or they do not agree."""
    pairs = {name: _pair(root, name) for name in ("train", "t10k")}
    found = {name: pair for name, pair in pairs.items() if pair is not None}
    if not found:
        why = f"it holds no train-{IMAGES} or t10k-{IMAGES}, nor their .gz"
        raise DataError(f"no digits ({root}): {why}. Name the folder of MNIST's files")
    images, digits = (np.concatenate(arrays) for arrays in zip(*found.values(), strict=True))
    if len(found) == 1:
        return images, digits, three_way(len(digits), seed)
    num_train = len(found["train"][1])
    parts = three_way(num_train, seed, test=0.0)
    return images, digits, {**parts, "test": torch.arange(num_train, len(digits))}


def _pair(root: Path, name: str) -> Pair | None:
    file = existing(root / f"{name}-{IMAGES}")
    if file is None:
        return None
    images, digits = read_pair(file)
    if digits.max() > 9:
        raise DataError(
            f"labels out of range ({file}): a digit is from 0 to 9, and one is {digits.max()}. Use task=images"
        )
    return images, digits
