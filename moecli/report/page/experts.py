"""A page for each expert: its load over training, what it serves with examples, and who fires with it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moecli.record.folder import Run
from moecli.report.page.examples import Example, Show
from moecli.report.page.trace import LayerTrace
from moecli.report.page.values import Cell, Chart, Curve, Level, Table, percent
from moecli.report.terminal import number

MOST_LABELS = 6  # of a label's values on an expert's page
MOST_PARTNERS = 5
MOST_EXAMPLES = 8
LOAD_POINTS = 32  # of an expert's load over training


@dataclass(frozen=True)
class Shown:
    """An example with what the expert's weight for it was and its labels."""

    example: Example
    said: str


@dataclass(frozen=True)
class Expert:
    """One expert's page, reached by ``anchor``."""

    anchor: str
    name: str
    facts: Sequence[tuple[str, str]]
    load: Chart | None
    tables: Sequence[Table]
    examples: Sequence[Shown]
    served: int  # inputs of the test split
    note: str  # why no example is shown


def page(
    trace: LayerTrace,
    row: Mapping[str, Any],
    anchors: Sequence[str],
    usage: Mapping[str, NDArray[Any]],
    together: NDArray[np.floating] | None,
    show: Show | str,
) -> Expert:
    """The page of ``row``'s expert; ``anchors`` are those of its layer's pages, ``together`` (E, E) who fires with whom."""
    expert = int(row["expert"])
    tables = [*_serves(trace, expert), *_partners(trace, expert, together, anchors)]
    shown, served = _examples(trace, expert, show)
    note = show if isinstance(show, str) else "" if shown else "It serves no input of the test split"
    facts = _facts(trace.run, row)
    return Expert(
        anchors[expert], f"Expert e{expert} of {trace.layer}", facts, _load(usage, expert), tables, shown, served, note
    )


def _facts(run: Run, row: Mapping[str, Any]) -> list[tuple[str, str]]:
    facts = [
        ("load", f"{percent(row['load'])} of the layer's work"),
        ("first choice", f"of {percent(row['first'])} of the tokens"),
        ("gate's entropy", f"{row['entropy']:.2f} nats on what it serves"),
    ]
    without = change(run, row["without"])
    return [*facts, (f"test {run.info['headline']} without it", without)] if without else facts


def _load(usage: Mapping[str, NDArray[Any]], expert: int) -> Chart | None:
    """Its share of each recorded training step's work, averaged where there are many steps."""
    if not usage:
        return None
    total = usage["served"].sum(1).astype(float)
    share = np.divide(usage["served"][:, expert], total, out=np.zeros(len(total)), where=total > 0)
    parts = np.array_split(np.arange(len(share)), min(len(share), LOAD_POINTS))
    curve = Curve(f"e{expert}", [float(usage["step"][p[-1]]) for p in parts], [float(share[p].mean()) for p in parts])
    even = 1 / usage["served"].shape[1]
    return Chart(
        "Load over training", "share of the work", [curve], [f"e{expert}"], [Level(f"even share {even:.3f}", even)]
    )


def _serves(trace: LayerTrace, expert: int) -> Iterator[Table]:
    """For each label the values that make up most of its work, beside their share of all tokens."""
    for label, found in trace.labels.items():
        table, counts = found.table, found.counts
        work = table[:, expert].sum() if len(table) else 0.0
        if work <= 0 or np.count_nonzero(counts) < 2:
            continue
        part, chance = table[:, expert] / work, counts / counts.sum()
        top = [v for v in np.argsort(-part, kind="stable")[:MOST_LABELS] if part[v] > 0]
        lines = [_value(trace.name_of(label, v), float(part[v]), float(chance[v])) for v in top]
        rest = f", the {len(lines)} largest" if len(lines) < np.count_nonzero(counts) else ""
        head = [label, "share of its work", "of all tokens (chance)", "times chance"]
        yield Table(f"What it serves by {label}{rest}", head, lines, frozenset({1, 2, 3}))


def _value(name: str, part: float, chance: float) -> list[Cell]:
    return [
        Cell(name),
        Cell(percent(part), part),
        Cell(percent(chance), chance),
        Cell(f"{part / chance:.1f}", part / chance),
    ]


def _partners(
    trace: LayerTrace, expert: int, together: NDArray[np.floating] | None, anchors: Sequence[str]
) -> Iterator[Table]:
    """Who serves the same tokens, beside who serves how much of all."""
    if together is None or not together[expert].any():
        return
    base = (trace.share > 0).mean(0)
    top = [
        other for other in np.argsort(-together[expert], kind="stable")[:MOST_PARTNERS] if together[expert, other] > 0
    ]
    lines = [
        [
            Cell(f"e{other}", float(other), anchors[other] if other < len(anchors) else ""),
            Cell(percent(together[expert, other]), float(together[expert, other])),
            Cell(percent(base[other]), float(base[other])),
        ]
        for other in top
    ]
    head = ["expert", "serves of its tokens", "of all tokens"]
    yield Table("Who fires with it", head, lines, frozenset({1, 2}))


def _examples(trace: LayerTrace, expert: int, show: Show | str) -> tuple[list[Shown], int]:
    """Inputs from the heaviest weight to the lightest, evenly spaced, so that none is picked to please."""
    if not len(trace.share):
        return [], 0
    weight = trace.share[:, expert]
    order = np.argsort(-weight, kind="stable")[: np.count_nonzero(weight)]
    if isinstance(show, str) or not len(order):
        return [], len(order)
    place = np.unique(np.linspace(0, len(order) - 1, MOST_EXAMPLES).round().astype(int))
    return [_shown(trace, int(token), float(weight[token]), show) for token in order[place]], len(order)


def _shown(trace: LayerTrace, token: int, weight: float, show: Show) -> Shown:
    example = show(int(trace.tokens["sequence"][token]), int(trace.tokens["position"][token]))
    labels = [f"{name} {trace.name_of(name, int(trace.tokens[f'label_{name}'][token]))}" for name in trace.labels]
    return Shown(example, ", ".join([*labels, f"weight {number(weight, 2)}"]))


def change(run: Run, without: float | None) -> str:
    """How the headline metric changes, with a sign that is no hyphen."""
    if without is None:
        return ""
    text = f"{100 * without:+.1f} pt" if run.info["headline"] == "accuracy" else f"{without:+.3f}"
    return text.replace("-", "−")
