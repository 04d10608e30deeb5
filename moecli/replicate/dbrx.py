"""Twice as many experts of half the size: 16 choose 4 beside 8 choose 2 (Databricks, 2024)."""

from __future__ import annotations

from math import comb

from moecli.replicate.bench import Bench, Outcome, Quantity, flops, gap, lower, nlls


def replicate(bench: Bench) -> Outcome:
    config = bench.compose().config
    experts, k, hidden = config["num_experts"], config["router"]["k"], config["expert"]["hidden"]
    halved = (f"num_experts={experts // 2}", f"router.k={k // 2}", f"expert.hidden={2 * hidden}")
    runs = bench.over_seeds({"fine-grained": (), "coarse": halved, "dense twin": ("model.twin=true",)})
    fine, coarse, _ = runs.values()
    return Outcome(
        [
            *nlls(runs),
            Quantity("gain over coarse experts in nats", gap(fine, coarse)),
            Quantity("times as many combinations of experts", comb(experts, k) / comb(experts // 2, k // 2), 65.0),
            *flops("a token", runs),
        ],
        "with every seed the fine-grained mixture has the lower test loss at the same parameters in its experts, in all "
        "and for a token",
        lower(fine, coarse),
    )
