"""One expert a token: against its dense twin, and against two at equal work (Fedus et al., 2021)."""

from __future__ import annotations

from moecli.record.folder import Run
from moecli.replicate.bench import Bench, Outcome, Quantity, dropped_in_training, gap, lower, metric, nlls

PAPER = {  # of 128 experts after 100,000 steps, in nats a word piece (table 1)
    "Switch, capacity 1.0": 1.561,
    "Switch, capacity 1.25": 1.553,
    "dense twin": 1.731,
    "top-2, capacity 1.0": 1.572,
}
TWO = ("router.k=2", "router.renormalize=true")


def replicate(bench: Bench) -> Outcome:
    runs = bench.over_seeds(
        {
            "Switch, capacity 1.0": (),
            "Switch, capacity 1.25": ("router.capacity_factor=1.25",),
            "dense twin": ("model.twin=true",),
            "top-2, capacity 1.0": TWO,
        }
    )
    switch, wide, twin, two = runs.values()
    longer = as_much_work(bench, switch[0], two[0])
    runs |= bench.over_seeds({"Switch, capacity 1.0, at the FLOPs of top-2": longer})
    even = runs["Switch, capacity 1.0, at the FLOPs of top-2"]
    return Outcome(
        [
            *nlls(runs, PAPER),
            Quantity("gain over the dense twin in nats, capacity 1.0", gap(switch, twin)),
            Quantity("gain over the dense twin in nats, capacity 1.25", gap(wide, twin)),
            Quantity("gain over top-2 at equal FLOPs in nats", gap(even, two)),
            Quantity("dropped in training, capacity 1.0", dropped_in_training(switch)),
            Quantity("dropped in training, capacity 1.25", dropped_in_training(wide)),
            Quantity("FLOPs a token, Switch", float(switch[0].summary["flops"])),
            Quantity("FLOPs a token, top-2", float(two[0].summary["flops"])),
        ],
        "at equal steps both capacities have a lower test loss than the dense twin with every seed, and at the FLOPs of "
        "top-2 the Switch has a lower mean loss than it",
        lower(switch, twin) and lower(wide, twin) and metric(even, "test/nll") < metric(two, "test/nll"),
    )


def as_much_work(bench: Bench, cheap: Run, dear: Run) -> tuple[str, ...]:
    """So many more steps of the cheap model that both spend the same FLOPs."""
    steps = bench.compose().config["trainer"]["steps"]
    return (f"trainer.steps={round(steps * dear.summary['flops'] / cheap.summary['flops'])}",)
