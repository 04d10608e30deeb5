"""Experts of image patches by depth, on images of the user's, beside the dense twin (Riquelme et al., 2021)."""

from __future__ import annotations

from moecli.replicate.bench import Bench, Outcome, Quantity, flops, metric, nlls, told

TWICE = 2.0
LABELS = ("class", "position")


def replicate(bench: Bench) -> Outcome:
    runs = bench.over_seeds({"mixture": (), "dense twin": ("model.twin=true",)}, 2)
    mixture = runs["mixture"]
    first, last = ({label: told(mixture, layer, label) for label in LABELS} for layer in (0, -1))
    accuracy = {name: metric(found, "test/accuracy") for name, found in runs.items()}
    return Outcome(
        [
            *(Quantity(f"test accuracy, {name}", value) for name, value in accuracy.items()),
            Quantity("NMI of experts and class above chance, first mixture", first["class"]),
            Quantity("NMI of experts and class above chance, last mixture", last["class"]),
            Quantity("NMI of experts and position above chance, first mixture", first["position"]),
            Quantity("NMI of experts and position above chance, last mixture", last["position"]),
            *nlls(runs),
            *flops("a patch", runs),
        ],
        f"the last mixture's experts tell at least {TWICE:g} times as much of the class as the first's, and the mixture is "
        "at least as accurate as its twin on average",
        last["class"] >= TWICE * first["class"] and accuracy["mixture"] >= accuracy["dense twin"],
    )
