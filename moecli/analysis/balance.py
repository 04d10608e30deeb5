"""How the experts of a run share the work, from its routing trace: dead ones, collapse, drops, drift.

The thresholds stand here and in ``training/health.py``, which watches the same while a run trains.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from moecli.analysis.finding import Finding
from moecli.errors import MoeError
from moecli.record.folder import Run
from moecli.record.trace import TraceReader
from moecli.routing import Usage
from moecli.training.health import FEW, REMEDY, WINDOW, effective_experts, examine

# Half way from its fair share to serving every token: uneven experts are usual, one that serves most tokens is not.
LOPSIDED = 0.5
# A fifth of the work in other hands in the last quarter of a training, when most learning rates are low: not settled.
DRIFT = 0.2
# Choices an expert would get under uniform routing, below which two windows differ by more than a tenth by luck alone.
ENOUGH = 5 * FEW


def check_experts(run: Run) -> list[Finding]:
    """Findings for each mixture layer; none where run.json is damaged."""
    try:
        layers, config = run.layers, run.info.get("config", {})
    except MoeError:
        return []
    if not isinstance(layers, dict):
        return []
    return [finding for name, layer in layers.items() for finding in _layer(run, name, layer, config)]


def _layer(run: Run, name: str, layer: dict[str, Any], config: dict[str, Any]) -> list[Finding]:
    if layer.get("experts", 0) < 2:
        return [Finding("skipped", "experts", f"{name}: it has one expert, so there is nothing to share")]
    try:
        usage = TraceReader(run.path).usage(name)
        recorded = len(usage.get("step", ()))
        if recorded < WINDOW and run.info.get("status") != "finished":
            return [Finding("skipped", "experts", f"{name}: too early, {recorded} of {WINDOW} steps are recorded")]
        return examine_trace(name, usage, meant=config.get("router.mask") or 0.0)
    except MoeError:  # which file it is says the check of the folder
        return [Finding("skipped", "experts", f"{name}: its routing trace cannot be read")]


def examine_trace(name: str, usage: dict[str, NDArray], meant: float = 0.0) -> list[Finding]:
    """What a layer's ``TraceReader.usage`` shows; ``meant`` is the share of tokens dropped on purpose (router.mask)."""
    if not usage or not usage["tokens"].any():
        return [Finding("skipped", "experts", f"{name}: no token was recorded")]
    last = window(usage, len(usage["step"]))
    facts = _facts(last)
    wrong = [*_unused(name, last, meant), *_lopsided(name, facts), *_drift(name, usage, last)]
    if wrong:
        return [Finding("warning", "experts", w.what, w.why, w.do, {**facts.measured, **w.measured}) for w in wrong]
    what = f"{name}: effective experts {facts.effective:.1f} of {len(last.asked)}, none dead"
    why = f"the busiest does {facts.busiest:.1f} times its fair share, dropped {facts.dropped:.1%}"
    return [Finding("ok", "experts", what, why, measured=facts.measured)]


def window(usage: dict[str, NDArray], end: int) -> Usage:
    """The sum of up to ``WINDOW`` recorded steps before the ``end``-th."""
    total = {field: usage[field][max(0, end - WINDOW) : end].sum(0) for field in Usage.__dataclass_fields__}
    tensors: dict[str, Any] = {field: torch.as_tensor(np.asarray(value)) for field, value in total.items()}
    return Usage(**(tensors | {"tokens": int(total["tokens"])}))


@dataclass(frozen=True)
class _Facts:
    effective: float  # exp of the entropy of what was asked
    busiest: float  # max / mean
    most: float  # the largest that it could be: every token asks that expert
    dropped: float
    asked: float  # choices an expert would get under uniform routing
    edges: bool  # choices are counted; else the weight that the gate gives

    @property
    def measured(self) -> dict[str, float]:
        return {"effective_experts": self.effective, "max_over_mean": self.busiest, "dropped": self.dropped}


def _facts(usage: Usage) -> _Facts:
    asked = usage.asked.double()
    mean = max(float(asked.mean()), 1e-12)
    share = (asked / asked.sum().clamp_min(1e-12)).tolist()
    per_token = max(1.0, float(asked.sum()) / usage.tokens)
    most = len(asked) / per_token
    return _Facts(
        effective_experts(share), float(asked.max()) / mean, most, usage.dropped, mean, not asked_by_mass(usage)
    )


def asked_by_mass(usage: Usage) -> bool:
    """Dense and slot plans ask every expert, so their usage counts weight; sparse ones count edges."""
    return usage.asked.is_floating_point()


def _warn(what: str, why: str = "", do: str = "", **measured: Any) -> Finding:
    return Finding("warning", "experts", what, why, do, measured)


def _unused(name: str, usage: Usage, meant: float) -> Iterator[Finding]:
    """Collapse, experts that nobody asks, drops, and of sparse routing experts that are nobody's first choice."""
    found = examine(usage, meant)
    for _, text in found:
        what, _, do = text.partition(". ")
        yield _warn(f"{name}: {what}", do=do)
    if (
        not {"collapse", "dead"} & {kind for kind, _ in found}
        and not asked_by_mass(usage)
        and usage.tokens / len(usage.first) >= FEW
    ):
        silent = [e for e, n in enumerate(usage.first.tolist()) if n == 0]
        if silent:
            names = ", ".join(f"e{e}" for e in silent[:8])
            what = f"{name}: {len(silent)} of {len(usage.first)} experts are no token's first choice ({names})"
            yield _warn(what, f"over {usage.tokens} tokens", REMEDY, silent=silent)


def _lopsided(name: str, facts: _Facts) -> Iterator[Finding]:
    limit = 1 + LOPSIDED * (facts.most - 1)
    if facts.most > 1 and facts.asked >= FEW and facts.busiest > limit:
        share = facts.busiest / facts.most
        why = f"{facts.busiest:.1f} times its fair share; effective experts {facts.effective:.1f}"
        what = f"is asked by {share:.0%} of the tokens" if facts.edges else f"has {share:.0%} of the weight"
        yield _warn(f"{name}: one expert {what}", why, REMEDY)


def _drift(name: str, usage: dict[str, NDArray], last: Usage) -> Iterator[Finding]:
    """How much of the work changed hands in the last quarter: the total variation between two windows' loads."""
    recorded = len(usage["step"])
    before = window(usage, math.floor(0.75 * recorded))
    if recorded < 4 * WINDOW or min(float(u.asked.double().mean()) for u in (before, last)) < ENOUGH:
        return
    drift = float((before.load - last.load).abs().sum()) / 2
    if drift > DRIFT:
        do = "Train longer (trainer.steps), or lower optimizer.lr"
        yield _warn(
            f"{name}: {drift:.0%} of the work changed hands in the last quarter of the training", do=do, drift=drift
        )
