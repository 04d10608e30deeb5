"""Images that a model of noise made of nothing but noise, a row for each class."""

from __future__ import annotations

from typing import Any

import numpy as np

from moecli.plots.figure import WIDTH, Picture, heading, new, safe, styled
from moecli.record.folder import Run
from moecli.record.trace import TraceReader

Array = np.ndarray[Any, Any]
MOST_CLASSES = 20
GAP = 1  # pixels between two images
FRAME, LABELS = 16, 20  # mm around the images: above, and to the left


@styled
def draw(run: Run) -> dict[str, Picture]:
    """One figure, where the run wrote samples."""
    arrays = TraceReader(run.path).samples()
    if not arrays:
        return {}
    image, number = arrays["image"], arrays["class"]
    classes = np.unique(number)[:MOST_CLASSES]
    sheet = np.concatenate([_row(image[number == each]) for each in classes])[:-GAP]  # (rows, columns, C)
    rest = "" if len(classes) == len(np.unique(number)) else f"; the first {MOST_CLASSES} classes"
    height = FRAME + (WIDTH - LABELS) * sheet.shape[0] / sheet.shape[1]
    title = f"{heading(run, 'images made of noise, each row told its class')}\nfrom the best weights{rest}"
    figure, grid = new(title, height)
    axes = grid[0, 0]
    axes.imshow(sheet if sheet.shape[-1] == 3 else sheet[..., 0], cmap="gray", vmin=0, vmax=1, interpolation="nearest")
    tall = image.shape[2] + GAP
    shown = [safe(run.label_name("class", each), 12) for each in classes]
    axes.set_yticks(np.arange(len(classes)) * tall + (tall - GAP) / 2 - 0.5, shown)
    axes.set_xticks([])
    axes.set_ylabel("class")
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    return {"samples": Picture(figure, _numbers(image, [run.label_name("class", each) for each in number]))}


def _numbers(image: Array, classes: list[str]) -> dict[str, Any]:
    """A line an image, its pixels channel by channel and row by row."""
    pixels = image.reshape(len(image), -1).T
    return {"class": classes, **{f"pixel {index}": column for index, column in enumerate(pixels)}}


def _row(images: Array) -> Array:
    """(M, C, H, W) side by side, light between and below them: (H + GAP, M (W + GAP) - GAP, C)."""
    padded = np.pad(images.transpose(0, 2, 3, 1), ((0, 0), (0, GAP), (0, GAP), (0, 0)), constant_values=1.0)
    return np.concatenate(list(padded), axis=1)[:, :-GAP]
