"""A mixture of logistic regressions beside one (Jordan & Jacobs, 1994)."""

from __future__ import annotations

from moecli.replicate.bench import Bench, Outcome
from moecli.replicate.multinomial_experts import against_one


def replicate(bench: Bench) -> Outcome:
    return against_one(bench, "logistic regression")
