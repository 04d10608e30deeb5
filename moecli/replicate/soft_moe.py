"""Slots that average patches beside experts that choose patches or are chosen, at equal cost (Puigcerver et al., 2023).

Each expert has one slot in an image and there are as many experts as patches, so that a patch costs what one expert
costs, as it does where a patch chooses one expert, or an expert one patch of each image.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from moecli.record.folder import Run
from moecli.record.trace import TraceReader
from moecli.replicate.bench import Bench, Outcome, Quantity, flops, gap, metric, nlls

SLOTS, CHOSEN, CHOOSING = "slots", "a patch chooses one expert", "an expert chooses one patch"
SYSTEMS = {
    SLOTS: (),
    CHOSEN: ("router=top_k", "router.k=1", "router.renormalize=false", "gate=linear"),
    CHOOSING: ("router=expert_choice", "router.capacity_factor=1", "gate=linear"),
    "dense twin": ("model.twin=true",),
}
SPARSE = (CHOSEN, CHOOSING)


def replicate(bench: Bench) -> Outcome:
    runs = bench.over_seeds(SYSTEMS)
    accuracy = {name: metric(found, "test/accuracy") for name, found in runs.items()}
    lost = {name: left_out(runs[name]) for name in (SLOTS, *SPARSE)}
    return Outcome(
        [
            *(Quantity(f"test accuracy, {name}", value) for name, value in accuracy.items()),
            *(
                Quantity(f"gain in accuracy, {SLOTS} over {name}", gap(runs[name], runs[SLOTS], "test/accuracy"))
                for name in SPARSE
            ),
            *nlls(runs),
            *(Quantity(f"patches that no expert reads, {name}", share) for name, share in lost.items()),
            *flops("an image", runs),
        ],
        "slots are more accurate on test than either kind of choosing, in the mean over seeds, and leave no patch out",
        accuracy[SLOTS] > max(accuracy[name] for name in SPARSE) and lost[SLOTS] == 0,
    )


def left_out(runs: Sequence[Run]) -> float:
    """The share of test patches with no weight on any expert: mean over runs and layers."""
    tokens = [TraceReader(run.path).tokens(layer, "test") for run in runs for layer in run.layers]
    return float(np.mean([(each["weight"][:, 0] <= 0).mean() for each in tokens]))
