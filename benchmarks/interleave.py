"""Time several things in turn, again and again, and give each one's median."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping


def medians(things: Mapping[str, Callable[[], object]], repeats: int) -> dict[str, float]:
    """Seconds of each thing: the median over rounds in which every thing runs once."""
    seconds: dict[str, list[float]] = {name: [] for name in things}
    for _ in range(repeats):
        for name, thing in things.items():
            started = time.perf_counter()
            thing()
            seconds[name].append(time.perf_counter() - started)
    return {name: statistics.median(values) for name, values in seconds.items()}
