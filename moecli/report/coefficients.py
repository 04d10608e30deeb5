"""Coefficient tables and criteria of a classical mixture as text for a terminal, and as records for JSON."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from moecli.analysis.coefficients import Coefficients, Estimate
from moecli.report.terminal import columns

TITLES = {
    "experts": "experts: what each answers, on the scale of its link",
    "gate": "gate: log-odds against e0",
    "dispersion": "dispersion: the spread around each expert's answer",
    "shares": "shares: the mean of the gate's probability over the training rows",
}
HEAD = ["estimate", "std. error", "z", "95 % from", "to"]


def lines(found: Coefficients) -> list[str]:
    """A table for each part, then what a reader must know."""
    parts = {
        line.label.part: [e for e in found.estimates if e.label.part == line.label.part] for line in found.estimates
    }
    tables = [text for part, estimates in parts.items() for text in ["", f" {TITLES[part]}", *_table(estimates)]]
    return [*tables, *(f" note: {note}" for note in found.notes)]


def _table(estimates: Sequence[Estimate]) -> list[str]:
    several = len({line.label.target for line in estimates}) > 1
    head = ["expert", *(["target"] if several else []), "", *HEAD]
    rows = [
        [f"e{e.label.expert}", *([e.label.target] if several else []), e.label.name, *map(digits, _numbers(e))]
        for e in estimates
    ]
    return columns([head, *rows], left=range(len(head) - len(HEAD)))


def _numbers(line: Estimate) -> tuple[float, ...]:
    return line.value, line.deviation, line.z, line.low, line.high


def digits(value: float) -> str:
    """Four significant digits; nothing for what is not known."""
    return "" if math.isnan(value) else f"{value:.4g}".replace("-", "−")


def criteria_line(numbers: dict[str, Any]) -> str:
    return (
        f" log-likelihood {numbers['loglik']:.3f} · {numbers['identified']} parameters · {numbers['rows']:g} rows · "
        f"AIC {numbers['aic']:.2f} · BIC {numbers['bic']:.2f} · ICL {numbers['icl']:.2f}"
    )


def records(found: Coefficients) -> list[dict[str, Any]]:
    """One dictionary a line of the tables."""
    names = ("estimate", "std_error", "z", "low", "high")
    return [
        {**{k: v for k, v in asdict(e.label).items() if k != "kind"}, **dict(zip(names, _numbers(e), strict=True))}
        for e in found.estimates
    ]
