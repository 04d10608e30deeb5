"""Pictures of comparisons: means and bands are those of the runs, every row is named, whatever it is called."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import scipy.stats

from moecli.analysis.bands import Band, band
from moecli.plots import pareto, seed_curves
from moecli.plots.figure import Picture, save
from moecli.plots.pareto import Point, Words
from moecli.record.folder import Run
from tests.report.payloads import PAYLOADS

WORDS = Words("digits", "router", "accuracy", "", "example", 0.1)


def run(folder, values, seed=0):
    folder.mkdir()
    (folder / "run.json").write_text(json.dumps({"config": {"seed": seed}}))
    lines = [{"step": step, "split": "valid", "name": "r2", "value": value} for step, value in values.items()]
    others = [
        {"step": 1, "split": "train", "name": "r2", "value": 9},
        {"step": 1, "split": "valid", "name": "x", "value": 9},
    ]
    (folder / "metrics.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in [*lines, *others]))
    return Run(folder)


def test_a_band_is_the_interval_of_the_runs_at_each_step_that_all_have(tmp_path):
    values = [{1: 0.1, 2: 0.5, 3: 0.7}, {1: 0.3, 2: None, 3: 0.8, 4: 1.0}, {1: 0.2, 2: 0.4, 3: 0.6, 5: 1.0}]
    found = band([run(tmp_path / str(n), v, seed=n) for n, v in enumerate(values)], "valid", "r2")
    assert (found.step, found.seeds) == ([1, 2, 3], 3) and math.isnan(found.mean[1])
    for at in (0, 2):
        here = [v[found.step[at]] for v in values]
        low, high = scipy.stats.t.interval(0.95, 2, np.mean(here), scipy.stats.sem(here))
        assert (found.mean[at] - found.half[at], found.mean[at] + found.half[at]) == pytest.approx((low, high))
    twice = band(
        [run(tmp_path / name, {1: value}, seed) for name, value, seed in [("a", 1, 0), ("b", 3, 0), ("c", 6, 1)]],
        "valid",
        "r2",
    )
    assert (twice.mean, twice.seeds) == ([4.0], 2)  # of (1 + 3) / 2 and 6
    assert band([], "valid", "r2").step == [] and band([run(tmp_path / "z", {})], "valid", "r2").step == []


def legend_of(figure):
    """Its entries, having checked that it lies within the picture."""
    (legend,) = figure.legends
    figure.canvas.draw()
    box, whole = legend.get_window_extent(), figure.bbox
    assert box.x0 >= -1 and box.x1 <= whole.x1 + 1 and box.y0 >= -1 and box.y1 <= whole.y1 + 1
    return [text.get_text() for text in legend.get_texts()]


@pytest.mark.parametrize("start", range(0, len(PAYLOADS), 12))
def test_every_row_is_in_the_legend_whatever_it_is_called(start, tmp_path):
    names = PAYLOADS[start : start + 12]
    points = [Point(name, 100.0 * (1 + n % 5), 0.1 * n, 0.05, n % 3 == 0) for n, name in enumerate(names)]
    figure = pareto.pareto(points, Words(names[0], names[1], names[2], names[3], names[4], 0.3))
    assert len(legend_of(figure)) == len(names) == 12
    save(Picture(figure, {}), tmp_path / "pareto")
    bands = {name: Band([1, 2, 3], [0.1, 0.2, 0.3 + n], [0.1, math.nan, 0.1], 2) for n, name in enumerate(names)}
    figure = seed_curves.seed_curves(bands, WORDS)
    assert len(legend_of(figure)) == seed_curves.MOST < 12
    assert "the first 8 of 12 rows" in " ".join(figure.get_suptitle().split())
    save(Picture(figure, {}), tmp_path / "curves")
    assert len(seed_curves.numbers(bands)["row"]) == 36 and pareto.numbers(points)["row"] == names


@pytest.mark.parametrize(
    "points",
    [
        [],
        [Point("nan", 10.0, math.nan, math.nan, False)],
        [Point("one", 10.0, 0.5, math.nan, True)],
        [Point("free", 0.0, 0.0, 0.0, True), Point("dear", 1e12, 0.0, 0.0, False)],
    ],
)
def test_few_points_are_drawn_too(points, tmp_path):
    assert save(Picture(pareto.pareto(points, WORDS), {}), tmp_path / "pareto").stat().st_size > 1000


def test_the_front_is_a_staircase_through_the_rows_on_it_and_equal_flops_stand_apart():
    points = [Point("a", 100.0, 0.5, 0.1, True), Point("b", 100.0, 0.4, 0.1, False), Point("c", 900.0, 0.7, 0.1, True)]
    axes = pareto.pareto(points, WORDS).axes[0]
    stairs = axes.lines[0]
    assert stairs.get_drawstyle() == "steps-post"
    assert list(zip(*stairs.get_data(), strict=True)) == [(100.0, 0.5), (900.0, 0.7), (900.0, 0.7)]
    places = [line.get_transform().transform((100.0, 0.5))[0] for line in axes.lines[1:] if line.get_marker() == "o"]
    assert places[0] < places[2] < places[1] and axes.get_xscale() == "log"
