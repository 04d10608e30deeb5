"""Co-activation: of the tokens of one expert, how many another one serves too, in blocks of experts that go together."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.axes import Axes

from moecli.analysis.coactivation import coactivation
from moecli.plots.figure import Picture, heading, new, stem, styled
from moecli.plots.numbers import experts, melted
from moecli.plots.recorded import Recorded, chooses, last
from moecli.plots.shares import PRINTED, mark, print_cells
from moecli.record.folder import Run

Array = np.ndarray[Any, Any]
MOST_NAMED = (11, 18)  # experts of many whose names have room across and up
MOST = 64  # experts; those that go together most where there are more


@styled
def draw(run: Run) -> dict[str, Picture]:
    """One heat map a layer of N_ij / N_i (Muennighoff et al., 2024, §5.2), where tokens have some experts, but not all."""
    figures = {}
    for layer, about in run.layers.items():
        found = last(run, layer)
        if found is not None and chooses(run) and _some(found.tokens["expert"], about["experts"]):
            figures[stem("coactivation", layer)] = _picture(run, layer, found, about["experts"])
    return figures


def _some(expert: Array, num_experts: int) -> bool:
    """Whether some token has two experts, and not every token has all."""
    served = (expert >= 0).sum(1)
    return served.max(initial=0) > 1 and served.min(initial=num_experts) < num_experts


def _picture(run: Run, layer: str, found: Recorded, num_experts: int) -> Picture:
    together = coactivation(found.tokens["expert"], num_experts)  # (E, E)
    order = _blocks(together)
    shown = together[np.ix_(order, order)]
    rest = "" if num_experts <= MOST else f"; the {MOST} of {num_experts} experts that go together most"
    note = f"{found.where}{rest}. Chance: experts drawn evenly"
    what = heading(run, "who serves an expert's tokens too", layer)
    figure, grid = new(f"{what}\n{note}", 95)
    axes = grid[0, 0]
    np.fill_diagonal(shown, np.nan)
    image = axes.imshow(100 * shown, cmap="cividis", vmin=0, aspect="auto", interpolation="nearest")
    bar = figure.colorbar(image, ax=axes, label="% of the row's tokens")
    chance = _chance(found.tokens["expert"], num_experts)
    mark(bar, 100 * chance, "chance")
    _name(axes, order)
    if len(order) <= PRINTED[1]:
        print_cells(axes, shown)
    axes.set(xlabel="expert that serves them too", ylabel="expert, its tokens")
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    numbers = melted(together, ("expert", experts(num_experts)), ("other", experts(num_experts)), "share")
    return Picture(figure, {**numbers, "chance": np.full(together.size, chance)})


def _name(axes: Axes, order: Array) -> None:
    """As many experts as have room, each where it stands in the order."""
    across, up = (1 if len(order) <= PRINTED[1] else -(-len(order) // most) for most in MOST_NAMED)
    letter = "e" if len(order) <= 8 else ""
    axes.set_xticks(range(0, len(order), across), [f"{letter}{expert}" for expert in order[::across]])
    axes.set_yticks(range(0, len(order), up), [f"e{expert}" for expert in order[::up]])


def _chance(expert: Array, num_experts: int) -> float:
    """That another given expert serves a token of an expert, were a token's others drawn evenly: mean of (k - 1) / (E - 1)."""
    served = (expert >= 0).sum(1)
    return float((served * np.maximum(served - 1, 0)).sum() / max(served.sum(), 1) / (num_experts - 1))


def _blocks(together: Array) -> Array:
    """An order of the experts (E,) -> (at most MOST,) in which those that share tokens are neighbours.

    The leaves of an average-linkage tree over 1 - (C + C^T) / 2, in the order that brings neighbours closest.
    """
    from scipy.cluster.hierarchy import leaves_list, linkage
    from scipy.spatial.distance import squareform

    both = (together + together.T) / 2
    kept = np.sort(np.argsort(-both.sum(1), kind="stable")[:MOST])
    if len(kept) < 3:
        return kept
    distance = 1 - both[np.ix_(kept, kept)]
    np.fill_diagonal(distance, 0.0)
    tree = linkage(squareform(distance, checks=False), "average", optimal_ordering=True)
    return kept[leaves_list(tree)]
