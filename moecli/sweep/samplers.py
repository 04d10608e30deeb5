"""Which trials a sweep has: every combination (grid), the axes side by side (list), or draws (random).

``tpe`` draws too, but each trial from what came out of those before: moecli/sweep/search.py.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Sequence
from itertools import islice, product
from typing import Any

from moecli.config import nearest
from moecli.errors import UsageError
from moecli.sweep.grammar import Axis, Interval

NAMES = ("grid", "list", "random", "tpe")
TRIALS = 20  # of a draw, where --trials says nothing
Drawn = dict[str, Any]  # {key: a value as typed, or a number of an interval}


def refuse(axes: Sequence[Axis], sampler: str, trials: int | None) -> None:
    """Raise UsageError for a space that the sampler cannot walk."""
    if sampler not in NAMES:
        raise UsageError(
            f"--sampler {sampler}: no such sampler.{nearest(sampler, NAMES)} Choose from: {', '.join(NAMES)}"
        )
    interval = next((axis.key for axis in axes if axis.interval), None)
    if sampler in ("grid", "list"):
        if trials is not None:
            raise UsageError(
                f"--trials (--sampler {sampler}): it takes all there are. Leave it out, or use random or tpe"
            )
        if interval:
            raise UsageError(
                f"{interval} (--sampler {sampler}): an interval has no end of values. Use --sampler random or tpe"
            )
    if sampler in ("random", "tpe") and not axes:
        raise UsageError(
            f"--sampler {sampler}: nothing but the seed differs. Give another key several values, or an interval"
        )
    lengths = {axis.key: len(axis.values) for axis in axes}
    if sampler == "list" and len(set(lengths.values())) > 1:
        told = ", ".join(f"{key} has {length}" for key, length in lengths.items())
        raise UsageError(f"--sampler list: keys go side by side, and {told} values. Give each as many")
    if sampler == "random" and size(axes, "grid", None) < (trials or TRIALS):
        raise UsageError(
            f"--trials {trials or TRIALS}: there are only {size(axes, 'grid', None)} different ones. Use --sampler grid"
        )


def size(axes: Sequence[Axis], sampler: str, trials: int | None) -> int:
    """How many trials there will be."""
    if sampler in ("random", "tpe"):
        return trials or TRIALS
    lengths = [len(axis.values) if axis.interval is None else 10**9 for axis in axes]
    return (lengths or [1])[0] if sampler == "list" else math.prod(lengths)


def draw(axes: Sequence[Axis], sampler: str, trials: int, seed: int) -> Iterator[Drawn]:
    """The trials in order; of ``tpe`` none, for they are asked for one by one."""
    if sampler == "random":
        return islice(_distinct(axes, seed), trials)
    if sampler == "tpe":
        return iter(())
    lists = [axis.values for axis in axes]
    combined = zip(*lists, strict=True) if sampler == "list" and axes else product(*lists)
    return (dict(zip((axis.key for axis in axes), values, strict=True)) for values in combined)


def _distinct(axes: Sequence[Axis], seed: int) -> Iterator[Drawn]:
    """Draws without those that were there before."""
    seen = set()
    index = 0
    while True:
        drawn = {axis.key: value(axis, seed, index) for axis in axes}
        index += 1
        if tuple(drawn.values()) not in seen:
            seen.add(tuple(drawn.values()))
            yield drawn


def value(axis: Axis, seed: int, index: int) -> Any:
    """The ``index``-th draw of an axis: a function of nothing but seed, key and index."""
    share = random.Random(f"{seed} {axis.key} {index}").random()
    return axis.values[int(share * len(axis.values))] if axis.interval is None else within(axis.interval, share)


def within(interval: Interval, share: float) -> float:
    """The number at a share in [0, 1) of the way.

    A whole number stands for all that round to it, so both ends are as likely as those between.
    """
    low, high, whole = interval.low, interval.high, isinstance(interval.low, int)
    if whole:
        low, high = low - 0.5, high + 0.5
    found = low * (high / low) ** share if interval.log else low + share * (high - low)
    return min(max(math.floor(found + 0.5), interval.low), interval.high) if whole else found
