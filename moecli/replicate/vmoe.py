"""Who is served first where experts have little room: the heaviest patches, or the first ones (Riquelme et al., 2021)."""

from __future__ import annotations

import numpy as np

from moecli.record.folder import Run
from moecli.replicate.bench import Bench, Outcome, Quantity, told
from moecli.run import load
from moecli.training.evaluate import evaluate

HEAVIEST, IN_ORDER = "heaviest first", "in order"
SYSTEMS = {HEAVIEST: ("router.capacity_by=weight",), IN_ORDER: ("router.capacity_by=position",)}
FACTORS = (0.125, 0.25, 0.5, 1.05)  # of an expert's fair share, in evaluation; the last as in training
LITTLE = FACTORS[:2]


def replicate(bench: Bench) -> Outcome:
    runs = bench.over_seeds(SYSTEMS)
    found = {name: np.array([accuracies(run) for run in each]) for name, each in runs.items()}  # (seed, factor)
    gain = found[HEAVIEST] - found[IN_ORDER]
    first, *_, last = range(len(runs[HEAVIEST][0].layers))
    early, deep = (told(runs[HEAVIEST], layer, "class") for layer in (first, last))
    return Outcome(
        [
            *(
                Quantity(f"test accuracy with room for {factor:g} of a fair share, {name}", values[:, i].mean())
                for i, factor in enumerate(FACTORS)
                for name, values in found.items()
            ),
            Quantity("chance", runs[HEAVIEST][0].summary["chance"]["test/accuracy"]),
            Quantity("NMI of the first mixture's experts and class", early),
            Quantity("NMI of the last mixture's experts and class", deep),
        ],
        f"with room for {LITTLE[0]:g} and {LITTLE[1]:g} of a fair share serving the heaviest first is more accurate in every "
        "seed, and the last mixture's experts tell more of the class than the first's",
        bool((gain[:, : len(LITTLE)] > 0).all()) and deep > early,
    )


def accuracies(run: Run) -> list[float]:
    """On test, at each of ``FACTORS``."""
    loaded = [load(run.path, [f"router.eval_capacity_factor={factor}"]) for factor in FACTORS]
    return [evaluate(each.model, each.task, "test", each.device).metrics["accuracy"] for each in loaded]
