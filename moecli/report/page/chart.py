"""Curves over training steps as SVG.  Names stand in a legend of text beside the drawing, where nothing can overlap.

Colours are CSS classes: the page's style says what they look like by day and by night.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from markupsafe import Markup

from moecli.report.page.svg import elided, tag
from moecli.report.page.values import Chart, Curve, Level

WIDTH, HEIGHT = 680, 250  # of the drawing, in pixels
LEFT, RIGHT, TOP, BOTTOM = 58, 14, 10, 40  # margins, within which ticks and titles stand
MIDDLE = (TOP + HEIGHT - BOTTOM) // 2
POINTS = 120  # of a curve; more are averaged
LONGEST = 24  # characters of a unit
COLORS = 7  # of the style sheet
SQUEEZE = 6  # times the curves' own span that the axis may cover to show a level as well


def chart(drawn: Chart) -> Markup:
    """The curves, their axes, and those levels that lie near them."""
    curves = [thinned(curve) for curve in drawn.curves]
    levels = [level for level in drawn.levels if _near(level, curves)]
    axes = _Axes.of(curves, levels, drawn.log)
    label = f"{drawn.title}: curves over training steps. Arrow keys read their points"
    return tag(
        "svg",
        *axes.ticks(),
        tag("text", "training step", class_="axis", x=(LEFT + WIDTH - RIGHT) / 2, y=HEIGHT - 6),
        tag("text", elided(drawn.unit, LONGEST), class_="axis", x=14, y=MIDDLE, transform=f"rotate(-90 14 {MIDDLE})"),
        *(_level(level, axes) for level in levels),
        *(_line(curve, axes) for curve in curves if curve.x),
        class_="chart",
        viewBox=f"0 0 {WIDTH} {HEIGHT}",
        role="img",
        tabindex=0,
        aria_label=label,
    )


def legend(drawn: Chart) -> list[tuple[str, str]]:
    """(CSS class of the mark, name) of each colour, where there are several, and of each level.

    A level too far from the curves to be drawn has no mark.
    """
    curves = [thinned(curve) for curve in drawn.curves]
    colors = [(_color(number), name) for number, name in enumerate(drawn.groups)]
    levels = [
        ("even", level.name) if _near(level, curves) else ("", f"{level.name}, off the chart") for level in drawn.levels
    ]
    return [*(colors if len(colors) > 1 else []), *levels]


def thinned(curve: Curve) -> Curve:
    """At most POINTS finite points; one of many stands for their mean, at the last one's step."""
    finite = [(x, y) for x, y in zip(curve.x, curve.y, strict=True) if math.isfinite(y)]
    parts = np.array_split(np.array(finite).reshape(-1, 2), min(len(finite), POINTS) or 1)
    points = [(float(part[-1, 0]), float(part[:, 1].mean())) for part in parts if len(part)]
    return Curve(curve.name, [x for x, _ in points], [y for _, y in points], curve.group)


def _near(level: Level, curves: Sequence[Curve]) -> bool:
    """Whether a level can be shown beside the curves without pressing them flat."""
    values = [y for curve in curves for y in curve.y] or [level.value]
    low, high = min(values), max(values)
    return max(level.value, high) - min(level.value, low) <= SQUEEZE * max(high - low, 1e-12)


@dataclass(frozen=True)
class _Axes:
    """Steps from 0 to ``last``, values from ``low`` to ``high``, and where they lie in the drawing."""

    last: float
    low: float
    high: float
    log: bool

    @classmethod
    def of(cls, curves: Sequence[Curve], levels: Sequence[Level], log: bool) -> _Axes:
        """Over all values, and a little more; an axis of what is never negative does not go below zero."""
        values = [y for curve in curves for y in curve.y] + [level.value for level in levels] or [0.0]
        low, high, last = min(values), max(values), max((curve.x[-1] for curve in curves if curve.x), default=1.0)
        if log:
            return cls(last or 1.0, low / 1.1, high * 1.1, log)
        room = max(0.06 * (high - low), 1e-6 * max(abs(low), abs(high))) or 1.0
        return cls(last or 1.0, max(low - room, 0.0) if low >= 0 else low - room, high + room, log)

    def across(self, step: float) -> float:
        return LEFT + step / self.last * (WIDTH - RIGHT - LEFT)

    def up(self, value: float) -> float:
        at, low, high = (math.log10(v) if self.log else v for v in (value, self.low, self.high))
        return HEIGHT - BOTTOM - (at - low) / (high - low) * (HEIGHT - BOTTOM - TOP)

    def ticks(self) -> Iterator[Markup]:
        for value in log_ticks(self.low, self.high) if self.log else ticks(self.low, self.high):
            yield tag("line", class_="grid", x1=LEFT, x2=WIDTH - RIGHT, y1=self.up(value), y2=self.up(value))
            yield tag("text", f"{value:.3g}", class_="end", x=LEFT - 6, y=self.up(value) + 4)
        for step in ticks(0, self.last):
            yield tag("text", f"{step:.6g}", class_="middle", x=self.across(step), y=HEIGHT - BOTTOM + 17)


def ticks(low: float, high: float, most: int = 6) -> list[float]:
    """Round numbers within the range, equally far apart by 1, 2 or 5 times a power of ten; at most ``most`` + 1."""
    rough = (high - low) / most
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * nice for nice in (1, 2, 5, 10) if power * nice >= rough * (1 - 1e-9))
    return [step * number for number in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)]


def log_ticks(low: float, high: float) -> list[float]:
    """Powers of ten within the range, with what lies between where there are few."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for among in ((1,), (1, 3), (1, 2, 5)):
        found = [nice * 10.0**power for power in powers for nice in among if low <= nice * 10.0**power <= high]
        if len(found) >= 3:
            break
    return found


def _line(curve: Curve, axes: _Axes) -> Markup:
    """``data-values`` holds the numbers themselves, for whoever points at the curve."""
    points = " ".join(f"{axes.across(x):.1f},{axes.up(y):.1f}" for x, y in zip(curve.x, curve.y, strict=True))
    values = " ".join(f"{x:.10g}:{y:.4g}" for x, y in zip(curve.x, curve.y, strict=True))
    name = tag("title", curve.name)
    return tag("polyline", name, class_=f"line {_color(curve.group)}", points=points, data_values=values)


def _color(group: int) -> str:
    return f"c{group % COLORS}" + (" again" if group >= COLORS else "")


def _level(level: Level, axes: _Axes) -> Markup:
    height = axes.up(level.value)
    return tag("line", tag("title", level.name), class_="level", x1=LEFT, x2=WIDTH - RIGHT, y1=height, y2=height)
