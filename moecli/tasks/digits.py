"""Handwritten digits (scikit-learn's copy of the UCI set): 1,797 images of 8 x 8 pixels, ten classes."""

from __future__ import annotations

import torch

from moecli.models.image import Pixels
from moecli.tasks.kinds import Classification
from moecli.tasks.task import InMemory, Split, three_way
from moecli.types import Seed


class Digits(InMemory):
    """Pixels in 0..1, the class as label."""

    image: Pixels

    def __init__(self, split_seed: Seed = 0):
        from sklearn.datasets import load_digits

        pixels, classes = load_digits(return_X_y=True)
        x = torch.from_numpy(pixels).float() / 16  # (1797, 64)
        y = torch.from_numpy(classes).long()
        names = tuple(str(digit) for digit in range(10))
        parts = three_way(len(x), split_seed)
        splits = {name: Split(x[i], y[i], {"class": y[i]}) for name, i in parts.items()}
        self.adopt(splits, Classification(names), {"class": list(names)}, Pixels(1, 8, 8))
