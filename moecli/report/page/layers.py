"""A mixture layer of a run: its balance in words, its experts as a table, and heat maps of who serves what."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moecli.record.folder import Run
from moecli.record.trace import TraceReader
from moecli.report.page.examples import Show
from moecli.report.page.experts import Expert, change, page
from moecli.report.page.trace import LayerTrace
from moecli.report.page.values import Cell, Heat, Table, percent

MOST_VALUES = 40  # rows of a heat map
MOST_COLUMNS = 64  # experts up to which who serves which label and who fires with whom is drawn


@dataclass(frozen=True)
class Layer:
    """A mixture layer of a run: its numbers in words, its experts as a table and each on a page, and heat maps."""

    name: str
    lines: Sequence[str]
    table: Table
    heats: Sequence[Heat]
    experts: Sequence[Expert]


def layers(run: Run, prefix: str, show: Show | str, most: int) -> list[Layer]:
    """Each mixture layer of a finished run; anchors begin with ``prefix``, and ``most`` experts in all get a page."""
    found: list[Layer] = []
    for index, name in enumerate(run.layers):
        rows = [row for row in run.summary["experts"] if row["layer"] == name]
        if rows:
            left = most - sum(len(layer.experts) for layer in found)
            anchors = [f"{prefix}-{index}-e{n}" if n < left else "" for n in range(len(rows))]
            found.append(_layer(LayerTrace.of(run, name), anchors, rows, show))
    return found


def _layer(trace: LayerTrace, anchors: Sequence[str], rows: Sequence[dict[str, Any]], show: Show | str) -> Layer:
    run, usage = trace.run, TraceReader(trace.run.path).usage(trace.layer)
    together, paged = trace.together, [anchor for anchor in anchors if anchor]
    pages = [page(trace, row, paged, usage, together, show) for row, _ in zip(rows, paged, strict=False)]
    said = next((layer for layer in run.summary["layers"] if layer["layer"] == trace.layer), None)
    heats = [*_label_heats(trace, anchors), *_together_heat(trace, together, anchors)]
    return Layer(trace.layer, _lines(said, len(rows)), _table(run, trace.layer, rows, anchors), heats, pages)


def _lines(layer: Mapping[str, Any] | None, num_experts: int) -> list[str]:
    """A layer's balance, and each mutual information beside what shuffled documents would give."""
    if layer is None:
        return []
    balance = (
        f"effective experts {layer['effective_experts']:.1f} of {num_experts} · the busiest does "
        f"{layer['max_over_mean']:.2f} times its fair share · dropped {layer['dropped']:.0%}"
    )
    return [balance, *(f"experts and {label}: {against(measure)}" for label, measure in layer["nmi"].items())]


def against(measure: Mapping[str, Any]) -> str:
    """NMI 0.49 (chance 0.05 ± 0.01)."""
    if measure["chance"] is None:
        return f"NMI {measure['value']:.2f} (chance unknown: too few documents)"
    return f"NMI {measure['value']:.2f} (chance {measure['chance']:.2f} ± {measure['chance_sd']:.2f})"


# -- the table of a layer's experts -----------------------------------------------------------


def _table(run: Run, layer: str, rows: Sequence[dict[str, Any]], anchors: Sequence[str]) -> Table:
    label = rows[0]["label"]
    without = f"{run.info['headline']} without it"
    head = ["expert", "load", "first choice", "entropy (nats)", f"serves ({label})" if label else "serves", without]
    lines = [_row(run, row, anchor) for row, anchor in zip(rows, anchors, strict=True)]
    even = f"An even share would be {1 / len(rows):.1%}; each expert's name leads to its page"
    return Table(f"Experts of {layer} on the test split. {even}", head, lines, frozenset({1, 2, 3, 5}))


def _row(run: Run, row: Mapping[str, Any], anchor: str) -> list[Cell]:
    serves = ", ".join(f"{name} ({share:.0%})" for name, share in row["serves"])
    return [
        Cell(f"e{row['expert']}", row["expert"], anchor),
        Cell(percent(row["load"]), row["load"]),
        Cell(percent(row["first"]), row["first"]),
        Cell(f"{row['entropy']:.2f}", row["entropy"]),
        Cell(serves),
        Cell(change(run, row["without"]), row["without"]),
    ]


# -- heat maps --------------------------------------------------------------------------------


def _label_heats(trace: LayerTrace, anchors: Sequence[str]) -> Iterator[Heat]:
    """For each label who serves it: a row a value, and last what all tokens together have, which is chance."""
    for label, found in trace.labels.items():
        table, counts = found.table, found.counts
        values = np.flatnonzero(counts)
        if len(values) < 2 or len(anchors) > MOST_COLUMNS:
            continue
        often = np.sort(values[np.argsort(-counts[values], kind="stable")[:MOST_VALUES]])
        chance = table.sum(0) / counts.sum()
        share = np.vstack([table[often] / counts[often, None], chance])
        rest = "" if len(often) == len(values) else f" The {MOST_VALUES} most frequent of {len(values)} values."
        yield Heat(
            f"Which experts serve which {label}",
            [*(trace.name_of(label, v) for v in often), "all (chance)"],
            [f"e{number}" for number in range(len(anchors))],
            share,
            chance,
            f"Percent of the work on a value's tokens. Every row would equal the last if experts ignored {label}.{rest}",
            f"{_literal(label)} {{row}}, {{column}}: {{share}} (chance {{chance}})",
            anchors,
        )


def _literal(text: str) -> str:
    return text.replace("{", "{{").replace("}", "}}")


def _together_heat(trace: LayerTrace, together: NDArray[np.floating] | None, anchors: Sequence[str]) -> Iterator[Heat]:
    if together is None or len(anchors) > MOST_COLUMNS:
        return
    names = [f"e{number}" for number in range(len(anchors))]
    used = (trace.share > 0).sum(0)
    apart = np.where(np.eye(len(anchors), dtype=bool), np.nan, together)
    note = "Percent of the row's tokens that the column serves too; chance is the column's share of all tokens."
    sentence = "{column} serves {share} of the tokens of {row} (chance {chance})"
    yield Heat("Who fires with whom", names, names, apart, used / len(trace.share), note, sentence, anchors)


def load_heat(run: Run, layers: Sequence[Layer]) -> Heat | None:
    """Load on the test split: layer x expert, beside the even share; columns lead to the pages of an only layer."""
    loads = {name: [row["load"] for row in run.summary["experts"] if row["layer"] == name] for name in run.layers}
    loads = {name: load for name, load in loads.items() if load}
    width = max(map(len, loads.values()), default=0)
    if not width or width > 2 * MOST_COLUMNS:
        return None
    share = np.array([load + [math.nan] * (width - len(load)) for load in loads.values()])
    even = np.array([[1 / len(load)] * width for load in loads.values()])
    names = [f"e{number}" for number in range(width)]
    note = "Percent of each layer's work on the test split; an even share is " + ", ".join(
        sorted({f"{100 / len(load):.3g} %" for load in loads.values()})
    )
    sentence = "{row}, {column}: {share} (even share {chance})"
    links = [row[0].href for row in layers[0].table.rows] if len(layers) == 1 else []
    return Heat("Load by layer and expert", list(loads), names, share, even, f"{note}.", sentence, links)
