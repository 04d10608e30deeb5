"""Likelihood per iteration of EM and its kin, each curve under the name of its likelihood, above what each step added."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from moecli.plots.figure import FAINT, OKABE_ITO, Picture, heading, log_axis, marker, new, safe, steps_axis, styled
from moecli.record.folder import Run

Array = np.ndarray[Any, Any]
# each metric of a fit's training rows: its sign there, and the likelihood that it is the mean of
LIKELIHOODS = {
    "loss": (-1, "log p(y | x)"),
    "joint_nll": (-1, "log p(x, y)"),
    "classification_nll": (-1, "log p(y, own expert | x)"),
    "bound": (1, "lower bound on log p(y | x)"),
}
DIGITS = 1e-12  # relative: what changed by less did not change


@styled
def draw(run: Run) -> dict[str, Picture]:
    """Top: nats a row, rising.  Bottom: what each iteration added; where something fell, by how much."""
    curves = _curves(run)
    if set(curves) <= {"loss"}:  # a training by gradients: its loss is in the learning curves
        return {}
    figure, grid = new(heading(run, "likelihood of the training rows"), 105, 2, sharex=True, height_ratios=[1, 0.7])
    top, bottom = grid[:, 0]
    if _alike(curves):
        del curves["joint_nll"]
    for (name, (steps, values)), color in zip(curves.items(), OKABE_ITO, strict=False):
        top.plot(steps, values, color=color, marker=marker(steps), label=safe(LIKELIHOODS[name][1], 40))
        _gains(bottom, steps, values, color)
    top.set_ylabel("nats a row")
    top.legend(loc="lower left", bbox_to_anchor=(0, 1), borderaxespad=0.2, ncols=2)  # no corner is sure to be free
    changes = [np.abs(np.diff(values)) for _, values in curves.values()]
    log_axis(bottom, np.concatenate(changes))
    bottom.set_ylabel("change (nats a row)")
    steps_axis(bottom, "iteration")
    bottom.grid(axis="y", color=FAINT, alpha=0.25, linewidth=0.5)
    bottom.set_title("added by each iteration" + (" (crosses: fell by as much)" if _falls(curves) else ""))
    figure.align_ylabels()
    return {"likelihood": Picture(figure, _numbers(curves))}


def _numbers(curves: dict[str, tuple[Array, Array]]) -> dict[str, list[Any]]:
    rows = [(LIKELIHOODS[n][1], int(step), value) for n, c in curves.items() for step, value in zip(*c, strict=True)]
    return {name: [row[i] for row in rows] for i, name in enumerate(("likelihood", "iteration", "nats a row"))}


def _curves(run: Run) -> dict[str, tuple[Array, Array]]:
    """Steps and values of each likelihood."""
    found = defaultdict(list)
    for record in run.metrics:
        if record["split"] == "train" and record["name"] in LIKELIHOODS and record["value"] is not None:
            found[record["name"]].append((record["step"], LIKELIHOODS[record["name"]][0] * record["value"]))
    arrays = {name: np.array(sorted(found[name]), dtype=float).T for name in LIKELIHOODS if name in found}
    return {name: (steps, values) for name, (steps, values) in arrays.items()}


def _alike(curves: dict[str, tuple[Array, Array]]) -> bool:
    """Whether the joint likelihood is the conditional one, because the gate does not model x."""
    return {"loss", "joint_nll"} <= curves.keys() and np.array_equal(curves["loss"][1], curves["joint_nll"][1])


def _gains(axes: Axes, steps: Array, values: Array, color: str) -> None:
    gain = np.diff(values)
    axes.plot(steps[1:], np.where(gain > 0, gain, np.nan), color=color, marker=marker(steps), linewidth=1.0)
    fell = _fell(values)
    axes.plot(steps[1:][fell], -gain[fell], "x", color=color, markersize=4)


def _fell(values: Array) -> Array:
    """Where an iteration lowered the value by more than rounding."""
    return np.diff(values) < -DIGITS * (1 + np.abs(values[1:]))


def _falls(curves: dict[str, tuple[Array, Array]]) -> bool:
    return any(_fell(values).any() for _, values in curves.values())
