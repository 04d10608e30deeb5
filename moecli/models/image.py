"""Images as vectors and as rows of patches: how long each is, where a patch lies, and the way there and back."""

from __future__ import annotations

from typing import NamedTuple

import torch.nn.functional as F
from torch import Tensor

from moecli.errors import UsageError

FEWEST_PATCHES = 16  # where the user leaves the size of a patch open


class Pixels(NamedTuple):
    """How an example's features are an image: C x H x W pixels in this order, and ``conditions`` after them."""

    channels: int
    height: int
    width: int
    conditions: int = 0

    @property
    def number(self) -> int:
        return self.channels * self.height * self.width

    @property
    def names(self) -> list[str]:
        """Of each pixel: ``pixel ROW,COLUMN``, its colour before it where there are three."""
        colors = [""] if self.channels == 1 else [f"{color} " for color in ("red", "green", "blue")]
        places = [f"{row},{column}" for row in range(self.height) for column in range(self.width)]
        return [f"{color}pixel {place}" for color in colors for place in places]


def patch_side(image: Pixels, patch: int | None) -> int:
    """Pixels of a square patch's side; None: the largest that leaves an image ``FEWEST_PATCHES`` of them.

    Raises UsageError for one of which an image has no whole number.
    """
    height, width = image.height, image.width
    sides = [side for side in range(1, min(height, width) + 1) if height % side == 0 and width % side == 0]
    if patch is None:
        return max((side for side in sides if height * width >= FEWEST_PATCHES * side**2), default=1)
    if patch not in sides:
        raise UsageError(
            f"model.patch={patch}: an image of {height} x {width} pixels has no whole number of such patches. "
            f"Choose from {', '.join(map(str, sides))}"
        )
    return patch


def position_names(image: Pixels, side: int) -> tuple[str, ...]:
    """``ROW,COLUMN`` of each patch, in the order of ``cut``."""
    rows, columns = image.height // side, image.width // side
    return tuple(f"{row},{column}" for row in range(rows) for column in range(columns))


def cut(x: Tensor, image: Pixels, side: int) -> Tensor:  # (B, C H W + conditions) -> (B, T, C side side)
    """The image's patches, row by row."""
    pixels = x[:, : image.number].unflatten(-1, image[:3])
    return F.unfold(pixels, side, stride=side).transpose(1, 2)


def joined(patches: Tensor, image: Pixels, side: int) -> Tensor:  # (B, T, C side side) -> (B, C H W)
    """The image that ``cut`` would cut into these patches."""
    return F.fold(patches.transpose(1, 2), image[1:3], side, stride=side).flatten(1)
