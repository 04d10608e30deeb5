"""Quality over FLOPs: a point a row with its interval, and the front of rows that none beats at the same cost."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter
from matplotlib.transforms import ScaledTranslation

from moecli.plots.figure import FAINT, INK, MARKERS, OKABE_ITO, house_style, level, new, safe
from moecli.plots.numbers import Table

APART = 9.0  # typographic points between marks of equal FLOPs
MOST = 16  # points that a legend can still list; the others are drawn without a name


@dataclass(frozen=True)
class Words:
    """What the pictures of a comparison say of all its rows."""

    task: str
    rows: str  # the keys that make them
    metric: str  # the headline
    unit: str
    per: str  # what FLOPs are counted per
    chance: float | None  # of the metric

    @property
    def label(self) -> str:
        """The metric with its unit, fit to be drawn."""
        name = self.metric.replace("_", " ")
        return safe(f"{name} ({self.unit})" if self.unit else name, 28)


@dataclass(frozen=True)
class Key:
    """How a legend below a picture lists names: in two columns where they are short."""

    names: Sequence[str]

    @property
    def columns(self) -> int:
        return 2 if all(len(name) <= 20 for name in self.names) else 1

    @property
    def limit(self) -> int:
        """Characters of a name."""
        return 20 if self.columns == 2 else 40

    @property
    def height(self) -> float:
        """In mm, with its title."""
        return 5.0 + 4.2 * math.ceil(len(self.names) / self.columns)


@dataclass(frozen=True)
class Point:
    """A row of a comparison."""

    name: str
    flops: float
    quality: float
    half: float  # of its 95 % interval; NaN for a single seed
    front: bool


def pareto(points: Sequence[Point], words: Words) -> Figure:
    """Steps join the front, for what lies between two of its points is not known."""
    known = [point for point in points if math.isfinite(point.quality)]
    with house_style():
        what = "quality over cost\nringed: Pareto front; equal FLOPs are drawn side by side"
        key = Key([point.name for point in known[:MOST]])
        figure, grid = new(f"{safe(words.task)} · {what}", 75 + key.height)
        axes = grid[0, 0]
        if known:
            _front(axes, known)
            _scale(axes, known)
        for number, point in enumerate(known):
            label = safe(point.name, key.limit) if number < MOST else None
            _draw(axes, number, point, _aside(known, number), label)
        axes.set_xlabel(f"FLOPs per {safe(words.per)}")
        axes.set_ylabel(f"test {words.label}")
        if words.chance is not None and axes.get_ylim()[0] < words.chance < axes.get_ylim()[1]:
            level(axes, words.chance, f"chance\n{words.chance:.3g}")
        if known:
            figure.legend(loc="outside lower center", ncols=key.columns, title=safe(words.rows, 40))
    return figure


def _front(axes: Axes, points: Sequence[Point]) -> None:
    corners = sorted((point.flops, point.quality) for point in points if point.front)
    if corners:
        dearest = max(point.flops for point in points)
        flops, quality = zip(*corners, (dearest, corners[-1][1]), strict=True)
        axes.step(flops, quality, where="post", color=FAINT, linewidth=0.9, zorder=1)


def _scale(axes: Axes, points: Sequence[Point]) -> None:
    """Room for every interval; a logarithmic axis where the dearest costs more than thrice the cheapest."""
    flops = sorted(point.flops for point in points)
    if flops[-1] > 3 * flops[0] > 0:
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 1.5, 2, 3, 5, 7)))
        axes.set_xlim(flops[0] / 1.3, flops[-1] * 1.3)
    else:
        room = 0.15 * (flops[-1] - flops[0]) or 0.1 * flops[0] or 1.0
        axes.xaxis.set_major_locator(MaxNLocator(5))
        axes.set_xlim(flops[0] - room, flops[-1] + room)
    axes.xaxis.set_major_formatter(FuncFormatter(_short))
    axes.xaxis.set_minor_formatter(NullFormatter())
    ends = [point.quality + sign * _half(point) for point in points for sign in (-1, 1)]
    room = 0.08 * (max(ends) - min(ends)) or 0.1 * abs(ends[0]) or 1.0
    axes.set_ylim(min(ends) - room, max(ends) + room)


def _half(point: Point) -> float:
    return point.half if math.isfinite(point.half) else 0.0


def _short(value: float, _: int) -> str:
    """68,000 -> 68k."""
    size, letter = next(((s, c) for s, c in ((1e9, "G"), (1e6, "M"), (1e3, "k")) if abs(value) >= s), (1.0, ""))
    return f"{value / size:.3g}{letter}"


def _aside(points: Sequence[Point], number: int) -> float:
    """Typographic points by which a mark stands left or right of its FLOPs, where others have the same."""
    equal = [n for n, point in enumerate(points) if point.flops == points[number].flops]
    return APART * (equal.index(number) - (len(equal) - 1) / 2)


def _draw(axes: Axes, number: int, point: Point, aside: float, label: str | None) -> None:
    color, mark = OKABE_ITO[number % len(OKABE_ITO)], MARKERS[number // len(OKABE_ITO) % len(MARKERS)]
    axes.errorbar(
        point.flops,
        point.quality,
        _half(point),
        color=color,
        marker=mark,
        markersize=6,
        markeredgecolor=INK if point.front else color,
        capsize=2,
        linestyle="none",
        label=label,
        transform=axes.transData + ScaledTranslation(aside / 72, 0, axes.figure.dpi_scale_trans),
    )


def numbers(points: Sequence[Point]) -> Table:
    """A line a row."""
    return {
        name: [getattr(point, field) for point in points]
        for name, field in (
            ("row", "name"),
            ("flops", "flops"),
            ("quality", "quality"),
            ("half_width_95", "half"),
            ("pareto", "front"),
        )
    }
