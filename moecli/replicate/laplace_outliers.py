"""Laplace experts beside Gaussian ones under a growing share of outliers (Nguyen & McLachlan, 2016)."""

from __future__ import annotations

from moecli.replicate.bench import Bench, Outcome
from moecli.replicate.student_outliers import against_gaussian


def replicate(bench: Bench) -> Outcome:
    return against_gaussian(bench, "Laplace")
