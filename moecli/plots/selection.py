"""AIC, BIC and ICL over the number of experts, from several runs: for ``moe compare --draw``."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from statistics import fmean

from moecli.errors import UsageError
from moecli.plots.figure import INK, OKABE_ITO, Picture, house_style, new, safe
from moecli.record.folder import Run

NAMES = ("aic", "bic", "icl")
MARKS, LINES = "o^s", ("-", "-", "--")  # where every row is certain of its expert, ICL lies on BIC


def over_experts(runs: Sequence[Run]) -> Picture:
    """A line a criterion through the mean of the runs of each size, every run a mark, the lowest mean ringed.

    Raises UsageError where fewer than two sizes have criteria, or the runs are of different data.
    """
    usable = [run for run in runs if "criteria" in run.summary and run.layers]
    sizes = sorted({_size(run) for run in usable})
    if len(sizes) < 2:
        raise UsageError(
            f"moe compare --draw: {len(usable)} of these runs have AIC, BIC and ICL, of {len(sizes)} numbers of "
            "experts. Train model=density with trainer=em and two or more values of num_experts"
        )
    if len({run.info.get("fingerprint") for run in usable}) > 1:
        raise UsageError("moe compare --draw: the runs are of different data. Choose runs of one task and split")
    with house_style():
        return _figure(usable, sizes)


def _size(run: Run) -> int:
    return next(iter(run.layers.values()))["experts"]


def _figure(runs: Sequence[Run], sizes: list[int]) -> Picture:
    task = safe(runs[0].info.get("config", {}).get("task", "?"))
    figure, grid = new(f"{task} · {len(runs)} runs\nhow many experts: the lowest is best; rings: lowest mean", 85)
    axes = grid[0, 0]
    for name, color, mark, line in zip(NAMES, OKABE_ITO, MARKS, LINES, strict=False):
        found = defaultdict(list)
        for run in runs:
            found[_size(run)].append(run.summary["criteria"][name])
        means = [fmean(found[size]) for size in sizes]
        axes.plot(sizes, means, color=color, marker=mark, linestyle=line, markersize=4, label=name.upper())
        axes.plot(
            *zip(*[(size, value) for size in sizes for value in found[size]], strict=True),
            ".",
            color=color,
            markersize=3,
        )
        best = min(range(len(sizes)), key=means.__getitem__)
        axes.plot(sizes[best], means[best], "o", color=INK, markerfacecolor="none", markersize=9)
    axes.set_xticks(sizes)
    axes.set(xlabel="experts", ylabel="criterion: -2 log-likelihood + penalty")
    axes.legend()
    rows = [(name, _size(run), run.summary["criteria"][name]) for name in NAMES for run in runs]
    return Picture(
        figure, {column: [row[i] for row in rows] for i, column in enumerate(("criterion", "experts", "value"))}
    )
