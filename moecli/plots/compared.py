"""The pictures of ``moe compare --draw``: learning curves by row, quality over cost, and criteria where there are any."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from moecli.analysis.bands import band
from moecli.errors import EnvironmentFailure
from moecli.plots import pareto, seed_curves
from moecli.plots.figure import Picture, save
from moecli.plots.pareto import Point, Words
from moecli.plots.selection import over_experts
from moecli.record.folder import Run


def draw_compared(rows: Mapping[str, Sequence[Run]], points: Sequence[Point], words: Words, folder: Path) -> list[Path]:
    """Write PNG and CSV of each picture into ``folder``; ``rows`` are the runs of each, best first.

    Raises EnvironmentFailure where it cannot be written, ArtifactError for a damaged metrics.jsonl.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        return [save(picture, folder / stem) for stem, picture in _pictures(rows, points, words)]
    except OSError as error:
        raise EnvironmentFailure(f"--draw {folder}: {error.strerror}. Name a folder that can be written") from error


def _pictures(
    rows: Mapping[str, Sequence[Run]], points: Sequence[Point], words: Words
) -> Iterator[tuple[str, Picture]]:
    bands = {name: band(runs, "valid", words.metric) for name, runs in rows.items()}
    bands = {name: found for name, found in bands.items() if len(found.step) > 1}
    if bands:
        yield "curves", Picture(seed_curves.seed_curves(bands, words), seed_curves.numbers(bands))
    yield "pareto", Picture(pareto.pareto(points, words), pareto.numbers(points))
    runs = [run for group in rows.values() for run in group if "criteria" in run.summary]
    if len({next(iter(run.layers.values()))["experts"] for run in runs if run.layers}) > 1:
        yield "criteria", over_experts(runs)
