"""Experts by label: which expert serves the tokens of each class or other label, and all tokens."""

from __future__ import annotations

from typing import Any

import numpy as np

from moecli.plots.figure import Picture, heading, safe, stem, styled
from moecli.plots.recorded import MOST_NAMED, Recorded, last, value_name
from moecli.plots.shares import share_map, share_numbers
from moecli.record.folder import Run

Array = np.ndarray[Any, Any]
MOST_ROWS = 40  # label values; the most frequent ones where there are more


@styled
def draw(run: Run) -> dict[str, Picture]:
    """One figure for each layer and each label that has several values, of the last recorded tokens."""
    figures = {}
    for layer in run.layers:
        found = last(run, layer)
        for name in found.labels if found else ():
            assert found is not None
            table, counts = _table(found.tokens, name, run.layers[layer]["experts"])
            if np.count_nonzero(counts) > 1:
                figures[stem("labels", layer, name)] = _picture(run, layer, name, found, table, counts)
    return figures


def _table(tokens: dict[str, Array], name: str, num_experts: int) -> tuple[Array, Array]:
    """Work by label value and expert (V, E), and the tokens of each value (V,), each token counting once.

    Tokens that no expert served, and those without a label (-1), are left out.
    """
    expert, label = tokens["expert"].astype(int), tokens[f"label_{name}"].astype(int)
    weight = np.where(expert >= 0, tokens["weight"], 0).astype(float)  # (n, K)
    total = weight.sum(1)
    kept = (total > 0) & (label >= 0)
    expert, label, share = expert[kept], label[kept], weight[kept] / total[kept, None]
    table = np.zeros((label.max(initial=-1) + 1, num_experts))
    np.add.at(table, (np.broadcast_to(label[:, None], expert.shape), expert), share)  # an absent one adds 0
    return table, np.bincount(label, minlength=len(table))


def _picture(run: Run, layer: str, name: str, found: Recorded, table: Array, counts: Array) -> Picture:
    values = np.flatnonzero(counts)
    often = np.sort(values[np.argsort(-counts[values], kind="stable")[:MOST_ROWS]])
    tokens = np.append(counts[often], counts.sum())
    rows = np.vstack([table[often], table.sum(0)]) / tokens[:, None]
    rest = "" if len(often) == len(values) else f"; the {MOST_ROWS} most frequent of {len(values)} values"
    note = f"{found.where}{rest}. Each row would equal 'all' if experts ignored the label"
    title = f"{heading(run, f'which experts serve which {safe(name)}', layer)}\n{note}"
    values_named = [*(value_name(run, name, value) for value in often), "all"]
    shown = [f"{safe(text, MOST_NAMED)} · {count}" for text, count in zip(values_named, tokens, strict=True)]
    figure, _ = share_map(title, f"{safe(name)} · tokens", rows, shown)
    numbers = share_numbers(rows, values_named, name)
    return Picture(figure, {**numbers, "tokens": np.repeat(tokens, rows.shape[1])})
