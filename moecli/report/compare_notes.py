"""What the numbers of a comparison cannot say: its legend, how sure it is, and what else could have made a difference."""

from __future__ import annotations

import math
import textwrap
from collections import Counter
from collections.abc import Iterator, Sequence

from moecli.analysis.statistics import LEVEL, POWER
from moecli.report.compare import SYMBOLS, WORDS, Comparison, Row

MOST_SEEDS = 1000  # beyond, no one runs them: the rows are the same for all practical purposes
MOST_NAMED = 6  # keys or rows that a note lists


def notes(found: Comparison) -> Iterator[str]:
    """The legend, then what a reader must know of these rows."""
    yield from _legend(found)
    yield from _undecided(found)
    yield from _unclear(found)
    for row in found.rows:
        yield from _of_row(found, row)
    if found.differs:
        parts = [f"{key} ({' | '.join(dict.fromkeys(values.values()))})" for key, values in found.differs.items()]
        yield f"rows differ not only in {', '.join(found.by)}, but also in {_some(parts)}"


def _of_row(found: Comparison, row: Row) -> Iterator[str]:
    """What its mean is not over: runs that failed, one setting alone, numbers that are none."""
    if row.unfinished:
        yield _unfinished(row)
    if row.mixes:
        yield (
            f"{row.name}: its runs differ in {_some(list(row.mixes))} too, and each seed's value is a mean over them: "
            f"--by {','.join([*found.by, *list(row.mixes)[:2]])} makes rows of them"
        )
    if row.by_seed and math.isnan(row.quality):
        lost = sum(math.isnan(value) for value in row.by_seed.values())
        yield f"{row.name}: nan in {lost} of {len(row.by_seed)} seeds, so the row is last and not tested"


def _unfinished(row: Row) -> str:
    states = Counter(record.status for record in row.unfinished)
    why = ", ".join(f"{many} {state}" for state, many in states.items())
    if errors := [record.error for record in row.unfinished if record.error]:
        why += f": {textwrap.shorten(errors[0], 160)}"
    total = len(row.finished) + len(row.unfinished)
    alone = "; its numbers are of those alone" if row.finished else ""
    return f"{row.name}: {len(row.finished)} of {total} runs finished ({why}){alone}"


def _legend(found: Comparison) -> Iterator[str]:
    several = any(row.count > 1 for row in found.rows)
    chance = found.example.numbers.get("chance")
    at_chance = "" if chance is None or len(found.metrics) > 1 else f"; chance {chance:.3g}"
    yield ("mean ± half width of its 95 % interval over n seeds" if several else "one seed a row") + at_chance
    kinds = {row.verdict.kind for row in found.rows if row.verdict}
    marks = [f"{SYMBOLS[kind]} {WORDS[kind]}" for kind in ("same", "worse", "better") if kind in kinds]
    if marks:
        base, family = (found.baseline, "") if found.named else (f"★, {found.baseline}", " over all pairs")
        yield f"{_test(found)} against {base} (Holm{family}, p < {LEVEL}): {', '.join(marks)}"
    ties = [row.name for row in found.rows if row.best]
    if len(ties) > 1:
        yield f"★ tied: {', '.join(ties)} have the same mean"
    elif found.named and ties:
        yield f"★ best mean: {ties[0]}"
    if "FLOP" in found.columns and front_tells(found):
        yield "◆ Pareto front: no row has a better mean at the same or fewer FLOPs"
    if found.on_different_data:
        yield "the rows are of different data and have no common scale, so none is marked"


def _test(found: Comparison) -> str:
    tests = [row.verdict.difference for row in found.rows if row.verdict and row.verdict.difference]
    seeds = sorted({test.seeds for test in tests} - {0})
    parts = [f"paired t test over {'-'.join(str(n) for n in dict.fromkeys(seeds[:1] + seeds[-1:]))} shared seeds"]
    unpaired = ["Welch's t test (unpaired: fewer than two shared seeds)"] * any(test.seeds == 0 for test in tests)
    return " and ".join(parts * bool(seeds) + unpaired)


def _undecided(found: Comparison) -> Iterator[str]:
    """How many seeds would decide what this many did not."""
    same = [f"{row.name} {_seeds_that_tell(row)}" for row in found.rows if row.verdict and row.verdict.kind == "same"]
    if same:
        yield (
            f"≈ does not say equal. Seeds that would decide ({POWER * 100:.0f} % power, if the difference seen is the true "
            f"one): {_some(same)}"
        )


def _seeds_that_tell(row: Row) -> str:
    verdict = row.verdict
    assert verdict and verdict.difference
    if verdict.needed > MOST_SEEDS:
        return f"over {MOST_SEEDS}, so none in practice"
    have = verdict.difference.seeds or row.count
    needed = max(verdict.needed, have + 1)
    return f"about {needed:.0f} ({needed - have:.0f} more)"


def _unclear(found: Comparison) -> Iterator[str]:
    """Why a row was not tested."""
    rows = [row for row in found.rows if row.verdict and row.verdict.kind == "untested" and not math.isnan(row.quality)]
    base = next((row for row in found.rows if row.name == found.baseline), None)
    if rows and base and (base.count < 2 or math.isnan(base.quality)):
        why = "is nan" if math.isnan(base.quality) else "has one seed; a sweep over seed=0..4 gives five"
        yield f"not tested: the baseline, {base.name}, {why}"
    elif few := [row.name for row in rows if row.verdict and row.verdict.difference is None]:
        yield f"not tested, for want of a second seed: {_some(few)}"
    if still := [row.name for row in rows if row.verdict and row.verdict.difference]:
        yield f"not tested, because no seed changes the difference, so that seeds tell nothing of luck: {_some(still)}"


def _some(words: Sequence[str]) -> str:
    more = f" and {len(words) - MOST_NAMED} more" if len(words) > MOST_NAMED else ""
    return ", ".join(words[:MOST_NAMED]) + more


def front_tells(found: Comparison) -> bool:
    """Whether the Pareto front says more than the star: the rows cost different FLOPs."""
    return not found.on_different_data and len({row.flops for row in found.rows if row.finished}) > 1
