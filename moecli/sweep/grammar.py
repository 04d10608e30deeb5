"""``key=value`` words of a sweep -> what stays the same, the axes along which trials differ, and the seeds.

Hydra's grammar, read by its own parser: ``a,b``, ``choice(a,b)``, ``range(2,9,2)``, ``glob(*,exclude=sw*)``,
``interval(1e-4,1e-2)``, ``tag(log, interval(1e-4,1e-2))``; and our own ``0..4``, the whole numbers from 0 to 4.
What stands in brackets or quotes is one value, commas and all.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from moecli.config import Word, registry, shown
from moecli.errors import UsageError

MOST_VALUES = 100_000  # of one axis
ALONE = ("threads", "device", "scale")  # settings that are the same for all trials
RANGE = re.compile(r"(-?\d+)\.\.(-?\d+)")
FUNCTION = re.compile(r"(choice|range|interval|glob|tag|sort|shuffle|int|float|str|bool)\(.*\)$")  # of Hydra's grammar


@dataclass(frozen=True)
class Interval:
    """Every number between two, on a scale of its logarithm where ``log``."""

    low: float
    high: float
    log: bool = False


@dataclass(frozen=True)
class Axis:
    """A key, and the values that trials take along it, each as a user would type it."""

    key: str
    values: tuple[str, ...] = ()
    interval: Interval | None = None


@dataclass(frozen=True)
class Space:
    """All that a sweep's words say."""

    fixed: list[str]
    axes: list[Axis]
    seeds: list[str]  # none where no word says any


def parse(words: Sequence[str]) -> Space:
    """Raises UsageError for words that are none, a key given twice, and an axis without or with doubled values."""
    parsed = [Word.parse(word) for word in words]
    for key in (word.key for word in parsed):
        if sum(word.key == key for word in parsed) > 1:
            raise UsageError(f"{key} (command line): given twice. Write its values once, with commas between them")
    read = [(word, _axis(word)) for word in parsed]
    axes = [axis for _, axis in read if axis is not None and axis.key != "seed"]
    seeds = next((list(axis.values) for word, axis in read if axis is not None and word.key == "seed"), [])
    fixed = [f"{word.key}={word.value}" for word, axis in read if axis is None and word.key != "seed"]
    for axis in (axis for _, axis in read if axis is not None):
        _refuse(axis)
    return Space(fixed, axes, seeds or [word.value for word in parsed if word.key == "seed"])


def _refuse(axis: Axis) -> None:
    if axis.interval and axis.key == "seed":
        raise UsageError("seed (command line): seeds are replicates, not searched. Write for example seed=0..4")
    if axis.key in ALONE:
        raise UsageError(f"{axis.key} (command line): a sweep has one {axis.key}. Write one value")
    if len(set(axis.values)) < len(axis.values):
        again = next(value for value in axis.values if axis.values.count(value) > 1)
        raise UsageError(f"{axis.key}={shown(again)} (command line): it is there twice. Name it once")
    if not axis.values and axis.interval is None:
        raise UsageError(f"{axis.key} (command line): no value is left. Give it one at least")


def _axis(word: Word) -> Axis | None:
    """None where the word says one value."""
    parts = elements(word.value)
    if len(parts) > 1 and not all(parts):
        raise UsageError(f"{word.key}={shown(word.value)} (command line): a comma without a value. Remove it")
    if any(RANGE.fullmatch(part) for part in parts):
        return Axis(word.key, tuple(value for part in parts for value in _whole_numbers(word, part)))
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    if len(parts) == 1 and not FUNCTION.match(word.value):
        return None
    try:
        override = OverridesParser.create().parse_override(f"{word.key}={word.value}")
        return _of_hydra(word, override)
    except (HydraException, ValueError, TypeError) as error:  # text that its lexer does not know, such as a path
        if len(parts) > 1:
            return Axis(word.key, tuple(parts))
        if not FUNCTION.match(word.value):
            return None
        said = str(error).split("\n")[0].rstrip(".")
        raise UsageError(f"{shown(word.key)}={shown(word.value)} (command line): {said}. Check its values") from error


def _of_hydra(word: Word, override: Any) -> Axis | None:
    """The axis that Hydra's Override says, if it is one of several values."""
    from hydra.core.override_parser.types import Glob, IntervalSweep, RangeSweep

    if not override.is_sweep_override():
        return None
    value = override._value  # value() would take a glob for a word
    if isinstance(value, IntervalSweep):
        return Axis(word.key, interval=_interval(word, value))
    if isinstance(value, Glob):
        return Axis(word.key, tuple(value.filter(list(registry().get(word.key, ())))))
    if isinstance(value, RangeSweep):
        return Axis(word.key, tuple(_range(word, value)))
    return Axis(word.key, tuple(override.sweep_string_iterator()))


def _range(word: Word, found: Any) -> list[str]:
    """From start to before stop; in decimals, so that 0.1, 0.2, 0.3 are what they say."""
    start, stop, step = (Decimal(str(number)) for number in (found.start, found.stop, found.step))
    if not step:
        raise UsageError(f"{word.key}={shown(word.value)} (command line): it has no step. Write one, such as 1")
    number = max(0, math.ceil((stop - start) / step))
    _count(word, number)
    return [str(start + i * step) for i in range(number)]


def _interval(word: Word, found: Any) -> Interval:
    low, high, log = found.start, found.end, "log" in found.tags
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise UsageError(
            f"{word.key}={shown(word.value)} (command line): its ends must rise. Write the lower one first"
        )
    if log and low <= 0:
        raise UsageError(
            f"{word.key}={shown(word.value)} (command line): a logarithm needs ends above 0. Raise the lower one"
        )
    return Interval(float(low), float(high), log)


def _whole_numbers(word: Word, part: str) -> Iterable[str]:
    """``2..5`` -> 2, 3, 4, 5; anything else as it is."""
    found = RANGE.fullmatch(part)
    if not found:
        return [part]
    first, last = int(found[1]), int(found[2])
    _count(word, last - first + 1)
    return map(str, range(first, last + 1))


def _count(word: Word, number: float) -> None:
    if number > MOST_VALUES:
        raise UsageError(
            f"{word.key}={shown(word.value)} (command line): that is {number:,.0f} values, and an axis takes {MOST_VALUES:,}. "
            "Narrow it, or write an interval"
        )


def elements(text: str) -> list[str]:
    """``text`` at the commas that stand in no bracket and no quote."""
    found, depth, quote = [""], 0, ""
    for character in text:
        if quote:
            quote = "" if character == quote else quote
        elif character in "'\"":
            quote = character
        elif character in "([{":
            depth += 1
        elif character in ")]}":
            depth -= 1
        elif character == "," and depth == 0:
            found.append("")
            continue
        found[-1] += character
    return [part.strip() for part in found]
