"""Digits somewhere on a larger canvas: what is shown and where are two separate truths (Eigen et al., 2013)."""

from __future__ import annotations

import gzip
import math
import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from moecli.errors import DataError
from moecli.tasks.files import read_bytes, user_path
from moecli.tasks.kinds import Classification
from moecli.tasks.task import SPLITS, Batch, Fact, InMemory, Split, generator, three_way
from moecli.types import NonNegativeInt, PositiveInt, Seed

Array = np.ndarray

PLACES = [" ".join(filter(None, pair)) for pair in [(a, b) for a in ("up", "", "down") for b in ("left", "", "right")]]
PLACES[4] = "centre"
IMAGES, LABELS = "images-idx3-ubyte", "labels-idx1-ubyte"


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
        self.source = "scikit-learn's digits" if path is None else str(user_path(path))
        self.side = (images.shape[1] + 2 * jitter, images.shape[2] + 2 * jitter)
        self.jitter, self.copies, self.top = jitter, copies, int(images.max())
        document = torch.arange(len(images)).repeat_interleave(copies)
        offset = torch.randint(-jitter, jitter + 1, (len(document), 2), generator=generator(split_seed, 5))
        self.feature_names = [f"pixel {row},{column}" for row in range(self.side[0]) for column in range(self.side[1])]
        labels = {"class": torch.from_numpy(digit).long()[document], "translation": place(offset, jitter)}
        splits = {}
        for name in SPLITS:
            i = torch.isin(document, parts[name]).nonzero()[:, 0]
            canvas = torch.from_numpy(placed(images[document[i].numpy()], offset[i].numpy(), jitter))
            splits[name] = Split(canvas, labels["class"][i], {k: label[i] for k, label in labels.items()}, document[i])
        classes = [str(number) for number in range(10)]
        self.adopt(splits, Classification(tuple(classes)), {"class": classes, "translation": list(PLACES)})

    def batch(self, split: str, index: Tensor) -> Batch:
        drawn = super().batch(split, index)
        return replace(drawn, x=drawn.x.float() / self.top)

    def facts(self) -> list[Fact]:
        height, width = self.side
        size = f"{height} x {width} pixels, the digit up to {self.jitter} off the centre each way"
        return [
            Fact("data", self.source),
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
    from sklearn.datasets import load_digits

    bunch = load_digits()
    return bunch.images.astype(np.uint8), bunch.target, three_way(len(bunch.target), seed)


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


def _pair(root: Path, name: str) -> tuple[Array, Array] | None:
    files = [_existing(root / f"{name}-{kind}") for kind in (IMAGES, LABELS)]
    if files[0] is None:
        return None
    if files[1] is None:
        raise DataError(f"images without labels ({files[0]}): there is no {name}-{LABELS} beside it. Add it")
    images, digits = read_idx(files[0], 3), read_idx(files[1], 1)
    if len(images) != len(digits) or not len(digits) or digits.max() > 9:
        why = f"{len(images)} images and {len(digits)} labels, which must be as many and from 0 to 9"
        raise DataError(f"images and labels disagree ({files[0]}): {why}. Fetch the pair anew")
    return images, digits


def _existing(file: Path) -> Path | None:
    return next((each for each in (file, file.with_name(f"{file.name}.gz")) if each.exists()), None)


def read_idx(file: Path, rank: int) -> Array:
    """An IDX file of bytes: 0, 0, 8, its rank, each size as four bytes, the data.  Raises DataError."""
    raw = read_bytes(file)
    try:
        raw = gzip.decompress(raw) if file.suffix == ".gz" else raw
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"no gzip file ({file}): {error}. Fetch it anew") from error
    header = 4 + 4 * rank
    shape = np.frombuffer(raw[4:header], ">u4").tolist() if len(raw) >= header else []
    if raw[:4] != bytes([0, 0, 8, rank]) or len(raw) != header + math.prod(shape):
        why = f"not bytes of rank {rank} as long as its header says"
        raise DataError(f"no IDX file ({file}): {why}. Fetch it anew")
    return np.frombuffer(raw, np.uint8, offset=header).reshape(shape)
