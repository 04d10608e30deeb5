"""Handwritten digits (scikit-learn's copy of the UCI set): 1,797 images of 8 x 8 pixels, ten classes.

``digits.npz`` holds them: E. Alpaydin and C. Kaynak, "Optical Recognition of Handwritten Digits", UCI Machine
Learning Repository, 1998, https://doi.org/10.24432/C50P49 (CC BY 4.0).  To import scikit-learn for them would
take a second of every run.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from moecli.models.image import Pixels
from moecli.tasks.kinds import Classification
from moecli.tasks.task import InMemory, Split, three_way
from moecli.types import Seed


class Digits(InMemory):
    """Pixels in 0..1, the class as label."""

    image: Pixels

    def __init__(self, split_seed: Seed = 0):
        pixels, classes = handwritten()
        x = torch.from_numpy(pixels).float().flatten(1) / 16  # (1797, 64)
        y = torch.from_numpy(classes)
        names = tuple(str(digit) for digit in range(10))
        parts = three_way(len(x), split_seed)
        splits = {name: Split(x[i], y[i], {"class": y[i]}) for name, i in parts.items()}
        self.adopt(splits, Classification(names), {"class": list(names)}, Pixels(1, 8, 8))


def handwritten() -> tuple[np.ndarray, np.ndarray]:
    """Images (1797, 8, 8) uint8 from 0 to 16, and their digits (1797,) int64."""
    with np.load(Path(__file__).with_suffix(".npz"), allow_pickle=False) as arrays:
        return arrays["pixels"].reshape(-1, 8, 8), arrays["classes"].astype(np.int64)
