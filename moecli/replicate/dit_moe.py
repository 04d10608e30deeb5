"""What the experts of a diffusion transformer follow: place, step of denoising or class (Fei et al., 2024)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from moecli.record.folder import Run
from moecli.replicate.bench import Bench, Outcome, Quantity, flops, gap, metric, told

LABELS = {"place": "position", "step": "step", "class": "class"}
SHARED, ROUTED = "two shared experts", "routed experts alone"


def replicate(bench: Bench) -> Outcome:
    """With shared experts, with as many more routed ones instead, of which as many more are chosen, and dense."""
    settings = bench.compose().config
    shared = settings["model"]["shared"]
    more = (f"num_experts={settings['num_experts'] + shared}", f"router.k={settings['router']['k'] + shared}")
    runs = bench.over_seeds({SHARED: (), ROUTED: ("model.shared=0", *more), "dense twin": ("model.twin=true",)})
    error = {name: metric(found, "test/mse") for name, found in runs.items()}
    tells = {name: over_layers(runs[SHARED], label) for name, label in LABELS.items()}
    return Outcome(
        [
            *(Quantity(f"NMI of experts and {name}, above chance", value) for name, value in tells.items()),
            *(Quantity(f"test error of the noise, {name}", value) for name, value in error.items()),
            Quantity("gain in error by sharing", gap(runs[SHARED], runs[ROUTED], "test/mse")),
            *flops("an image", runs),
        ],
        "experts tell more of the place and of the step than of the class, in the mean over layers and seeds, and the mean "
        "error with shared experts is below that with routed ones alone",
        min(tells["place"], tells["step"]) > tells["class"] and error[SHARED] < error[ROUTED],
    )


def over_layers(runs: Sequence[Run], label: str) -> float:
    return float(np.mean([told(runs, layer, label) for layer in range(len(runs[0].layers))]))
