"""A second expert by chance, and room for so many tokens: what the saved work costs (Lepikhin et al., 2020)."""

from __future__ import annotations

from moecli.replicate.bench import (
    Bench,
    Outcome,
    Quantity,
    dropped_in_training,
    experts_a_token,
    gap,
    lower,
    metric,
    nlls,
)

AS_GOOD = 1.01  # times the loss of plain top-2
PLAIN = ("router=top_k", "router.capacity_factor=null", "router.eval_capacity_factor=null")


def replicate(bench: Bench) -> Outcome:
    runs = bench.over_seeds({"GShard": (), "top-2": PLAIN, "dense twin": ("model.twin=true",)})
    gshard, two, twin = runs.values()
    served = experts_a_token(gshard)
    return Outcome(
        [
            *nlls(runs),
            Quantity("experts a token in training, GShard", served),
            Quantity("experts a token in training, top-2", experts_a_token(two)),
            Quantity("dropped for want of room in training", dropped_in_training(gshard)),
            Quantity("gain over top-2 in nats", gap(gshard, two)),
            Quantity("gain over the dense twin in nats", gap(gshard, twin)),
        ],
        f"GShard's loss is at most {AS_GOOD:g} times that of plain top-2 with fewer experts a token in training, and "
        "below the dense twin's with every seed",
        metric(gshard, "test/nll") <= AS_GOOD * metric(two, "test/nll")
        and served < experts_a_token(two)
        and lower(gshard, twin),
    )
