"""Learning curves of several groups of runs: each group's mean over seeds with its 95 % band."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from moecli.analysis.bands import Band
from moecli.plots.figure import FAINT, OKABE_ITO, house_style, level, new, safe
from moecli.plots.numbers import Table
from moecli.plots.pareto import Key, Words

MOST = len(OKABE_ITO)  # groups whose colours can be told apart


def seed_curves(bands: Mapping[str, Band], words: Words) -> Figure:
    """The whole training above, its last half below, where groups that end close to each other come apart.

    The first ``MOST`` groups are drawn: give the best first.
    """
    drawn = dict(list(bands.items())[:MOST])
    left_out = f", the first {MOST} of {len(bands)} rows" if len(bands) > MOST else ""
    key = Key(list(drawn))
    with house_style():
        figure, grid = new(
            f"{safe(words.task)} · learning curves\nmean over seeds and its 95 % band at each step{left_out}",
            92 + key.height,
            2,
        )
        whole, late = grid[:, 0]
        end = max((band.step[-1] for band in drawn.values() if band.step), default=1)
        for axes, start in ((whole, 0.0), (late, end / 2)):
            for (name, band), color in zip(drawn.items(), OKABE_ITO, strict=False):
                _draw(axes, band, start, color, f"{safe(name, key.limit)} ({band.seeds})")
            axes.set_ylabel(f"valid {words.label}")
            axes.grid(axis="y", color=FAINT, alpha=0.25, linewidth=0.5)
        if words.chance is not None:
            level(whole, words.chance, f"chance\n{words.chance:.3g}")
        late.set_title("the last half")
        late.set_xlabel("training step")
        figure.align_ylabels()
        figure.legend(
            *whole.get_legend_handles_labels(),
            loc="outside lower center",
            ncols=key.columns,
            title=f"{safe(words.rows, 40)} (seeds)",
        )
    return figure


def _draw(axes: Axes, band: Band, start: float, color: str, label: str) -> None:
    step, mean, half = (np.array(part, dtype=float) for part in (band.step, band.mean, band.half))
    shown = step >= start
    step, mean, half = step[shown], mean[shown], half[shown]
    axes.plot(step, mean, color=color, marker="." if len(step) <= 30 else None, markersize=3, label=label)
    axes.fill_between(step, mean - half, mean + half, color=color, alpha=0.18, linewidth=0)


def numbers(bands: Mapping[str, Band]) -> Table:
    """A line a group and step."""
    rows = [
        (name, *at, band.seeds)
        for name, band in bands.items()
        for at in zip(band.step, band.mean, band.half, strict=True)
    ]
    return {
        column: [row[i] for row in rows] for i, column in enumerate(("row", "step", "mean", "half_width_95", "seeds"))
    }
