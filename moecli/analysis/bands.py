"""Learning curves of runs that differ in their seed, as one curve with a 95 % band."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

from moecli.analysis.statistics import interval
from moecli.record.folder import Run


@dataclass(frozen=True)
class Band:
    """Mean over seeds at each step that all runs recorded, and half width of its pointwise 95 % interval; (S,) each."""

    step: list[int]
    mean: list[float]
    half: list[float]  # NaN for a single seed
    seeds: int


def band(runs: Sequence[Run], split: str, metric: str) -> Band:
    """Several runs of a seed are averaged first.  Steps that only some runs have would join means over different runs,
    so they are left out.

    Raises ArtifactError where metrics.jsonl of a run is damaged.
    """
    curves = [_curve(run, split, metric) for run in runs]
    seeds: dict[int, list[dict[int, float]]] = {}
    for run, curve in zip(runs, curves, strict=True):
        seeds.setdefault(run.info["config"]["seed"], []).append(curve)
    shared = sorted(set.intersection(*map(set, curves))) if curves else []
    found = [interval([fmean(curve[step] for curve in of_seed) for of_seed in seeds.values()]) for step in shared]
    return Band(shared, [at.mean for at in found], [at.half for at in found], len(seeds))


def _curve(run: Run, split: str, metric: str) -> dict[int, float]:
    """{step: value}; what was not finite is NaN, and the last of a step counts."""
    return {
        line["step"]: math.nan if line["value"] is None else line["value"]
        for line in run.metrics
        if line["split"] == split and line["name"] == metric
    }
