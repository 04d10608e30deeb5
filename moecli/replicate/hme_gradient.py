"""A hierarchy row after row: online EM beside gradient descent, by epochs (Jordan & Jacobs, 1994, table 2).

The paper's online figures are for its own recursive least squares and arm: 0.12 after 2 epochs by EM, 0.15 after 104 by
gradient descent.  The error is one minus R^2.
"""

from __future__ import annotations

from moecli.replicate.bench import Bench, Outcome, Quantity, metric, or_never
from moecli.replicate.hme_em import relative_error, within

FASTER = 10  # times fewer epochs


def replicate(bench: Bench) -> Outcome:
    settings = bench.compose().config
    per_epoch = settings["task"]["rows"] / settings["trainer"]["batch_size"]
    gradient = bench.train()
    steps = 4 if bench.small else round(5 * per_epoch)
    every = f"trainer.eval_every={max(1, round(per_epoch / 4)) if not bench.small else 4}"
    online = bench.train("trainer=online_em", f"trainer.steps={steps}", "trainer.batch_size=50", every)
    level = max(1 - metric(run, "valid/r2") for run in (online, gradient))
    took = {name: within(run, level * 1.05) / per_epoch for name, run in (("em", online), ("gradient", gradient))}
    return Outcome(
        [
            Quantity("relative error, tree of 16 by online EM", relative_error(online), 0.12),
            Quantity("relative error, tree of 16 by gradient descent", relative_error(gradient), 0.15),
            Quantity("epochs of online EM, to within 5 % of the worse", or_never(took["em"]), 2),
            Quantity("epochs of gradient descent, to the same error", or_never(took["gradient"]), 104),
        ],
        f"online EM has the lower error and takes at most a {FASTER}th of the epochs",
        relative_error(online) <= relative_error(gradient) and took["em"] * FASTER <= took["gradient"],
    )
