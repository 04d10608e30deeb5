"""A hierarchy by EM beside a back-propagation network, by error and epochs (Jordan & Jacobs, 1994, table 1).

The error is relative: one minus R^2, so that guessing the mean has 1.  The network has 60 hidden units, as there; it
descends full batches, as there, and then minibatches by Adam, which 1994 did not have.  The arm is simulated, and not
theirs.
"""

from __future__ import annotations

import numpy as np

from moecli.record.folder import Run
from moecli.replicate.bench import Bench, Outcome, Quantity, curve, metric, or_never

NEAR = 1.05  # of the likelihood or error that a run ends with
NETWORK = ("trainer=gradient", "expert=feed_forward", "expert.hidden=60", "num_experts=1", "gate=constant")
BATCH = 100


def replicate(bench: Bench) -> Outcome:
    rows = bench.compose().config["task"]["rows"]
    steps = 8 if bench.small else 600
    tree = bench.train()
    linear = bench.train("num_experts=1", "gate=constant", "trainer.steps=3")
    words = ("objective=blend_error", "family.covariance=fixed")
    batch = bench.train(*NETWORK, *words, f"trainer.steps={steps}", f"trainer.batch_size={rows}", "optimizer=sgd")
    adam = bench.train(
        *NETWORK, *words, f"trainer.steps={steps * 5}", f"trainer.batch_size={BATCH}", "optimizer.lr=0.003"
    )
    em, error = iterations(tree), relative_error(tree)
    level = 1 - metric(tree, "valid/r2")
    descent = within(batch, level)
    return Outcome(
        [
            Quantity("relative error, one linear map", relative_error(linear), 0.31),
            Quantity("relative error, tree of 16 by EM", error, 0.10),
            Quantity("relative error, network by batch back-propagation", relative_error(batch), 0.09),
            Quantity("relative error, network by Adam on minibatches", relative_error(adam)),
            Quantity("epochs of EM, to 5 % of its last likelihood", em, 35),
            Quantity("epochs of back-propagation, to the tree's error", or_never(descent, steps), 5500),
            Quantity(
                "epochs of Adam, to the tree's error",
                or_never(within(adam, level) * BATCH / rows, 5 * steps * BATCH / rows),
            ),
        ],
        "the tree's error is below half the linear map's, and EM takes at most a twentieth of the epochs that batch "
        "back-propagation takes to the same error",
        error < relative_error(linear) / 2 and em <= min(descent, steps) / 20,
    )


def relative_error(run: Run) -> float:
    return 1 - metric(run, "test/r2")


def iterations(run: Run) -> float:
    """Until the way from the first likelihood to the last is done but for a twentieth."""
    steps, nll = curve(run, "joint_nll")
    return float(steps[np.argmax(nll <= nll[-1] + (NEAR - 1) * (nll[0] - nll[-1]))]) + 1


def within(run: Run, error: float) -> float:
    """Steps until the validation error is as low."""
    steps, r2 = curve(run, "r2", "valid")
    reached = steps[1 - r2 <= error]
    return float(reached[0]) if len(reached) else float("inf")
