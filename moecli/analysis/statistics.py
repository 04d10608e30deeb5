"""How sure a number over seeds is: intervals, t tests with Holm's correction, and how many seeds would decide.

Everything is two-sided and at ``LEVEL``.  A seed stands for one draw of weights, order of data and noise, so what is
said holds over such draws, on the data that the runs had.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

LEVEL = 0.05
POWER = 0.8  # with which a true difference is to be seen, where seeds are planned
NO_SPREAD = 1e-12  # of the values' size: what is left of equal numbers after rounding


@dataclass(frozen=True)
class Interval:
    """Mean, standard deviation of one value, and half width of the mean's 95 % interval; NaN for a single value."""

    mean: float
    sd: float
    half: float


def interval(values: Sequence[float]) -> Interval:
    """Student's t: mean ± t(0.975, n - 1) sd / sqrt(n).  NaN among the values makes all three NaN."""
    mean = math.fsum(values) / len(values)
    if len(values) < 2:
        return Interval(mean, math.nan, math.nan)
    sd = math.sqrt(_variance(values))
    return Interval(mean, sd, t_quantile(len(values) - 1) * sd / math.sqrt(len(values)))


def t_quantile(freedom: float, level: float = LEVEL) -> float:
    """The t that ``level`` of Student's distribution exceeds in size."""
    from scipy.special import stdtrit

    return float(stdtrit(freedom, 1 - level / 2))


def _variance(values: Sequence[float]) -> float:
    mean = math.fsum(values) / len(values)
    return math.fsum((value - mean) ** 2 for value in values) / (len(values) - 1)


@dataclass(frozen=True)
class Difference:
    """One row's mean minus another's.  ``p`` is NaN where nothing varies, so that nothing can be tested."""

    mean: float
    half: float  # of its 95 % interval
    sd: float  # of the difference in one seed
    p: float
    seeds: int  # shared ones of a paired test; 0 says that it is Welch's


def difference(a: Mapping[int, float], b: Mapping[int, float]) -> Difference | None:
    """Paired by the seeds that both have, Welch's where these are fewer than two; None where that is impossible too.

    ``a`` and ``b`` hold one finite value a seed.
    """
    shared = sorted(a.keys() & b.keys())
    if len(shared) >= 2:
        return paired([a[seed] for seed in shared], [b[seed] for seed in shared])
    if min(len(a), len(b)) >= 2:
        return welch(list(a.values()), list(b.values()))
    return None


def paired(a: Sequence[float], b: Sequence[float]) -> Difference:
    """The t test of the differences a_i - b_i (n,), n - 1 degrees of freedom."""
    found = interval([x - y for x, y in zip(a, b, strict=True)])
    error = found.sd / math.sqrt(len(a))
    return Difference(found.mean, found.half, found.sd, _p(found.mean, error, len(a) - 1, [*a, *b]), len(a))


def welch(a: Sequence[float], b: Sequence[float]) -> Difference:
    """For groups of unequal variance (Welch, 1947), with Satterthwaite's degrees of freedom."""
    mean = math.fsum(a) / len(a) - math.fsum(b) / len(b)
    parts = [_variance(values) / len(values) for values in (a, b)]
    total = sum(parts)
    if total == 0:
        return Difference(mean, 0.0, 0.0, _p(mean, 0.0, 1, [*a, *b]), 0)
    error = math.sqrt(total)
    freedom = 1 / sum((part / total) ** 2 / (len(x) - 1) for part, x in zip(parts, (a, b), strict=True))
    sd = math.sqrt(_variance(a) + _variance(b))
    return Difference(mean, t_quantile(freedom) * error, sd, _p(mean, error, freedom, [*a, *b]), 0)


def _p(mean: float, error: float, freedom: float, values: Sequence[float]) -> float:
    """Two-sided p of t = mean / error; without any spread 1 for equal values, else NaN."""
    from scipy.special import stdtr

    noise = NO_SPREAD * max(map(abs, values))
    if error <= noise:
        return 1.0 if abs(mean) <= noise else math.nan
    return float(2 * stdtr(freedom, -abs(mean / error)))


def holm(p: Sequence[float], family: int | None = None) -> list[float]:
    """Adjusted p values (Holm, 1979): at most LEVEL of all families hold a false alarm.  NaN was no test and stays.

    A ``family`` larger than what is given says that these tests were picked by looking at more: the smallest p is then
    multiplied by its size, the next by one less, which is never less than Holm over the whole family gives.
    """
    order = sorted((i for i, value in enumerate(p) if not math.isnan(value)), key=p.__getitem__)
    size, largest, adjusted = family or len(order), 0.0, list(p)
    for rank, i in enumerate(order):
        largest = max(largest, min(1.0, (size - rank) * p[i]))
        adjusted[i] = largest
    return adjusted


def seeds_needed(found: Difference, level: float = LEVEL) -> float:
    """Seeds of each row at which a test shows this difference with ``POWER``, if it is the true one; infinity for none.

    n = (z_(1 - level/2) + z_POWER)^2 sd^2 / difference^2 + z_(1 - level/2)^2 / 2, with / 4 unpaired (Guenther, 1981):
    the normal formula and the term that makes it the t test's.  It is a plan, not a promise: the difference that was
    seen is itself uncertain.
    """
    from scipy.special import ndtri

    if found.mean == 0 or found.sd == 0:
        return math.inf
    z, ratio = float(ndtri(1 - level / 2)), found.sd / abs(found.mean)
    seeds = ((z + float(ndtri(POWER))) * ratio) ** 2 if ratio < 1e100 else math.inf
    return max(2.0, math.ceil(seeds + z**2 / (2 if found.seeds else 4))) if math.isfinite(seeds) else math.inf
