"""Whether neighbours share an expert, and whether topics have experts of their own (Jiang et al., 2024)."""

from __future__ import annotations

import numpy as np

from moecli.analysis.repetition import chance_at, repetition
from moecli.record.folder import Run
from moecli.record.trace import TraceReader
from moecli.replicate.bench import Bench, Outcome, Quantity, metric, told

PAPER = ("about 0.14", "about 0.27", "about 0.23")  # layers 0, 15 and 31 of 32, where chance is 0.125 (table 5)


def replicate(bench: Bench) -> Outcome:
    runs = [bench.train(f"seed={seed}") for seed in bench.seeds(3)]
    depth = len(runs[0].layers)
    places = {"first": 0, "middle": depth // 2, "last": depth - 1}
    again = np.array([[repeated(run, layer) for layer in runs[0].layers] for run in runs])  # (seeds, L, 2)
    ratio = again[..., 0] / again[..., 1]
    domain, character = ([told(runs, layer, label) for layer in range(depth)] for label in ("domain", "character"))
    return Outcome(
        [
            *(
                Quantity(f"same first expert as the character before, {name} layer", again[:, layer, 0].mean(), paper)
                for (name, layer), paper in zip(places.items(), PAPER, strict=True)
            ),
            *(
                Quantity(f"times what the load alone would give, {name} layer", ratio[:, layer].mean())
                for name, layer in places.items()
            ),
            Quantity("NMI of experts and domain above chance, most of any layer", max(domain)),
            Quantity("NMI of experts and character above chance, least of any layer", min(character)),
            Quantity("test nll in nats", metric(runs, "test/nll")),
        ],
        "with every seed the middle and the last layer repeat an expert more often than their load alone would, and more "
        "often beyond it than the first layer; and in every layer experts tell more of the character than of the domain",
        bool((ratio[:, [depth // 2, -1]] > np.maximum(1, ratio[:, :1])).all())
        and all(a < b for a, b in zip(domain, character, strict=True)),
    )


def repeated(run: Run, layer: str) -> tuple[float, float]:
    """How often a test character's first expert is that of the one before, and how often at this load by chance."""
    tokens = TraceReader(run.path).tokens(layer, "test")
    load = np.bincount(tokens["expert"][:, 0], minlength=run.layers[layer]["experts"]).astype(float)
    return repetition(tokens["expert"], tokens["sequence"], tokens["position"]), chance_at(load)
