"""A decision as text for a terminal: tables of experts, and texts coloured by the expert that serves each token."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from rich.text import Text

from moecli.analysis.coloured_text import for_terminal, spans, visible
from moecli.analysis.decision import Decision, Explanation, Part
from moecli.report.terminal import columns

MOST_EXPERTS = 16  # of a table; those asked come first, --json has all
WIDTH = 72  # symbols of a line of text
CLOSE = 5  # of a text's decisions, the closest calls
ALONE = "there is one expert, which serves everything"
UNSCORED = "no gate scores these experts: the router goes by a table, a rule or slots"
NOBODY = "."  # below a symbol that no expert serves
SIGNS = "0123456789abcdefghijklmnopqrstuvwxyz"  # of experts, one a symbol; + beyond


def lines(explanation: Explanation) -> list[str]:
    """Everything but the coloured text, plain."""
    answer = " · ".join(f"{name} {_short(value)}" for name, value in explanation.prediction.items())
    found = [f" {explanation.input}" + (f" → {answer}" if answer else "")]
    for layer in explanation.layers:
        decisions = explanation.of(layer)
        found += ["", *(_one(decisions[0]) if len(decisions) == 1 else _many(layer, decisions))]
    return [*found, *(f" note: {note}" for note in explanation.notes)]


def coloured(explanation: Explanation) -> list[tuple[str, Text]]:
    """Of a text each layer's name, and its symbols on the colours of their first experts; else nothing."""
    found = []
    for layer in explanation.layers:
        decisions = explanation.of(layer)
        if len(decisions) > 1:
            parts = spans([str(d.symbol) for d in decisions], [d.first for d in decisions])
            found.append((layer, for_terminal(parts, len(decisions[0].parts))))
    return found


def as_record(explanation: Explanation) -> dict[str, Any]:
    """For JSON: all that is known, with each decision's first expert, rivals and margin said outright."""
    decisions = []
    for decision in explanation.decisions:
        rivals = decision.rivals
        found = {"first": decision.first, "margin": decision.margin, "runner_up": rivals and rivals[1].expert}
        dropped = [part.expert for part in decision.asked if not part.served]
        decisions.append({**asdict(decision), **found, "dropped": dropped})
    return {**asdict(explanation), "decisions": decisions}


# -- one token ----------------------------------------------------------------------------------------


def _one(decision: Decision) -> list[str]:
    token = "" if decision.symbol is None else f" · {visible(decision.symbol)} at {decision.position}"
    head = ["expert", "gate logit", "probability", "asked", "served", "weight", "share of the answer"]
    first = sorted(decision.parts, key=lambda part: not part.asked)
    shown = [part for part in decision.parts if part in first[:MOST_EXPERTS]]
    rest = len(decision.parts) - len(shown)
    return [
        f" {decision.layer}{token}",
        *columns([head, *(_row(part) for part in shown)], left=(0, 3, 4)),
        *([f" … {rest} more experts, none of them asked"] if rest else []),
        f" {_why(decision)}",
        *(f"   would change it: {change}" for change in decision.changes),
    ]


def _row(part: Part) -> list[str]:
    logit = "" if part.logit is None else f"{part.logit:.3f}"
    share = "" if part.contribution is None or not part.served else f"{part.contribution:.0%}"
    asked, served = ("yes" if part.asked else "", "yes" if part.served else "dropped" if part.asked else "")
    return [
        f"e{part.expert}",
        logit,
        f"{part.prob:.1%}",
        asked,
        served,
        f"{part.weight:.3f}" if part.served else "",
        share,
    ]


def _why(decision: Decision) -> str:
    """One sentence: the margin, or why there is none."""
    rivals, margin = decision.rivals, decision.margin
    if rivals is None or margin is None:
        return ALONE if len(decision.parts) == 1 else UNSCORED
    held, next_best = rivals
    if margin < 0:
        return (
            f"e{next_best.expert} has the higher logit by {-margin:.3f} and was not asked: the router goes by more than "
            "the gate (a bias, groups, or other tokens' claims)"
        )
    ahead = f"e{held.expert} is ahead of e{next_best.expert} by {margin:.3f} in logit, {held.prob - next_best.prob:.1%} in probability"
    dropped = [f"e{part.expert}" for part in decision.asked if not part.served]
    full = f"; {' and '.join(dropped)} had no room left (router.capacity_factor)" if dropped else ""
    if len(decision.asked) == len(decision.parts):
        return f"every expert is asked, and weights decide: {ahead}{full}"
    return f"the last one asked, {ahead}{full}"


# -- a text -------------------------------------------------------------------------------------------


def _many(layer: str, decisions: Sequence[Decision]) -> list[str]:
    """The text with its experts' numbers below it, who served how much, and the closest calls."""
    served = Counter(decision.first for decision in decisions)
    shares = ", ".join(f"{_name(e)} {n / len(decisions):.0%}" for e, n in served.most_common())
    dropped = sum(any(part.asked and not part.served for part in decision.parts) for decision in decisions)
    lost = f" · {dropped} of {len(decisions)} tokens lost an expert to capacity" if dropped else ""
    return [f" {layer} · first expert of each token: {shares}{lost}", "", *_written(decisions), "", *_close(decisions)]


def _written(decisions: Sequence[Decision]) -> list[str]:
    symbols = [visible(str(decision.symbol)) for decision in decisions]
    signs = [_sign(decision.first).ljust(len(symbol)) for decision, symbol in zip(decisions, symbols, strict=True)]
    gap = "" if all(len(symbol) == 1 for symbol in symbols) else " "
    found, line = [], ["", ""]
    for symbol, sign in zip(symbols, signs, strict=True):
        if len(line[0]) + len(symbol) > WIDTH:
            found += line
            line = ["", ""]
        line = [line[0] + symbol + gap, line[1] + sign + gap]
    return [f"   {text}".rstrip() for text in [*found, *line]]


def _close(decisions: Sequence[Decision]) -> list[str]:
    scored = [decision for decision in decisions if decision.margin is not None and decision.rivals is not None]
    closest = sorted(scored, key=lambda decision: abs(decision.margin or 0.0))[:CLOSE]
    if not closest:
        return [f" {UNSCORED}"]
    rows = [
        [str(d.position), visible(str(d.symbol)), _name(d.first), f"{d.margin:.3f}", f"e{d.rivals[1].expert}"]
        for d in closest
        if d.rivals is not None
    ]
    return [
        " the closest calls (more of one: --at POSITION)",
        *columns([["at", "token", "first", "margin", "runner-up"], *rows], left=(1, 2, 4)),
    ]


def _name(expert: int) -> str:
    return f"e{expert}" if expert >= 0 else "nobody"


def _sign(expert: int) -> str:
    return NOBODY if expert < 0 else SIGNS[expert] if expert < len(SIGNS) else "+"


def _short(value: Any) -> str:
    return f"{value:.3f}" if isinstance(value, float) else visible(str(value))
