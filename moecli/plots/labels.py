"""Experts by label: which expert serves the tokens of each class or other label, and all tokens."""

from __future__ import annotations

import numpy as np

from moecli.analysis.specialisation import Work, shares
from moecli.plots.figure import Picture, heading, safe, stem, styled
from moecli.plots.recorded import MOST_NAMED, Recorded, last
from moecli.plots.shares import share_map, share_numbers
from moecli.record.folder import Run

MOST_ROWS = 40  # label values; the most frequent ones where there are more


@styled
def draw(run: Run) -> dict[str, Picture]:
    """One figure for each layer and each label that has several values, of the last recorded tokens."""
    figures = {}
    for layer in run.layers:
        found = last(run, layer)
        for name in found.labels if found else ():
            assert found is not None
            share = shares(found.tokens, run.layers[layer]["experts"])
            work = Work.of(share, found.tokens[f"label_{name}"].astype(int))
            if np.count_nonzero(work.counts) > 1:
                figures[stem("labels", layer, name)] = _picture(run, layer, name, found, work)
    return figures


def _picture(run: Run, layer: str, name: str, found: Recorded, work: Work) -> Picture:
    table, counts = work.table, work.counts  # (V, E), (V,)
    values = np.flatnonzero(counts)
    often = np.sort(values[np.argsort(-counts[values], kind="stable")[:MOST_ROWS]])
    tokens = np.append(counts[often], counts.sum())
    rows = np.vstack([table[often], table.sum(0)]) / tokens[:, None]
    rest = "" if len(often) == len(values) else f"; the {MOST_ROWS} most frequent of {len(values)} values"
    note = f"{found.where}{rest}. Each row would equal 'all' if experts ignored the label"
    title = f"{heading(run, f'which experts serve which {safe(name)}', layer)}\n{note}"
    values_named = [*(run.label_name(name, value) for value in often), "all"]
    shown = [f"{safe(text, MOST_NAMED)} · {count}" for text, count in zip(values_named, tokens, strict=True)]
    figure, _ = share_map(title, f"{safe(name)} · tokens", rows, shown)
    numbers = share_numbers(rows, values_named, name)
    return Picture(figure, {**numbers, "tokens": np.repeat(tokens, rows.shape[1])})
