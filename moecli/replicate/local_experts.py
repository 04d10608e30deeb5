"""Local experts and back-propagation on vowels, by the epochs that they take (Jacobs et al., 1991).

The paper stops at a mean squared error of 0.08, its experts are linear with Gaussian noise, and it takes the mean of
25 runs; ours are softmax experts that stop at a likelihood, on speakers from a generator or from Peterson & Barney's own
file (task.path).  All systems descend full batches with the same rate and momentum.
"""

from __future__ import annotations

import numpy as np

from moecli.record.folder import Run
from moecli.replicate.bench import Bench, Outcome, Quantity, metric, or_never, steps_until

LEVEL = 0.34  # nats, of the training rows
NETWORK = ("num_experts=1", "gate=constant", "expert=feed_forward", "expert.activation=gelu")


def replicate(bench: Bench) -> Outcome:
    systems = {
        "4 experts": ("num_experts=4",),
        "8 experts": ("num_experts=8",),
        "network of 6 hidden units": (*NETWORK, "expert.hidden=6"),
        "network of 12 hidden units": (*NETWORK, "expert.hidden=12"),
    }
    runs = {name: [bench.train(f"seed={seed}", *words) for seed in bench.seeds(3)] for name, words in systems.items()}
    took = {name: epochs(found) for name, found in runs.items()}
    paper = {"4 experts": 1124, "network of 6 hidden units": 2209, "network of 12 hidden units": 2435}
    return Outcome(
        [
            *(Quantity(f"epochs to {LEVEL:g} nats, {name}", or_never(took[name]), paper.get(name)) for name in systems),
            *(Quantity(f"test accuracy, {name}", metric(found, "test/accuracy"), 0.90) for name, found in runs.items()),
        ],
        "four and eight experts need at most two thirds of the epochs of both networks",
        max(took["4 experts"], took["8 experts"]) <= 2 / 3 * min(took[name] for name in list(systems)[2:]),
    )


def epochs(runs: list[Run]) -> float:
    """Mean over seeds, infinite where one never arrives."""
    return float(np.mean([steps_until(run, "loss", LEVEL) for run in runs]))
