"""Inputs as people read them: digits as images, characters in their text, rows as features.

A run folder records who served which input by its number; the input itself comes from the task, read again
from the run's configuration, and only where the data still has the fingerprint that the run recorded.
"""

from __future__ import annotations

import base64
import io
import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from PIL import Image

from moecli import config
from moecli.errors import MoeError
from moecli.record.folder import Run
from moecli.tasks.task import Task

SPLIT = "test"
AROUND = 28  # characters on each side of one
MOST_FEATURES = 6
SIGNS = {"\n": "⏎", "\t": "⇥", "\r": "␍"}


@dataclass(frozen=True)
class Example:
    """An image (``uri``), or a text whose ``mark`` is what was routed, between what stands before and after."""

    mark: str = ""
    before: str = ""
    after: str = ""
    uri: str = ""


Show = Callable[[int, int], Example]  # (number of the example in the test split, position in it)


class Inputs:
    """Shows inputs of runs; runs of one task and its data share what was read of it."""

    def __init__(self) -> None:
        self.known: dict[str, Show | str] = {}

    def of(self, run: Run) -> Show | str:
        """How to show an input of the run's test split, or the sentence that says why that is not possible."""
        try:
            node = config.read(run.path / "config.yaml")["task"]
            key = json.dumps([node, run.info["fingerprint"]], sort_keys=True)
            if key not in self.known:
                self.known[key] = _shower(config.build(node), run.info["fingerprint"])
            return self.known[key]
        except MoeError as error:
            return str(error).replace(str(run.path), run.path.name)
        except (MemoryError, RuntimeError) as error:  # sizes in a foreign configuration
            return f"The data cannot be read again ({error})"


def _shower(task: Task, fingerprint: str) -> Show | str:
    return _kind(task) if task.fingerprint == fingerprint else "The data is no longer what the run read"


def _kind(task: Task) -> Show | str:
    side = image_side(task.feature_names)
    if "ids" in task.gives:
        return partial(_character, task)
    if side:
        return partial(_image, task, side)
    if "vectors" in task.gives and len(task.feature_names) == task.dim:
        return partial(_row, task)
    return "An input of this task has no form that a page could show"


def image_side(names: list[str]) -> tuple[int, int] | None:
    """(height, width) where the features are exactly the pixels of an image, row by row."""
    places = [re.fullmatch(r"pixel (\d{1,3}),(\d{1,3})", name) for name in names]
    if not places or not all(places):
        return None
    found = [(int(place[1]), int(place[2])) for place in places if place]
    height, width = found[-1][0] + 1, found[-1][1] + 1
    return (height, width) if found == [(r, c) for r in range(height) for c in range(width)] else None


def _image(task: Task, side: tuple[int, int], number: int, position: int) -> Example:
    pixels = task.batch(SPLIT, torch.tensor([number])).x[0].view(side)
    low, high = min(0.0, float(pixels.min())), max(1.0, float(pixels.max()))
    gray = (255 * (pixels - low) / (high - low)).round().byte().numpy()
    buffer = io.BytesIO()
    Image.fromarray(gray).save(buffer, "PNG", optimize=True)
    return Example(uri=data_uri("png", buffer.getvalue()))


def data_uri(kind: str, data: bytes) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"


def _character(task: Task, number: int, position: int) -> Example:
    symbols = [SIGNS.get(symbol, symbol) for symbol in task.kind.symbols]  # type: ignore[attr-defined]
    ids = task.batch(SPLIT, torch.tensor([number])).x[0].tolist()
    text = [symbols[i] if i >= 0 else "" for i in ids]  # padding is nothing to show
    before, after = text[max(0, position - AROUND) : position], text[position + 1 : position + 1 + AROUND]
    return Example(text[position], "".join(before), "".join(after))


def _row(task: Task, number: int, position: int) -> Example:
    """The first features, in the units of the user's columns."""
    center, factor = (np.array(part) for part in task.feature_units())
    values = task.batch(SPLIT, torch.tensor([number])).x[0].double().numpy() / factor + center
    named = zip(task.feature_names[:MOST_FEATURES], values, strict=False)
    more = ", …" if task.dim > MOST_FEATURES else ""
    return Example(", ".join(f"{name} {value:.4g}" for name, value in named) + more)
