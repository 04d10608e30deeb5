"""Flow: from which expert of one layer to which of the next, as shares of each first expert's tokens."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np

from moecli.analysis.flow import flow
from moecli.plots.figure import Picture, heading, named, stem, styled
from moecli.plots.recorded import Recorded, last
from moecli.plots.shares import share_map, share_numbers
from moecli.record.folder import Run

Array = np.ndarray[Any, Any]
MOST_ROWS = 40  # experts; the most used ones where there are more


@styled
def draw(run: Run) -> dict[str, Picture]:
    """One figure for each layer with the one after it."""
    figures = {}
    for a, b in pairwise(run.layers):
        here, there = last(run, a), last(run, b)
        if here is not None and there is not None and len(here.first) == len(there.first):
            figures[stem("flow", a, b)] = _picture(run, (a, b), here, there)
    return figures


def _picture(run: Run, layers: tuple[str, str], here: Recorded, there: Recorded) -> Picture:
    counts = flow(here.first, there.first, *(run.layers[layer]["experts"] for layer in layers)).astype(float)
    used = counts.sum(1)
    shown = np.sort(np.argsort(-used, kind="stable")[:MOST_ROWS])
    shown = shown[used[shown] > 0]
    rows = np.vstack([counts[shown], counts.sum(0)])
    total = rows.sum(1)
    a, b = map(named, layers)
    rest = "" if len(shown) == np.count_nonzero(used) else f"; the {MOST_ROWS} most used of {len(used)} experts"
    note = f"{here.where}{rest}. Each row would equal 'all' if {b} ignored where {a} sent a token"
    title = f"{heading(run, f'where tokens go next: first experts of {a} and {b}')}\n{note}"
    names = [*(f"e{expert}" for expert in shown), "all"]
    rows = rows / np.maximum(total, 1)[:, None]
    labels = [f"{name} · {count:.0f}" for name, count in zip(names, total, strict=True)]
    figure, _ = share_map(title, f"expert of {a} · tokens", rows, labels, f"expert of {b}")
    numbers = share_numbers(rows, names, f"expert of {layers[0]}", f"expert of {layers[1]}")
    return Picture(figure, {**numbers, "tokens": np.repeat(total, rows.shape[1])})
